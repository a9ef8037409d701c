"""What is done to a whole batch, whose crops have to keep one size."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import default_prepare_batch
from monai.transforms import generate_spatial_bounding_box
from torch import Tensor
from torch.nn import functional

AIR = -1.0  # in images scaled to [-1, 1]


class RandSlabBatch:
    """For a trainer's ``prepare_batch``: of some batches a slab of few slices is left, as there are scans of few.

    Args:
        prob: of a slab.
        slices: the fewest and the most of a slab; of a batch with fewer, all stay.
        divisor: to a multiple of which a slab is padded at both ends, with air and background.
        tip_prob: of a slab that ends in the tip of what is labelled or beside it, as there are scans that end there.
        tip: the most slices of it in such a slab.
        max_slices: the most of a batch of which no slab is left: of deeper crops so many in a row. Of a crop that is
            deeper than a network is trained on, long slabs too can end in a tip. None: all stay.
    """

    def __init__(
        self,
        prob: float,
        slices: tuple[int, int],
        divisor: int = 16,
        tip_prob: float = 0.0,
        tip: int = 8,
        max_slices: int | None = None,
    ):
        self.prob = prob
        self.slices = slices
        self.divisor = divisor
        self.tip_prob = tip_prob
        self.tip = tip
        self.max_slices = max_slices

    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return image and label ``(B, 1, H, W, D)`` on the device, see `default_prepare_batch`."""
        image, label = default_prepare_batch(batchdata, *args, **kwargs)
        count = image.shape[-1]
        starts: list[int] = []
        if torch.rand(()) < self.prob:
            fewest, most = (min(slices, count) for slices in self.slices)
            depth = int(torch.randint(fewest, most + 1, ()))
            if self.tip_prob and torch.rand(()) < self.tip_prob:
                starts = self._find_tips(image, label, depth)
        elif self.max_slices is None or count <= self.max_slices:
            return image, label
        else:
            depth = self.max_slices
        start = starts[int(torch.randint(len(starts), ()))] if starts else int(torch.randint(count - depth + 1, ()))
        missing = -depth % self.divisor
        ends = (missing // 2, missing - missing // 2)
        slab = slice(start, start + depth)
        return functional.pad(image[..., slab], ends, value=AIR), functional.pad(label[..., slab], ends)

    def _find_tips(self, image: Tensor, label: Tensor, depth: int) -> list[int]:
        """Where slabs of ``depth`` slices begin that end in up to ``tip`` slices of what is labelled, or beside it.

        It is that of one crop of the batch. What ends where the scan or the crop does has no tip there, if a rotation
        has not tilted that end.
        """
        crop = int(torch.randint(len(label), ()))
        boxes = (generate_spatial_bounding_box(mask) for mask in (image[crop] > AIR / 2, label[crop]))
        scanned, labelled = (range(first[-1], end[-1]) for first, end in boxes)
        if not labelled:
            return []
        slices = range(min(self.tip, len(labelled)) + 1)
        lower = [labelled.start + count - depth for count in slices] if labelled.start > scanned.start else []
        upper = [labelled.stop - count for count in slices] if labelled.stop < scanned.stop else []
        return [start for start in lower + upper if 0 <= start <= label.shape[-1] - depth]
