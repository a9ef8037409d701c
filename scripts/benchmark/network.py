"""What do forward pass, training step and attention cost, and do fast and plain give the same?"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from scripts.benchmark.isolation import synchronize
from scripts.benchmark.machine import forget_peak, host_peak_mb, resident_mb
from scripts.benchmark.networks import OURS, PlainPositionAttention, make_network
from scripts.benchmark.scans import make_crop
from scripts.devices import keep_freed_memory, keep_freed_memory_in_training
from scripts.inferers import DeviceInferer
from scripts.losses import TverskyCrossEntropyLoss
from scripts.networks import PositionAttention
from scripts.networks.exported import ExportedNetwork

# setting → whether memory and layout are those of `DeviceInferer`, and its mixed precision
SETTINGS = {
    "plain float32": (False, False),
    "float32": (True, False),
    "best": (True, True),
    "OpenVINO, float32": (True, False),
    "OpenVINO": (True, True),
    "best, checkpointing": (True, True),
}
LONG_SECONDS = 5.0  # a call this long is timed once in a process, a shorter one several times
MAX_CALLS = 3
FIT_SIZE = 48


def make_inferer(setting: str, trained: nn.Module | None = None) -> Inferer:
    """Return how a network is run in a setting, or ``trained``, and prepare this process for it."""
    lean, amp = SETTINGS[setting]
    if not lean:
        return SimpleInferer()
    if trained is None:
        keep_freed_memory()
    else:
        keep_freed_memory_in_training(trained, amp)
    return DeviceInferer(SimpleInferer(), amp=amp)


def measure_calls(call: Callable[[], Any], device: torch.device, warm_ups: int = 1) -> dict[str, Any]:
    """Return the seconds of every timed call after ``warm_ups`` others, and the memory of all."""
    resident = resident_mb()
    forget_peak()
    seconds: list[float] = []
    while len(seconds) - warm_ups < MAX_CALLS and (len(seconds) <= warm_ups or sum(seconds[warm_ups:]) < LONG_SECONDS):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    peak = host_peak_mb()
    result = {"seconds": seconds[warm_ups:], "host_peak_mb": peak, "growth_mb": peak - resident}
    if device.type == "cuda":
        result["device_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return result


def compare_probabilities(ours: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the largest difference of the foreground's probabilities ``(H, W, D)``, and the Dice of the masks."""
    masks = ours > 0.5, reference > 0.5
    both, each = int((masks[0] & masks[1]).sum()), int(masks[0].sum() + masks[1].sum())
    return {
        "max_difference": float((ours - reference).abs().max()),
        "dice": 2 * both / each if each else float("nan"),
    }


def measure_forward(
    network: str,
    setting: str,
    size: tuple[int, int, int],
    folder: str,
    device: str,
    weights: str | None,
    output: str,
    onnx: str = "",
) -> dict[str, Any]:
    """Measure the forward pass of a network on one image; keep the foreground's probabilities in ``output``.

    Args:
        network: a name of `scripts.benchmark.networks.NETWORKS`.
        setting: a name of `SETTINGS`.
        size: of the image.
        folder: of the scans.
        device: PyTorch's name for it.
        weights: a file of a state dict; None: random ones.
        output: a ``.npy`` file to write; empty: none.
        onnx: the file to which the network was exported, to be measured in its place; empty: none.
    """
    target = torch.device(device)
    inferer = make_inferer(setting)
    model: nn.Module
    if onnx:
        model = ExportedNetwork(onnx, amp=SETTINGS[setting][1])
    else:
        model = make_network(network, weights).to(target).eval()
    image = make_crop(Path(folder), size)[0].to(target)
    outputs: list[Tensor] = []

    def call() -> None:
        outputs.clear()
        outputs.append(inferer(image, model))

    with torch.no_grad():
        measured = measure_calls(call, target)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        np.save(output, torch.softmax(outputs[0].float(), dim=1)[0, 1].cpu().numpy())
    return measured


def measure_training(
    network: str, setting: str, size: tuple[int, int, int], folder: str, device: str, weights: str | None
) -> dict[str, Any]:
    """Measure the training step of a network on one crop: forward, loss, backward, Adam; as `measure_forward`."""
    target = torch.device(device)
    model = make_network(network, weights, checkpointing="checkpointing" in setting).to(target).train()
    inferer = make_inferer(setting, trained=model)
    image, label = (tensor.to(target) for tensor in make_crop(Path(folder), size))
    step = make_step(model, inferer, image, label)
    return measure_calls(step, target)


def make_step(model: nn.Module, inferer: Inferer, image: Tensor, label: Tensor) -> Callable[[], None]:
    """Return one training step as `train.json` makes it: Adam at 1e-4 and the paper's loss."""
    loss = TverskyCrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(enabled=isinstance(inferer, DeviceInferer) and inferer.amp and image.is_cuda)

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(loss(inferer(image, model), label)).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def measure_attention(setting: str, grid: tuple[int, int, int], channels: int, device: str) -> dict[str, Any]:
    """Measure the position attention on a grid of positions, by the plain formula or fused.

    Args:
        setting: of `SETTINGS`; with "plain float32" it is the plain formula.
        grid: of positions.
        channels: of the image.
        device: PyTorch's name for it.
    """
    target = torch.device(device)
    torch.manual_seed(0)
    kind = PlainPositionAttention if setting == "plain float32" else PositionAttention
    attention = kind(channels).to(target).eval()
    inferer = make_inferer(setting)
    x = torch.randn(1, channels, *grid, device=target)
    with torch.no_grad():
        inferer(x[..., :4, :4, :4], attention)  # for warming up
        return measure_calls(lambda: inferer(x, attention), target, warm_ups=0)


def export_network(path: str, weights: str, size: tuple[int, int, int]) -> None:
    """Export MPU-Net with the weights of a file to an ONNX file, as ``monai.bundle onnx_export`` does."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(None):
        torch.onnx.export(make_network(OURS, weights).eval(), (torch.rand(1, 1, *size),), path)


def fit_weights(path: str, size: tuple[int, int, int], folder: str, steps: int) -> float:
    """Train MPU-Net for some steps on crops of the image that is measured, and write its state dict to ``path``.

    Random weights decide nothing: half of their probabilities are at 0.5, where any rounding changes the mask. These
    find the bright liver of the image. λ of the attention begins at 0.5, so that it takes part.

    Returns:
        The Dice of the mask and the label.
    """
    keep_freed_memory()
    inferer = DeviceInferer(SimpleInferer())
    network = make_network(OURS)
    image, label = make_crop(Path(folder), size)
    for module in network.modules():
        if isinstance(module, PositionAttention):
            nn.init.constant_(module.gamma, 0.5)
    loss, optimizer = TverskyCrossEntropyLoss(), torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    inside = label[0, 0].nonzero()
    network.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        middle = inside[torch.randint(len(inside), (1,), generator=generator)][0]
        if step % 2:  # every other crop is anywhere
            middle = torch.tensor([int(torch.randint(n, (1,), generator=generator)) for n in size])
        corner = [max(min(int(m) - FIT_SIZE // 2, n - FIT_SIZE), 0) for m, n in zip(middle, size, strict=True)]
        crop = (..., *(slice(c, c + FIT_SIZE) for c in corner))
        optimizer.zero_grad()
        loss(inferer(image[crop], network), label[crop]).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        probability = inferer(image, network).softmax(dim=1)[0, 1]
    torch.save(network.state_dict(), path)
    return compare_probabilities(probability, label[0, 0].float())["dice"]
