"""What the networks are built of: padding, up-sampling, convolution stages, and the multi-scale block."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import get_norm_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALLEST_SLOPE = 0.01  # of a PReLU whose input is found from its result
PIECE = 2**20  # numbers that are read and written while they are near the processor
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


class InstanceNorm(nn.InstanceNorm3d):
    """PyTorch's instance norm of ``(B, C, H, W, D)``, which leaves a single image's channels last in memory.

    Of one image it is the batch norm that PyTorch computes in any order; its own copies the image to another. A single
    voxel, which PyTorch refuses, is its own mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] * x.shape[4] == 1:
            return x - x if self.bias is None else x - x + self.bias.view(1, -1, 1, 1, 1)
        single = x.shape[0] == 1
        if not torch.jit.is_scripting():
            single = single and not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        if single:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def get_norm(norm: str | tuple, channels: int) -> nn.Module:
    """Return any norm of MONAI, given as a name or (name, arguments), for ``(B, channels, H, W, D)``."""
    layer = get_norm_layer(norm, spatial_dims=3, channels=channels)
    if isinstance(layer, nn.InstanceNorm3d) and not layer.track_running_stats:
        return InstanceNorm(channels, eps=layer.eps, affine=layer.affine)
    return layer


def _last(x: Tensor) -> Tensor:
    """Return ``(B, C, H, W, D)`` as ``(B, H, W, D, C)``, or, if its channels come last in memory, in rows of D·C."""
    last = x.permute(0, 2, 3, 4, 1)
    return last.flatten(0, 2).flatten(1) if x.is_contiguous(memory_format=torch.channels_last_3d) else last


