"""Which measurements are made, on what, and in which order?"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scripts.benchmark.epoch import measure_epoch
from scripts.benchmark.network import measure_attention, measure_forward, measure_training
from scripts.benchmark.networks import OURS, PEERS, REFERENCE
from scripts.benchmark.scans import BODY_MM, crop_spacing, scan_files
from scripts.benchmark.volume import measure_volume

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
PARTS = ("network", "attention", "volume", "epoch")


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        forward: images of the forward pass.
        training: crops of the training step.
        attention: grids of positions.
        scan: voxels of the whole CT.
        scan_spacing: its mm.
        slices: of the smaller CTs, by which growth is measured.
        roi_size: of a window of the whole CT.
        spacing: at which the network sees it, mm.
        fit_steps: of the training that MPU-Net gets.
        epoch_knobs: config keys of the epoch.
    """

    forward: Sequence[tuple[int, int, int]]
    training: Sequence[tuple[int, int, int]]
    attention: Sequence[tuple[int, int, int]]
    scan: tuple[int, int, int]
    scan_spacing: tuple[float, float, float]
    slices: Sequence[int]
    roi_size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    fit_steps: int
    epoch_knobs: dict[str, Any] = field(default_factory=dict)


FULL = Sizes(
    forward=[(96, 96, 96), (256, 256, 48)],
    training=[(96, 96, 96)],
    attention=[(16, 8, 8), (16, 16, 16), (32, 32, 16), (64, 32, 32)],
    scan=(512, 512, 200),
    scan_spacing=(0.8, 0.8, 2.0),
    slices=[50, 100, 150],
    roi_size=(128, 128, 96),
    spacing=(1.5, 1.5, 1.0),
    fit_steps=150,
)
QUICK = Sizes(
    forward=[(64, 64, 32)],
    training=[(64, 64, 32)],
    attention=[(8, 8, 4), (8, 8, 8)],
    scan=(64, 64, 48),
    scan_spacing=(BODY_MM / 64, BODY_MM / 64, BODY_MM / 48),
    slices=[32],
    roi_size=(64, 64, 32),
    spacing=(8.0, 8.0, 8.0),
    fit_steps=8,
    epoch_knobs={"plane_size": [64, 64], "roi_size": [64, 64, 32], "spacing": [-1, -1, 8.0]},
)


