"""What MONAI's transforms are told to look for, and the one that they lack: a mask's way back to its image's grid."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialResample, generate_spatial_bounding_box
from monai.transforms.utils import create_translate
from monai.utils import MetaKeys, convert_to_numpy, convert_to_tensor
from nibabel.affines import apply_affine
from torch import Tensor

REACH = 0.999  # voxels of the logits beyond their edge, as far as linear interpolation sees them
SLAB_VOXELS = 2**22  # resampled at a time, which takes some 30 bytes each


def find_body(image: Tensor) -> Tensor:
    """Return where an image ``(1, H, W, D)`` scaled to [-1, 1] is above the HU window's lower end: the body, no air.

    Of an image that is nothing but air it is everywhere, so that a crop to it leaves something.
    """
    return (image > -1) | (image.max() <= -1)


def find_foreground(label: Tensor) -> Tensor:
    """Return where class indices ``(1, H, W, D)`` are not background; everywhere if all of them are."""
    return (label > 0) | (label.max() <= 0)


def find_segmented(logits: Tensor) -> Tensor:
    """Return where some other class of ``logits`` ``(C, H, W, D)`` is likelier than background, the first."""
    return (logits[1:] > logits[:1]).any(dim=0, keepdim=True)


def restore_grid(
    logits: Tensor, affine: np.ndarray, grid_affine: np.ndarray, grid_shape: tuple[int, int, int]
) -> Tensor:
    """Return the likeliest class of each voxel of a grid, by the probabilities interpolated linearly.

    Where all voxels around one are likeliest background, it is background, whatever the weights. So nothing is
    computed but inside the box of the others, and one voxel around them: the same as on the whole grid, for less.
    Beyond the logits all is background.

    Args:
        logits: ``(C, H, W, D)``, background first.
        affine: ``(4, 4)``, from voxels of ``logits`` to mm.
        grid_affine: ``(4, 4)``, from voxels of the grid to mm.
        grid_shape: ``(X, Y, Z)`` of the grid.

    Returns:
        ``(1, X, Y, Z)`` uint8 class indices, on the device of ``logits``.
    """
    mask = torch.zeros(1, *grid_shape, dtype=torch.uint8, device=logits.device)
    first, end = generate_spatial_bounding_box(logits, find_segmented, margin=1, allow_smaller=True)
    if not any(end):
        return mask
    box = tuple(slice(a, b) for a, b in zip(first, end, strict=True))
    box_affine = affine @ create_translate(3, first)
    probabilities = MetaTensor(logits[(slice(None), *box)].softmax(dim=0), affine=box_affine)

    # less than one voxel beyond the logits: at one, rounding would make something of no probability at all
    ends = [(-REACH, size - 1 + REACH) for size in probabilities.shape[1:]]
    corners = np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3)
    corners = apply_affine(np.linalg.solve(grid_affine, box_affine), corners)
    low = np.ceil(corners.min(axis=0)).astype(int).clip(min=0).tolist()
    high = np.minimum(np.floor(corners.max(axis=0)).astype(int) + 1, grid_shape).tolist()
    if any(a >= b for a, b in zip(low, high, strict=True)):  # between two slices that are far apart, or beside the grid
        return mask

    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False, dtype=torch.float32)
    thickness = max(1, SLAB_VOXELS // ((high[1] - low[1]) * (high[2] - low[2])))
    for start in range(low[0], high[0], thickness):
        stop = min(start + thickness, high[0])
        slab_affine = grid_affine @ create_translate(3, [start, *low[1:]])
        slab = resample(probabilities, slab_affine, (stop - start, high[1] - low[1], high[2] - low[2]))
        mask[0, start:stop, low[1] : high[1], low[2] : high[2]] = slab.as_tensor().argmax(dim=0)
    return mask


class RestoreGridd(MapTransform):
    """What a network says of a preprocessed image, as a mask on the grid that the image was read with.

    The mask is that of MONAI's ``Activationsd(softmax=True)``, ``Invertd(nearest_interp=False)`` and
    ``AsDiscreted(argmax=True)``, without probabilities of all classes on the whole grid (see `restore_grid`).

    Args:
        keys: of logits ``(C, H, W, D)``; they become class indices ``(1, X, Y, Z)``, uint8.
        orig_keys: of the preprocessed image, whose affine tells where the logits lie, and whose metadata tell what
            grid it was read with.
    """

    def __init__(self, keys: KeysCollection, orig_keys: str = "image"):
        super().__init__(keys)
        self.orig_keys = orig_keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with masks in the place of logits."""
        image: MetaTensor = data[self.orig_keys]
        affine = convert_to_numpy(image.affine)
        grid_affine = convert_to_numpy(image.meta[MetaKeys.ORIGINAL_AFFINE])
        grid_shape = tuple(int(size) for size in image.meta[MetaKeys.SPATIAL_SHAPE])
        restored = dict(data)
        for key in self.key_iterator(restored):
            logits = convert_to_tensor(restored[key], track_meta=False).detach()
            mask = restore_grid(logits, affine, grid_affine, grid_shape)
            restored[key] = MetaTensor(mask.to(image.device), meta={**image.meta, MetaKeys.AFFINE: grid_affine})
        return restored
