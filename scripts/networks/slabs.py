"""Less memory: what depends on near voxels alone is computed slab by slab."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scripts.networks.attention import PositionAttention
from scripts.networks.layers import MaxPool, PReLU

SLAB_VOXELS = 2**20  # one slab has as many in evaluation, and less than twice as many
CHECKPOINTED_SLAB_VOXELS = 3 * 2**16  # and where a slab's activations are computed again for its gradient
HALO = 4  # voxels beyond a slab that its result may depend on: three 3×3×3 convolutions, or a multi-scale block

_LOCAL = (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.ELU, nn.Identity, PReLU, MaxPool)


def is_local(module: nn.Module) -> bool:
    """Return whether each result of ``module`` depends on near voxels alone: no attention, no norms but batch norm."""
    parts = list(module.modules())
    leaves = (part for part in parts if not list(part.children()))
    attends = any(isinstance(part, PositionAttention) for part in parts)
    return not attends and all(isinstance(leaf, _LOCAL) for leaf in leaves)


def in_slabs(function: Callable[..., Tensor], *inputs: Tensor, slab_voxels: int | None = None) -> Tensor:
    """Return ``function(*inputs)``, computed slab by slab along the first spatial axis, on halos of `HALO` voxels.

    Args:
        function: of ``(B, C, H, W, D)`` tensors, local, to one such; of other inputs of the same proportions too.
        inputs: whose sizes are 1 or 1/2 of the largest, which 8 divides, as the result's is.
        slab_voxels: as many as one slab has, and less than twice as many; None: `SLAB_VOXELS`.
    """
    finest = max(inputs, key=lambda x: x.shape[2])
    length = finest.shape[2]
    count = finest[:, :1].numel() // (slab_voxels or SLAB_VOXELS)
    if count < 2:
        return function(*inputs)
    thickness = max(2 * -(-length // (2 * count)), 2 * HALO)  # of thinner ones most is halo
    results = []
    for start in range(0, length, thickness):
        stop = min(start + thickness, length)
        low, high = max(start - HALO, 0), min(stop + HALO, length)
        pieces = (x[:, :, low * x.shape[2] // length : high * x.shape[2] // length] for x in inputs)
        result = function(*pieces)
        share = result.shape[2], high - low
        results.append(result[:, :, (start - low) * share[0] // share[1] : (stop - low) * share[0] // share[1]])
    return torch.cat(results, dim=2)
