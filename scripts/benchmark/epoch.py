"""What does an epoch of the paper's size cost? Its parts are measured, the rest is multiplication."""

import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from scripts.benchmark.isolation import synchronize
from scripts.benchmark.machine import forget_peak, host_peak_mb
from scripts.benchmark.network import make_step
from scripts.benchmark.networks import OURS, StandIn, make_network
from scripts.benchmark.scans import THRESHOLD
from scripts.devices import keep_freed_memory_in_training

ROOT = Path(__file__).resolve().parents[2]
CASES = {"training": 88, "validation": 22}  # of the paper's split


def measure_epoch(
    scan: list[str], device: str, steps: int, max_windows: int, knobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure what an epoch of ``train.json`` with ``paper.json`` is made of, on one scan.

    Args:
        scan: files of the scan and of its label, which stand for every case.
        device: PyTorch's name for it.
        steps: how many training steps to time.
        max_windows: of the validation, to compute; the others' seconds are calculated.
        knobs: other config keys.

    Returns:
        Seconds per case of the preprocessing (once, then it is cached), of the random transforms, of a step, of a
        validation and of its metrics, and the peak of memory.
    """
    files = [str(ROOT / f"configs/{name}.json") for name in ("train", "paper")]
    config = ConfigParser(ConfigParser.load_config_files(files) | {"bundle_root": str(ROOT)} | (knobs or {}))
    target = torch.device(device)
    model = make_network(OURS).to(target).train()
    keep_freed_memory_in_training(model)
    seconds: dict[str, list[float]] = {name: [] for name in ("preprocessing", "augmentation", "step")}
    forget_peak()

    started = time.perf_counter()
    case = config.get_parsed_content("validate::preprocessing")({"image": str(scan[0]), "label": str(scan[1])})
    seconds["preprocessing"].append(time.perf_counter() - started)

    augment = Compose(config.get_parsed_content("train::random_transforms"))
    inferer = config.get_parsed_content("train::inferer")
    for _ in range(1 + steps):
        started = time.perf_counter()
        crop = augment(dict(case))
        crop = crop[0] if isinstance(crop, list) else crop
        seconds["augmentation"].append(time.perf_counter() - started)
        image, label = (crop[key].as_tensor()[None].to(target) for key in ("image", "label"))
        if not seconds["step"]:
            step = make_step(model, inferer, image, label)
        started = time.perf_counter()
        step()
        synchronize(target)
        seconds["step"].append(time.perf_counter() - started)

    stand_in = StandIn(model, THRESHOLD, max_windows).eval()
    image = case["image"][None].to(target)
    started = time.perf_counter()
    with torch.no_grad():
        pred = config.get_parsed_content("validate::inferer")(image, stand_in).argmax(dim=1, keepdim=True)
    validation = time.perf_counter() - started + stand_in.seconds_left_out()
    metric = config.get_parsed_content("validate::key_metric")["dice"]
    started = time.perf_counter()
    metric.update(([pred[0]], [case["label"]]))
    metrics = time.perf_counter() - started

    per_case = {name: sum(values[1:] or values) / len(values[1:] or values) for name, values in seconds.items()}
    per_case |= {"validation": validation, "metrics": metrics}
    result = {"seconds_per_case": per_case, "windows": len(stand_in.voxels), "host_peak_mb": host_peak_mb()}
    if target.type == "cuda":
        result["device_peak_mb"] = torch.cuda.max_memory_allocated(target) / 1e6
    return result


def cost_epoch(per_case: dict[str, float]) -> dict[str, float]:
    """Return the seconds of the parts of an epoch of the paper's size: 88 steps, and 22 whole volumes to validate."""
    return {
        "preprocessing, the first epoch only": per_case["preprocessing"] * sum(CASES.values()),
        "random transforms (beside the steps where there are workers)": per_case["augmentation"] * CASES["training"],
        "steps": per_case["step"] * CASES["training"],
        "validation": per_case["validation"] * CASES["validation"],
        "its metrics": per_case["metrics"] * CASES["validation"],
    }
