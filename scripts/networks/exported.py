"""A network that was exported: to ONNX, on the CPU by OpenVINO or by ONNX Runtime; to TorchScript, by PyTorch."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts.devices import half_precision
from scripts.errors import InputError
from scripts.settings import read_settings

SETTINGS = "trained_with"  # in an ONNX file, and in the config of a TorchScript file
CONFIG = "inference.json"  # in a TorchScript file


def _check_is_there(path: str | os.PathLike) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; export the network to it, as docs/exports.md says")


def _no_onnx(path: str | os.PathLike) -> InputError:
    return InputError(f"{path}: is not an ONNX file of a network for windows of one size; export it again")


class OnnxNetwork(nn.Module):
    """An ONNX file in the place of the network that it was exported from, computed on the CPU by ONNX Runtime.

    ``(B, C, H, W, D)`` float32 in and out, of the one shape that it was exported with: that of a window. It has no
    parameters and cannot be trained.

    Args:
        path: of the ONNX file.

    Attributes:
        settings: what its weights were trained with, such as the spacing. `scripts.export` has written them inside;
            of a file by MONAI's own command they lie beside it, if anywhere.

    Raises:
        InputError: if ONNX Runtime is not installed, or the file is missing or no ONNX file of a fixed shape.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = path
        self.shape, settings = self.load(path)
        self.settings = json.loads(settings) if settings else read_settings(path)
        if not all(isinstance(size, int) for size in self.shape):
            raise _no_onnx(path)

    def load(self, path: str | os.PathLike) -> tuple[tuple[int, ...], str | None]:
        """Load the file; return the shape that it is for, and the settings inside, if it has any."""
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                "onnxruntime is not installed; pip install onnxruntime (version in requirements-test.txt)"
            ) from error
        _check_is_there(path)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has an exception class of its own for every kind of damage
            raise _no_onnx(path) from error
        return tuple(self.session.get_inputs()[0].shape), self.session.get_modelmeta().custom_metadata_map.get(SETTINGS)

    def compute(self, image: np.ndarray) -> np.ndarray:
        """Return what the file makes of an image of its shape."""
        return self.session.run(None, {self.session.get_inputs()[0].name: image})[0]

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
        return torch.from_numpy(self.compute(image.float().contiguous().cpu().numpy())).to(image.device)


class ExportedNetwork(OnnxNetwork):
    """The same by OpenVINO.

    Args:
        path: of the ONNX file.
        amp: compute in bfloat16 where the CPU has it (see `half_precision`), else in float32.

    Raises:
        InputError: if OpenVINO is not installed, or the file is missing or no ONNX file of a fixed shape.
    """

    def __init__(self, path: str | os.PathLike, amp: bool = True):
        self.amp = amp
        super().__init__(path)

    def load(self, path: str | os.PathLike) -> tuple[tuple[int, ...], str | None]:
        """Load the file; return the shape that it is for, and the settings inside, if it has any."""
        try:
            import openvino
        except ImportError as error:
            raise InputError(
                "openvino is not installed; pip install openvino (version in requirements-test.txt)"
            ) from error
        _check_is_there(path)
        precision = "bf16" if self.amp and half_precision("cpu") is torch.bfloat16 else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = openvino.Core().read_model(path)
            self.model = openvino.Core().compile_model(model, "CPU", settings)
            inside = ["framework", SETTINGS]  # where OpenVINO has the metadata of an ONNX file
            return tuple(model.input(0).shape), model.get_rt_info(inside).value if model.has_rt_info(inside) else None
        except RuntimeError as error:
            raise _no_onnx(path) from error

    def compute(self, image: np.ndarray) -> np.ndarray:
        """Return what the file makes of an image of its shape."""
        return self.model([image])[0]


def load_torchscript(path: str | os.PathLike) -> nn.Module:
    """Return the network in a TorchScript file, such as MONAI's ``ckpt_export`` writes, on the CPU.

    It takes images of the shapes that the network takes, and has ``settings`` as an `OnnxNetwork` has. TorchScript is a
    program: see SECURITY.md.

    Raises:
        InputError: if the file is missing, or is none of TorchScript.
    """
    _check_is_there(path)
    try:
        files = {CONFIG: ""}
        network = torch.jit.load(path, map_location="cpu", _extra_files=files)
        settings = json.loads(files[CONFIG] or "{}").get(SETTINGS)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: is no TorchScript file; export the network again") from error
    is_plain = settings is not None and "_target_" not in settings
    network.settings = settings if is_plain else read_settings(path)
    return network
