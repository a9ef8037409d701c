"""A network that was exported to ONNX, on the CPU by OpenVINO."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.devices import half_precision
from scripts.errors import InputError


class ExportedNetwork(nn.Module):
    """An ONNX file in the place of the network that it was exported from, computed on the CPU by OpenVINO.

    ``(B, C, H, W, D)`` float32 in and out, of the one shape that it was exported with: that of a window. It has no
    parameters and cannot be trained.

    Args:
        path: of the ONNX file.
        amp: compute in bfloat16 where the CPU has it (see `half_precision`), else in float32.

    Raises:
        InputError: if OpenVINO is not installed, or the file is missing or no ONNX file of a fixed shape.
    """

    def __init__(self, path: str | os.PathLike, amp: bool = True):
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise InputError(
                "openvino is not installed; pip install openvino (version in requirements-test.txt)"
            ) from error
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; export the network to it, as README.md says")
        precision = "bf16" if amp and half_precision("cpu") is torch.bfloat16 else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = openvino.Core().read_model(path)
            self.shape = tuple(model.input(0).shape)
            self.model = openvino.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise InputError(
                f"{path}: is not an ONNX file of a network for windows of one size; export it again"
            ) from error
        self.path = path

    def forward(self, image: Tensor) -> Tensor:
        """Return what the network that was exported returns.

        Raises:
            InputError: for an image of another shape.
        """
        if tuple(image.shape) != self.shape:
            raise InputError(
                f"{self.path}: was exported for {list(self.shape)}, got {list(image.shape)}: "
                f"give --roi_size {list(self.shape[2:])} --sw_batch_size {self.shape[0]}, or export it anew"
            )
        result = self.model([image.float().contiguous().cpu().numpy()])[0]
        return torch.from_numpy(result).to(image.device)