@dataclass(frozen=True)
class Measurement:
    """One process: what it measures and under which names.

    Attributes:
        part: of `PARTS`.
        case: what is done, such as "forward 96 × 96 × 96".
        network: whose.
        setting: how.
        round: 0, 1, ...: in each, everything is measured once.
        function: that measures.
        arguments: of it.
    """

    part: str
    case: str
    network: str
    setting: str
    round: int
    function: Callable[..., dict[str, Any]]
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name, of which there is one."""
        return " | ".join((self.part, self.case, self.network, self.setting, str(self.round)))


def times(size: Sequence[int]) -> str:
    """Return a size in words: 256 × 256 × 48."""
    return " × ".join(map(str, size))


def onnx_file(folder: Path, size: tuple[int, int, int]) -> Path:
    """Return the file to which MPU-Net is exported for images of ``size``."""
    return folder / f"exports/{'x'.join(map(str, size))}.onnx"


def plan_network(sizes: Sizes, folder: Path, device: str, weights: str, rounds: int, peer_rounds: int) -> list:
    """Return the measurements of forward pass and training step, the reference first in every round."""
    ours = [(REFERENCE, "plain float32"), (OURS, "float32"), (OURS, "best")]
    checkpointing = [(OURS, "best, checkpointing")]
    exported = [(OURS, "OpenVINO, float32"), (OURS, "OpenVINO")] if HAS_OPENVINO and device == "cpu" else []
    peers = [(name, setting) for name in PEERS for setting in ("plain float32", "best")]
    plan = []
    for number in range(rounds):
        for kind, of_kind in (("forward", sizes.forward), ("training step", sizes.training)):
            for size in of_kind:
                compared = ours + (exported if kind == "forward" else checkpointing)
                for network, setting in compared + (peers if number < peer_rounds else []):
                    arguments = {
                        "network": network,
                        "setting": setting,
                        "size": size,
                        "folder": str(folder / "scans"),
                        "device": device,
                        "weights": None if network in PEERS else weights,
                    }
                    if "OpenVINO" in setting:
                        arguments["onnx"] = str(onnx_file(folder, size))
                    if kind == "forward":
                        name = f"{network} {setting} {times(size)}".replace(" ", "_")
                        kept = number == 0 and network not in PEERS
                        arguments["output"] = str(folder / f"outputs/{name}.npy") if kept else ""
                    function = measure_forward if kind == "forward" else measure_training
                    case = f"{kind} {times(size)}"
                    plan.append(Measurement("network", case, network, setting, number, function, arguments))
    return plan


def plan_attention(sizes: Sizes, device: str) -> list[Measurement]:
    """Return the measurements of the attention by number of positions."""
    plan = []
    for grid in sizes.attention:
        for setting in ("plain float32", "float32", "best"):
            count = f"{grid[0] * grid[1] * grid[2]:,} positions"
            name = "plain formula" if setting == "plain float32" else "fused"
            arguments = {"setting": setting, "grid": grid, "channels": 256, "device": device}
            plan.append(Measurement("attention", count, name, setting, 0, measure_attention, arguments))
    return plan


def plan_volume(sizes: Sizes, folder: Path, device: str, windows: int | None) -> list[Measurement]:
    """Return the measurements of whole CTs: the reference, this bundle, peers in both pipelines, smaller CTs."""
    compared: list[tuple[str, str, int | None]] = [(REFERENCE, "plain", None)]
    compared += [(OURS, "this bundle's", None), (OURS, "this bundle's, coarse pass", None)]
    for peer in ("DynUNet (32-320)", "SegResNet (32)", "SwinUNETR (24)"):
        compared += [(peer, pipeline, windows) for pipeline in ("plain, network at best", "this bundle's")]
    whole = sizes.scan[2]
    rows = [(network, pipeline, of_windows, whole) for network, pipeline, of_windows in compared]
    rows += [(OURS, "this bundle's", None, slices) for slices in sizes.slices]
    plan = []
    for network, pipeline, of_windows, slices in rows:
        size = (*sizes.scan[:2], slices)
        arguments = {
            "pipeline": pipeline,
            "network": network,
            "scan": [str(path) for path in scan_files(folder / "scans", size, sizes.scan_spacing)],
            "output_dir": str(folder / f"masks/{network} {pipeline} {slices}".replace(" ", "_")),
            "device": device,
            "max_windows": of_windows,
            "knobs": {"roi_size": list(sizes.roi_size), "spacing": list(sizes.spacing)},
        }
        plan.append(Measurement("volume", f"CT of {times(size)}", network, pipeline, 0, measure_volume, arguments))
    return plan


def plan_epoch(sizes: Sizes, folder: Path, device: str, windows: int | None) -> list[Measurement]:
    """Return the measurement of an epoch."""
    arguments = {
        "scan": [str(path) for path in scan_files(folder / "scans", sizes.scan, sizes.scan_spacing)],
        "device": device,
        "steps": 1,
        "max_windows": windows,
        "knobs": sizes.epoch_knobs,
    }
    return [Measurement("epoch", "epoch of the paper's size", OURS, "best", 0, measure_epoch, arguments)]


def needed_scans(sizes: Sizes, parts: Sequence[str]) -> list[tuple[tuple[int, int, int], tuple[float, float, float]]]:
    """Return size and spacing of the scans that the measurements of ``parts`` read."""
    scans = []
    if "network" in parts:
        scans += [(size, crop_spacing(size)) for size in dict.fromkeys([*sizes.forward, *sizes.training])]
    if "volume" in parts or "epoch" in parts:
        scans.append((sizes.scan, sizes.scan_spacing))
    if "volume" in parts:
        scans += [((*sizes.scan[:2], slices), sizes.scan_spacing) for slices in sizes.slices]
    return scans


def default_device() -> str:
    """Return the device to measure on: the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
