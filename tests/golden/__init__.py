"""Numbers of the authors' released networks, and the formula weights that they were measured with."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
MAPS = ("fused", "scale_1_2", "scale_1_4", "scale_1_8")


def released_state_dict(network: str) -> dict[str, Tensor]:
    """Return a state dict with the released keys and shapes of ``mpunet`` or ``unet``; its values are a formula."""
    keys_and_shapes = json.loads((FOLDER / "state_dicts.json").read_text(encoding="utf-8"))[network]
    return {key: _formula(position, key, shape) for position, (key, shape) in enumerate(keys_and_shapes)}


def golden_io(network: str) -> dict[str, np.ndarray]:
    """Return the input and the four maps of ``mpunet`` or ``unet`` with those weights."""
    with np.load(FOLDER / f"{network}.npz") as arrays:
        return dict(arrays)


def _formula(position: int, key: str, shape: list[int]) -> Tensor:
    kind = key.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return torch.tensor(7)
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    if len(shape) == 5:
        is_head = shape[0] == 2 and shape[2] == 1
        gain = 8.0 if is_head else 4.0 if ("query" in key or "key_conv" in key) else 1.2
        value = torch.sin(12.9898 * i + 0.1 * position) * gain / math.prod(shape[1:]) ** 0.5
    elif kind == "running_var":
        value = 1.0 + 0.5 * torch.sin(0.7 * i + position)
    elif kind == "running_mean":
        value = 0.1 * torch.sin(0.3 * i + position)
    elif kind == "gamma":
        value = torch.full_like(i, 0.5)
    elif kind == "weight":  # slopes of PReLU, scales of batch norm
        value = 0.6 + 0.4 * torch.sin(0.9 * i + position)
    else:
        value = 0.1 * torch.sin(0.5 * i + position)
    return value.reshape(shape).float()
