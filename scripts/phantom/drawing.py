"""Phantoms that are drawn while a network trains on them: no two steps see the same patient."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

from scripts.phantom.scan import make_wide_phantom


class RandPhantomd(Randomizable, MapTransform):
    """Draws a wide phantom (`make_wide_phantom`, RAS+) where `LoadImaged` reads a scan; with each call another one.

    Args:
        keys: of the image, float32 HU, and of the label map, uint8; both ``(1, X, Y, Z)``.
        spacing_mm: along the left-right, back-front and foot-head axis.
    """

    def __init__(self, keys: KeysCollection, spacing_mm: Sequence[float]):
        super().__init__(keys)
        self.spacing_mm = tuple(spacing_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with a new phantom's image and label map."""
        phantom = make_wide_phantom(int(self.R.randint(2**63 - 1, dtype=np.int64)), self.spacing_mm, reorient=False)
        voxels = phantom.image.astype(np.float32), phantom.label
        return dict(data) | {
            key: MetaTensor(array[None], affine=phantom.affine) for key, array in zip(self.keys, voxels, strict=True)
        }