class _PReLU(torch.autograd.Function):
    """PReLU with a slope per channel, in place of its input, or not; what it keeps for the gradient has the same sign.

    On the CPU PyTorch's is slow where few channels come last in memory, and its gradient always is: neither is
    vectorised.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, in_place: bool) -> Tensor:
        last = _last(x)
        ctx.in_place = in_place and last.ndim == 2
        if last.ndim == 2:
            y = x if in_place else torch.empty_like(x)
            slopes = slope.to(x.dtype).repeat(last.shape[1] // len(slope))
            pieces = (rows.split(max(PIECE // last.shape[1], 1)) for rows in (last, _last(y)))
            for piece, result in zip(*pieces, strict=True):
                result.copy_(F.prelu(piece, slopes))
        else:
            y = F.prelu(x, slope.to(x.dtype))
        if ctx.in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y if ctx.in_place else x, slope)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        kept, slope = ctx.saved_tensors
        last = _last(kept)
        gradient = gradient.permute(0, 2, 3, 4, 1).reshape(last.shape)
        of_input = torch.empty(last.shape, dtype=gradient.dtype, device=gradient.device)
        of_slopes = slope.new_zeros(last.shape[-1])
        slopes = slope.to(kept.dtype).repeat(last.shape[-1] // len(slope))
        pieces = (rows.split(max(PIECE // rows[0].numel(), 1)) for rows in (last, gradient, of_input))
        for sign, piece, result in zip(*pieces, strict=True):
            where_positive = torch.ops.aten.threshold_backward(piece, sign, 0)
            elsewhere = piece - where_positive
            torch.addcmul(where_positive, elsewhere, slopes, out=result)
            of_slopes += elsewhere.mul_(sign).sum(dim=tuple(range(last.ndim - 1)), dtype=slope.dtype)
        of_slope = of_slopes.view(-1, len(slope)).sum(dim=0)
        batch, channels, *size = kept.shape
        of_input = of_input.reshape(batch, *size, channels).permute(0, 4, 1, 2, 3)
        return of_input, of_slope / slope if ctx.in_place else of_slope, None


class PReLU(nn.PReLU):
    """PyTorch's PReLU of ``(B, C, H, W, D)`` with a slope per channel, in a fraction of its time on the CPU.

    There it may change its input, a convolution's or a norm's result, in place.

    Args:
        channels: C.
        slope: initial one of all.
        in_place: also where gradients are computed, of which the result is kept then: the convolution after it keeps
            that very tensor. Not for slopes below ``SMALLEST_SLOPE``, of which the result does not tell the input.
    """

    def __init__(self, channels: int, slope: float = PRELU_SLOPE, in_place: bool = True):
        super().__init__(channels, slope)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.prelu(x, self.weight)
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return F.prelu(x, self.weight)
        in_place = self.in_place and bool((self.weight >= SMALLEST_SLOPE).all())
        return _PReLU.apply(x, self.weight, in_place or not torch.is_grad_enabled())


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)``; for its gradient nothing but the inputs is kept.

    What comes before the last operation is computed again then; of the last one, only what it keeps.
    """
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in inputs):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class PairConvolution(nn.Conv3d):
    """3×3×3 convolution of one tensor or of the concatenation of two, ``(B, C, H, W, D)`` each; the size stays.

    Of two it is the sum of their convolutions, which takes as long, but neither memory for the concatenation nor for
    its gradient.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is None:
            return F.conv3d(x, self.weight, self.bias, padding=1)
        of_x, of_other = self.weight.split([x.shape[1], other.shape[1]], dim=1)
        return F.conv3d(x, of_x, self.bias, padding=1).add_(F.conv3d(other, of_other, padding=1))


def convolution_stage(
    in_channels: int,
    out_channels: int,
    depth: int,
    dilation: int = 1,
    of_pair: bool = False,
    norm: str | tuple | None = None,
) -> nn.Sequential:
    """Return (3×3×3 convolution → ``norm``, if any → PReLU with a slope per channel) × ``depth``; the size stays.

    With ``of_pair`` the first one is a `PairConvolution`. The result may be changed in place: the last PReLU keeps its
    input.
    """
    layers: list[nn.Module] = []
    for index in range(depth):
        channels = in_channels if index == 0 else out_channels
        if of_pair and index == 0:
            layers.append(PairConvolution(channels, out_channels))
        else:
            layers.append(nn.Conv3d(channels, out_channels, 3, padding=dilation, dilation=dilation))
        if norm is not None:
            layers.append(get_norm(norm, out_channels))
        layers.append(PReLU(out_channels, in_place=index < depth - 1))
    return nn.Sequential(*layers)


def _share(gradient: Tensor, x: Tensor, axis: int, of_x: Tensor) -> None:
    """Write the gradient of ``x`` from that of each two neighbours' maximum: the larger one has it, or the first."""
    length = x.shape[axis] - 1
    first, second = x.narrow(axis, 0, length), x.narrow(axis, 1, length)
    of_second = torch.ops.aten.threshold_backward(gradient, second - first, 0)
    torch.sub(gradient, of_second, out=of_x.narrow(axis, 0, length))
    of_x.narrow(axis, length, 1).zero_()
    of_x.narrow(axis, 1, length).add_(of_second)


def _max_of_three(x: Tensor, axis: int) -> Tensor:
    """Return each voxel's maximum over itself and its two neighbours along an axis."""
    length = x.shape[axis]
    pairs = torch.maximum(x.narrow(axis, 0, length - 1), x.narrow(axis, 1, length - 1))
    inner = torch.maximum(pairs.narrow(axis, 0, length - 2), pairs.narrow(axis, 1, length - 2))
    return torch.cat([pairs.narrow(axis, 0, 1), inner, pairs.narrow(axis, length - 2, 1)], dim=axis)


