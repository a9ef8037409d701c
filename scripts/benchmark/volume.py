"""What does a whole CT cost, from its file to that of its mask, and where does the time go?"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import monai.transforms.compose
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Transform

from scripts.benchmark.machine import forget_peak, host_peak_mb, resident_mb
from scripts.benchmark.networks import WANTS_MULTIPLES_OF_32, StandIn, make_network
from scripts.benchmark.scans import THRESHOLD
from scripts.devices import keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]
# pipeline → its configs, whether the network runs as suits the device, and knobs
PIPELINES: dict[str, tuple[list[str], bool, dict[str, Any]]] = {
    "plain": (["inference", "plain"], False, {}),
    "plain, network at best": (["inference", "plain"], True, {}),
    "this bundle's": (["inference"], True, {}),
    "this bundle's, coarse pass": (["inference"], True, {"coarse_pass": True}),
}
STAGES = ("read", "resample", "windows", "fuse", "resample back", "write", "other")


def stage_of(transform: Callable, before: bool) -> str:
    """Return the stage that a transform of the preprocessing (``before`` the network) or postprocessing belongs to."""
    name = type(transform).__name__
    if before:
        return "read" if "Load" in name else "resample"
    return "write" if "Save" in name or "Write" in name else "resample back"


@contextmanager
def timed_transforms(before: Compose, after: Compose) -> Iterator[dict[str, float]]:
    """Give a dict that fills with the seconds of each stage while the transforms of two ``Compose`` are applied.

    A transform inside another counts as part of that.
    """
    stages = {id(t): stage_of(t, first) for c, first in ((before, True), (after, False)) for t in c.transforms}
    seconds: dict[str, float] = defaultdict(float)
    apply_transform = monai.transforms.compose.apply_transform
    inside = False

    def apply(transform: Transform, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside or id(transform) not in stages:
            return apply_transform(transform, *args, **kwargs)
        inside, started = True, time.perf_counter()
        try:
            return apply_transform(transform, *args, **kwargs)
        finally:
            seconds[stages[id(transform)]] += time.perf_counter() - started
            inside = False

    with mock.patch.object(monai.transforms.compose, "apply_transform", apply):
        yield seconds


def make_stand_in(name: str, max_windows: int | None) -> StandIn:
    """Return the network of a config: `StandIn` for one of `scripts.benchmark.networks.NETWORKS`, random weights."""
    return StandIn(make_network(name), THRESHOLD, max_windows)


def read_inference_config(pipeline: str, network: str, max_windows: int | None, knobs: dict[str, Any]) -> ConfigParser:
    """Return the config of an inference whose network is the stand-in for ``network``, without weights to load."""
    names, lean, own_knobs = PIPELINES[pipeline]
    config = ConfigParser.load_config_files([str(ROOT / f"configs/{name}.json") for name in names])
    if lean and "plain" in names:
        config["inferer"] = {"_target_": "scripts.inferers.DeviceInferer", "inferer": config["inferer"]}
    if network in WANTS_MULTIPLES_OF_32 and "plain" not in names:
        config["inferer"] = config["inferer"] | {"fit_windows": False}
    config["network_def"] = {
        "_target_": "scripts.benchmark.volume.make_stand_in",
        "name": network,
        "max_windows": max_windows,
    }
    config["handlers"] = []  # there are no weights to load, and the mask is written by the postprocessing
    return ConfigParser(config | {"bundle_root": str(ROOT), "preview": False} | own_knobs | knobs)


def measure_volume(
    pipeline: str,
    network: str,
    scan: Sequence[str],
    output_dir: str,
    device: str,
    max_windows: int | None = None,
    knobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Segment a scan by a config and return seconds, by stage too, memory, and the mask's Dice with the label.

    Args:
        pipeline: a key of `PIPELINES`.
        network: a name of `scripts.benchmark.networks.NETWORKS`; `StandIn` answers in its place.
        scan: files of the scan and of its label.
        output_dir: where the mask is written.
        device: PyTorch's name for it.
        max_windows: compute only so many windows and calculate the others' seconds from them; None: all.
        knobs: other config keys.
    """
    if PIPELINES[pipeline][1]:
        keep_freed_memory()
    paths = {"dataset_dir": str(scan[0]), "output_dir": output_dir, "device": f"$torch.device('{device}')"}
    config = read_inference_config(pipeline, network, max_windows, paths | (knobs or {}))
    stand_in: StandIn = config.get_parsed_content("network_def")
    evaluator = config.get_parsed_content("evaluator")
    before, after = config.get_parsed_content("preprocessing"), config.get_parsed_content("postprocessing")
    infer, in_inferer = evaluator.inferer, 0.0

    def timed_inferer(*args: Any, **kwargs: Any) -> Any:
        nonlocal in_inferer
        started = time.perf_counter()
        result = infer(*args, **kwargs)
        in_inferer += time.perf_counter() - started
        return result

    evaluator.inferer = timed_inferer
    resident = resident_mb()
    forget_peak()
    started = time.perf_counter()
    with timed_transforms(before, after) as seconds:
        evaluator.run()
    total = time.perf_counter() - started
    peak, left_out = host_peak_mb(), stand_in.seconds_left_out()
    computed = sum(stand_in.seconds)
    seconds = dict.fromkeys(STAGES, 0.0) | seconds
    seconds["windows"] = computed + left_out
    seconds["fuse"] = in_inferer - computed
    seconds["other"] = total - computed - sum(seconds[stage] for stage in STAGES if stage not in ("windows", "other"))
    result = {
        "seconds": [total + left_out],
        "stages": seconds,
        "host_peak_mb": peak,
        "growth_mb": peak - resident,
        "windows": len(stand_in.voxels),
        "windows_computed": len(stand_in.seconds),
        "megavoxels_of_windows": sum(stand_in.voxels) / 1e6,
        "dice": dice_of_files(next(Path(output_dir).glob("*_seg.nii*")), scan[1]),
    }
    if torch.device(device).type == "cuda":
        result["device_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return result


def dice_of_files(mask: str | Path, label: str | Path) -> float:
    """Return the Dice of two masks on one grid."""
    ours, reference = (np.asarray(nib.load(path).dataobj) > 0 for path in (mask, label))
    return float(2 * (ours & reference).sum() / (ours.sum() + reference.sum()))
