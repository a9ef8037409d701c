"""What attends to what: positions and patches to each other, the decoder to a skip, a gate to single voxels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.networks.layers import get_norm, pad_to_multiple, upsample

ATTENTION_REDUCTION = 8  # the position attention's queries and keys have 1/8 of its channels (DANet, the paper's [92])


def pool_positions(x: Tensor, max_positions: int | None) -> Tensor:
    """Average ``(B, C, H, W, D)`` over the smallest cubes of which there are at most ``max_positions``; None: as is."""
    if max_positions is None:
        return x
    height, width, depth = x.shape[2:]
    side = 1
    while -(-height // side) * -(-width // side) * -(-depth // side) > max_positions:
        side += 1
    kernel = [min(side, height), min(side, width), min(side, depth)]
    return x if side == 1 else F.avg_pool3d(x, kernel, ceil_mode=True)


class PositionAttention(nn.Module):
    """Position attention module, PAM (Sec. 3.2.3, Eq. 6-9; DANet): every position attends to every other.

    ``λ·attended + input`` with λ (``gamma``) learned from 0. ``(B, C, H, W, D)`` in and out. The defaults are the
    release's: one head, scores that are plain products of queries and keys (Eq. 8), which have C / 8 channels.

    The N × N matrix of N = H·W·D positions is never stored: attention is fused. Fused kernels want queries, keys and
    values of one width, so queries and keys are padded with zeros, which leaves their products as they are.

    Args:
        channels: C; ``heads * reduction`` must divide it.
        heads: n of the multi-head attention; with more than one, a linear layer joins them.
        scaled: divide the scores by √d, d the width of a head's keys (Eq. 7).
        reduction: C over the channels of queries and keys; 1 is Eq. 6.
        max_keys: the most keys and values; where there are more positions they are averaged over cubes (None: all).
        source_channels: of what keys and values are made of, if not of the input.

    Raises:
        ValueError: if ``heads * reduction`` does not divide ``channels``.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        scaled: bool = False,
        reduction: int = ATTENTION_REDUCTION,
        max_keys: int | None = None,
        source_channels: int | None = None,
    ):
        super().__init__()
        if channels % (heads * reduction):
            raise ValueError(
                f"attention of {heads} heads and reduction {reduction} needs channels divisible by "
                f"{heads * reduction}, got {channels}"
            )
        self.heads, self.reduction, self.max_keys = heads, reduction, max_keys
        self.width = channels // (heads * reduction)
        self.scale = self.width**-0.5 if scaled else 1.0
        source_channels = channels if source_channels is None else source_channels
        self.query = nn.Conv3d(channels, channels // reduction, 1)
        self.key = nn.Conv3d(source_channels, channels // reduction, 1)
        self.value = nn.Conv3d(source_channels, channels, 1)
        self.projection = nn.Conv3d(channels, channels, 1) if heads > 1 else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))

    def split_heads(self, projected: Tensor) -> Tensor:
        """Turn ``(B, heads · width, H, W, D)`` into ``(B, heads, N, width)``, contiguous as fused kernels want it."""
        return projected.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3).contiguous()

    def widen(self, heads: Tensor) -> Tensor:
        """Pad queries or keys ``(B, heads, N, width)`` with zeros to the width of the values."""
        return F.pad(heads, [0, (self.reduction - 1) * self.width])

    def attend(self, x: Tensor, source: Tensor) -> Tensor:
        """Return ``x`` plus what its positions find in ``source``, ``(B, source_channels, ...)`` of any size."""
        source = pool_positions(source, self.max_keys)
        query, key = self.widen(self.split_heads(self.query(x))), self.widen(self.split_heads(self.key(source)))
        value = self.split_heads(self.value(source))
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.gamma * self.projection(attended.transpose(2, 3).reshape(x.shape)) + x

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x)


class CrossAttention(PositionAttention):
    """Multi-head cross-attention of decoder and skip (Sec. 3.3): queries of the one, keys and values of the other.

    ``x`` and the result are ``(B, channels, H, W, D)``, ``skip`` is ``(B, source_channels, ...)``. It takes the
    arguments of `PositionAttention`. The paper gives no formula; this is its Eq. 6-9 with two inputs.
    """

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.attend(x, skip)


class PatchSequence(nn.Module):
    """Attention over a sequence of patches with learned position embedding (Sec. 3.2.1-3.2.2, Eq. 1-4).

    ``(B, C, H, W, D)`` → a linear projection of every P × P × P patch (Eq. 1; as in Eq. 3-4 a convolution with kernel
    and stride P) plus position embedding (Eq. 2) → attention → layer norm → transposed convolution back to the input's
    size, added to the input. Sizes that P does not divide are padded by repeating the last plane, where Eq. 4 would
    leave the rest out. The embedding is learned on a grid and interpolated to that of the patches.

    Args:
        channels: C, and d of Eq. 2.
        patch_size: P.
        embedding_size: of the embedding's grid.
        attention: of ``(B, C, H / P, W / P, D / P)``.
    """

    def __init__(self, channels: int, patch_size: int, embedding_size: Sequence[int], attention: nn.Module):
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv3d(channels, channels, patch_size, stride=patch_size)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, channels, *embedding_size))
        self.attention = attention
        self.norm = nn.LayerNorm(channels)
        self.restore = nn.ConvTranspose3d(channels, channels, patch_size, stride=patch_size)

    def embed(self, x: Tensor) -> Tensor:
        """Return z₀ of Eq. 2 as a grid, ``(B, C, ⌈H / P⌉, ⌈W / P⌉, ⌈D / P⌉)``."""
        patches = self.projection(pad_to_multiple(x, self.patch_size))
        return patches + upsample(self.position_embedding, patches.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        sequence = self.attention(self.embed(x))
        restored = self.restore(self.norm(sequence.movedim(1, -1)).movedim(-1, 1))
        return x + restored[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]


class AttentionGate(nn.Module):
    """Attention gate (Sec. 3.3.1, Eq. 10-12; Attention U-Net): one coefficient per voxel, from ``x`` and a gate signal.

    ``x`` and ``gate`` are ``(B, C, H, W, D)`` of one shape; so is the result, ``x`` scaled by a coefficient in [0, 1],
    which may be written in its place.
    """

    def __init__(self, channels: int, norm: str | tuple):
        super().__init__()
        inner_channels = channels // 2
        self.project_x = self._projection(channels, inner_channels, norm)
        self.project_gate = self._projection(channels, inner_channels, norm)
        self.coefficient = self._projection(inner_channels, 1, norm)

    @staticmethod
    def _projection(in_channels: int, out_channels: int, norm: str | tuple) -> nn.Sequential:
        return nn.Sequential(nn.Conv3d(in_channels, out_channels, 1), get_norm(norm, out_channels))

    def forward(self, x: Tensor, gate: Tensor, in_place: bool = False) -> Tensor:
        coefficient = self.project_x(x).add_(self.project_gate(gate))
        coefficient = torch.sigmoid(self.coefficient(coefficient.relu_()))
        return x.mul_(coefficient) if in_place else x * coefficient