class _MaxOfThree(torch.autograd.Function):
    """`_max_of_three`, whose gradient one voxel has, also of several equal ones.

    PyTorch's gradient of the maximum halves that of equal ones, by masks that are not vectorised; and that of a slice
    is as large as the whole.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int) -> Tensor:
        ctx.axis = axis
        ctx.save_for_backward(x)
        return _max_of_three(x, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,), axis = ctx.saved_tensors, ctx.axis
        of_x = torch.empty_like(x)
        across = 3 if axis == 2 else 2  # an axis along which nothing is pooled
        thickness = max(PIECE * x.shape[across] // x.numel(), 1)
        for pieces in zip(*(part.split(thickness, dim=across) for part in (x, gradient, of_x)), strict=True):
            piece, of_maxima, result = pieces
            length = piece.shape[axis]
            pairs = torch.maximum(piece.narrow(axis, 0, length - 1), piece.narrow(axis, 1, length - 1))
            of_pairs = torch.zeros_like(pairs)
            if length > 2:
                _share(of_maxima.narrow(axis, 1, length - 2), pairs, axis, of_pairs)
            of_pairs.narrow(axis, 0, 1).add_(of_maxima.narrow(axis, 0, 1))
            of_pairs.narrow(axis, length - 2, 1).add_(of_maxima.narrow(axis, length - 1, 1))
            _share(of_pairs, piece, axis, result)
        return of_x, None


def max_pool(x: Tensor) -> Tensor:
    """Return each voxel's maximum over its 3 × 3 × 3 neighbours, axis by axis; ``(B, C, H, W, D)`` in and out."""
    for axis in range(2, 5):
        if x.shape[axis] > 1:
            if not torch.jit.is_scripting() and x.requires_grad:
                x = _MaxOfThree.apply(x, axis)
            else:
                x = _max_of_three(x, axis)
    return x


class MaxPool(nn.Module):
    """Max-pooling 3 with stride 1, as ``nn.MaxPool3d(3, stride=1, padding=1)``.

    On the CPU PyTorch's own computes in float32 and stores an index of eight bytes for every voxel; this does neither.
    Where several voxels share the maximum, one of them has the gradient. On a GPU it is PyTorch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            return F.max_pool3d(x, 3, stride=1, padding=1)
        return max_pool(x)


class Downsampling(nn.Sequential):
    """Max-pooling 3 (stride 1) → convolution → norm → ELU: Eq. 5 with the order of the release.

    With ``stride`` 2 the convolution is 2×2×2 and halves the size; with 1 it is 3×3×3 and keeps it. What is pooled is
    computed again for the gradient.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str | tuple, elu_alpha: float):
        kernel_size = 2 if stride == 2 else 3
        super().__init__(
            MaxPool(),
            nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 3),
            get_norm(norm, out_channels),
            nn.ELU(alpha=elu_alpha),
        )

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution of what is pooled."""
        for index, layer in enumerate(self):
            if index < 2:
                x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x) if torch.jit.is_scripting() else recompute(self.convolve, x)
        for index, layer in enumerate(self):
            if index >= 2:
                x = layer(x)
        return x


class MultiScaleBlock(nn.Module):
    """Two-branch multi-scale block with hierarchical convolutions, HCNN (Sec. 3.3.2, Eq. 14-17).

    ``(B, in_channels, H, W, D)`` → two branches of two convolutions, of which one sees 5³ voxels (Eq. 14), the other 9³
    (Eq. 15) → concatenation (Eq. 16) → 1×1×1 convolution to ``(B, out_channels, H, W, D)`` (Eq. 17).

    The paper gives no kernel sizes: both are 3×3×3 here, the second branch's dilated by 2. A PReLU follows each
    convolution but the last, without which two linear ones in a row (as printed) would be one; before it ``norm``, if
    any. Of two tensors it is the block of their concatenation.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str | tuple | None = None):
        super().__init__()
        self.near = convolution_stage(in_channels, out_channels, depth=2, norm=norm)
        self.far = convolution_stage(in_channels, out_channels, depth=2, dilation=2, norm=norm)
        self.fuse = nn.Conv3d(2 * out_channels, out_channels, 1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            x = torch.cat([x, other], dim=1)
        return self.fuse(torch.cat([self.near(x), self.far(x)], dim=1))
