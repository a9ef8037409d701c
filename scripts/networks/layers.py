"""What the networks are built of: padding, up-sampling, convolution stages, and the multi-scale block."""

import torch
import torch.nn.functional as F
from monai.networks.layers import get_norm_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PRELU_SLOPE = 0.25  # PyTorch's initial slope, used as the nonlinearity's in the Kaiming initialisation


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last plane of each spatial axis of ``(B, C, H, W, D)`` until ``multiple`` divides its size."""
    pad = [-image.shape[axis] % multiple for axis in (4, 3, 2)]
    if sum(pad) == 0:
        return image
    return F.pad(image, [0, pad[0], 0, pad[1], 0, pad[2]], mode="replicate")


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if its numbers are half as wide (mixed precision): logarithms need more digits."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def upsample(x: Tensor, size: list[int]) -> Tensor:
    """Enlarge the spatial axes of ``(B, C, H, W, D)`` to ``size`` trilinearly (Sec. 3.3.4), corners not aligned."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def initialize_convolutions(network: nn.Module) -> None:
    """Kaiming-initialise the weights of every convolution and zero its bias, as the released training does."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=PRELU_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def convolution_stage(in_channels: int, out_channels: int, depth: int, dilation: int = 1) -> nn.Sequential:
    """Return (3×3×3 convolution → PReLU with a slope per channel) × ``depth``; the size stays."""
    layers: list[nn.Module] = []
    for index in range(depth):
        channels = in_channels if index == 0 else out_channels
        layers.append(nn.Conv3d(channels, out_channels, 3, padding=dilation, dilation=dilation))
        layers.append(nn.PReLU(out_channels))
    return nn.Sequential(*layers)


def max_pool(x: Tensor) -> Tensor:
    """Return each voxel's maximum over its 3 × 3 × 3 neighbours, axis by axis; ``(B, C, H, W, D)`` in and out."""
    for axis in range(2, 5):
        length = x.shape[axis]
        if length > 1:
            pairs = torch.maximum(x.narrow(axis, 0, length - 1), x.narrow(axis, 1, length - 1))
            inner = torch.maximum(pairs.narrow(axis, 0, length - 2), pairs.narrow(axis, 1, length - 2))
            x = torch.cat([pairs.narrow(axis, 0, 1), inner, pairs.narrow(axis, length - 2, 1)], dim=axis)
    return x


class MaxPool(nn.Module):
    """Max-pooling 3 with stride 1, as ``nn.MaxPool3d(3, stride=1, padding=1)``.

    On the CPU PyTorch's own computes in float32 and stores an index of eight bytes for every voxel; this does neither,
    and keeps nothing but its input for the gradient. Where several voxels share the maximum, they share the gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and x.requires_grad:
            return checkpoint(max_pool, x, use_reentrant=False, preserve_rng_state=False)
        return max_pool(x)


class Downsampling(nn.Sequential):
    """Max-pooling 3 (stride 1) → convolution → norm → ELU: Eq. 5 with the order of the release.

    With ``stride`` 2 the convolution is 2×2×2 and halves the size; with 1 it is 3×3×3 and keeps it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str | tuple, elu_alpha: float):
        kernel_size = 2 if stride == 2 else 3
        super().__init__(
            MaxPool(),
            nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 3),
            get_norm_layer(norm, spatial_dims=3, channels=out_channels),
            nn.ELU(alpha=elu_alpha),
        )


class MultiScaleBlock(nn.Module):
    """Two-branch multi-scale block with hierarchical convolutions, HCNN (Sec. 3.3.2, Eq. 14-17).

    ``(B, in_channels, H, W, D)`` → two branches of two convolutions, of which one sees 5³ voxels (Eq. 14), the other 9³
    (Eq. 15) → concatenation (Eq. 16) → 1×1×1 convolution to ``(B, out_channels, H, W, D)`` (Eq. 17).

    The paper gives no kernel sizes: both are 3×3×3 here, the second branch's dilated by 2. A PReLU follows each
    convolution but the last, without which two linear ones in a row (as printed) would be one.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.near = convolution_stage(in_channels, out_channels, depth=2)
        self.far = convolution_stage(in_channels, out_channels, depth=2, dilation=2)
        self.fuse = nn.Conv3d(2 * out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.near(x), self.far(x)], dim=1))
