"""What is implausible in a predicted mask, beyond what MONAI's transforms know: a tumour is in a liver, or none.

Masks are class indices ``(1, H, W, D)``: 0 background, 1 the liver (or what else is sought), 2 a tumour in it.
"""

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from scripts.headers import find_voxel_ml

TOUCHING = ndimage.generate_binary_structure(3, 3)  # by a corner at least: of 26 neighbours


def _find_pieces(inside: Tensor) -> np.ndarray:
    """Return of each voxel of a boolean mask (H, W, D) the number of the piece it is in, from 1; 0 outside."""
    return ndimage.label(torch.as_tensor(inside).cpu().numpy(), TOUCHING)[0]


def drop_tumors_outside_liver(mask: Tensor) -> Tensor:
    """Return the mask without tumours that no liver touches: pieces of foreground in which class 1 has no voxel.

    A tumour at the liver's surface, or in the middle of other tumours that touch it, stays. A mask of tumours alone
    becomes empty.
    """
    pieces = _find_pieces(mask[0] > 0)
    with_liver = np.unique(pieces[torch.as_tensor(mask[0] == 1).cpu().numpy()])
    kept = mask.clone()
    kept[0][torch.from_numpy(~np.isin(pieces, with_liver)).to(mask.device)] = 0
    return kept


def drop_small_pieces(mask: Tensor, min_share: float) -> Tensor:
    """Return the mask without pieces of foreground of fewer than ``min_share`` (0 to 1) of the largest's voxels."""
    pieces = _find_pieces(mask[0] > 0)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0  # the outside
    kept = mask.clone()
    kept[0][torch.from_numpy((sizes < min_share * sizes.max())[pieces]).to(mask.device)] = 0
    return kept


def remove_islands(mask: MetaTensor, min_mm3: float) -> MetaTensor:
    """Return the mask without pieces smaller than ``min_mm3``: a small tumour becomes liver, a small liver background.

    The liver is measured with its tumours. The size of a voxel is that of the mask's affine. (MONAI's
    ``RemoveSmallObjects`` knows no nested classes, and whether it spares what has exactly that size depends on the
    version of scikit-image.)
    """
    voxel_mm3 = 1000 * find_voxel_ml(mask.affine)
    cleaned = mask.clone()
    for index in range(int(mask.max()), 0, -1):
        pieces = _find_pieces(cleaned[0] >= index)
        too_small = np.round(np.bincount(pieces.ravel()) * voxel_mm3, 6) < min_mm3
        too_small[0] = False  # the outside
        cleaned[0][torch.from_numpy(too_small[pieces]).to(mask.device)] = index - 1
    return cleaned


def reaches_border(mask: Tensor) -> bool:
    """Return whether any foreground lies at a face of the image, where what is sought may go on."""
    inside = mask[0] > 0
    return any(bool(inside.select(axis, end).any()) for axis in range(inside.ndim) for end in (0, -1))
