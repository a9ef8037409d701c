"""What is done to a whole batch, whose crops have to keep one size."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import default_prepare_batch
from torch import Tensor
from torch.nn import functional

AIR = -1.0  # in images scaled to [-1, 1]


class RandSlabBatch:
    """For a trainer's ``prepare_batch``: of some batches a slab of few slices is left, as there are scans of few.

    Args:
        prob: of a slab.
        slices: the fewest and the most of a slab; of a batch with fewer, all stay.
        divisor: to a multiple of which a slab is padded at both ends, with air and background.
    """

    def __init__(self, prob: float, slices: tuple[int, int], divisor: int = 16):
        self.prob = prob
        self.slices = slices
        self.divisor = divisor

    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return image and label ``(B, 1, H, W, D)`` on the device, see `default_prepare_batch`."""
        image, label = default_prepare_batch(batchdata, *args, **kwargs)
        if torch.rand(()) >= self.prob:
            return image, label
        fewest, most = (min(count, image.shape[-1]) for count in self.slices)
        depth = int(torch.randint(fewest, most + 1, ()))
        start = int(torch.randint(image.shape[-1] - depth + 1, ()))
        missing = -depth % self.divisor
        ends = (missing // 2, missing - missing // 2)
        slab = slice(start, start + depth)
        return functional.pad(image[..., slab], ends, value=AIR), functional.pad(label[..., slab], ends)
