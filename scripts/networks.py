"""The two networks of the paper: MPU-Net (Sec. 3, Fig. 2) and its U-Net baseline (Sec. 4.2).

Layer sizes are those of the authors' released implementation, which alone reproduces the parameter counts of the
paper's Table 6; its modules that no forward pass uses are left out (1,049,754 parameters of MPU-Net's 22,557,009).

Both networks take an image ``(B, in_channels, H, W, D)`` of any size and return log-probabilities of the same size
(see `fuse_log_probabilities`), so every loss and post-transform that takes logits takes them unchanged.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers import get_norm_layer
from torch import Tensor, nn

ATTENTION_REDUCTION = 8  # the position attention's queries and keys have 1/8 of its channels (DANet, the paper's [92])
PRELU_SLOPE = 0.25  # PyTorch's initial slope, used as the nonlinearity's in the Kaiming initialisation


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last plane of each spatial axis of ``(B, C, H, W, D)`` until ``multiple`` divides its size."""
    pad = [-image.shape[axis] % multiple for axis in (4, 3, 2)]
    if sum(pad) == 0:
        return image
    return F.pad(image, [0, pad[0], 0, pad[1], 0, pad[2]], mode="replicate")


def upsample(x: Tensor, size: list[int]) -> Tensor:
    """Enlarge the spatial axes of ``(B, C, H, W, D)`` to ``size`` trilinearly (Sec. 3.3.4), corners not aligned."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def fuse_log_probabilities(log_probabilities: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability of several maps (Eq. 18): what is averaged is probability.

    The result is a valid logits tensor too: its softmax is exactly the mean of the maps' softmax.
    """
    return torch.logsumexp(torch.stack(log_probabilities), dim=0) - math.log(len(log_probabilities))


def log_probabilities(logits: Tensor, size: list[int]) -> Tensor:
    """Crop ``(B, classes, H, W, D)`` to the spatial ``size`` and normalise over the classes."""
    return F.log_softmax(logits[:, :, : size[0], : size[1], : size[2]], dim=1)


def initialize_convolutions(network: nn.Module) -> None:
    """Kaiming-initialise the weights of every convolution and zero its bias, as the released training does."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=PRELU_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def convolution_stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """Return (3×3×3 convolution → PReLU with a slope per channel) × ``depth``; the size stays."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(nn.Conv3d(in_channels if index == 0 else out_channels, out_channels, 3, padding=1))
        layers.append(nn.PReLU(out_channels))
    return nn.Sequential(*layers)


class Downsampling(nn.Sequential):
    """Max-pooling 3 (stride 1) → convolution → norm → ELU: Eq. 5 with the order of the release.

    With ``stride`` 2 the convolution is 2×2×2 and halves the size; with 1 it is 3×3×3 and keeps it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str | tuple, elu_alpha: float):
        kernel_size = 2 if stride == 2 else 3
        super().__init__(
            nn.MaxPool3d(3, stride=1, padding=1),
            nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 3),
            get_norm_layer(norm, spatial_dims=3, channels=out_channels),
            nn.ELU(alpha=elu_alpha),
        )


class PositionAttention(nn.Module):
    """Position attention module, PAM (Sec. 3.2.3, Eq. 8-9; DANet): every voxel attends to every other.

    Scores are the plain products of queries and keys, as in Eq. 8: without the 1/√d of Eq. 7.
    ``γ·attended + input`` with γ learned from 0. ``(B, C, H, W, D)`` in and out; 8 must divide C.

    The N × N matrix of N = H·W·D positions is never stored: attention is fused. Fused kernels want queries, keys and
    values of one width, so the values are split into heads as wide as the keys, which all share the same scores.
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels % ATTENTION_REDUCTION:
            raise ValueError(f"position attention needs channels divisible by {ATTENTION_REDUCTION}, got {channels}")
        self.query = nn.Conv3d(channels, channels // ATTENTION_REDUCTION, 1)
        self.key = nn.Conv3d(channels, channels // ATTENTION_REDUCTION, 1)
        self.value = nn.Conv3d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def split_heads(self, projected: Tensor) -> Tensor:
        """Turn ``(B, heads · width, H, W, D)`` into ``(B, heads, N, width)``, contiguous as fused kernels want it."""
        return projected.flatten(2).unflatten(1, (-1, self.key.out_channels)).transpose(2, 3).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        value = self.split_heads(self.value(x))
        query = self.split_heads(self.query(x)).expand_as(value)
        key = self.split_heads(self.key(x)).expand_as(value)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.gamma * attended.transpose(2, 3).reshape(x.shape) + x


class AttentionGate(nn.Module):
    """Attention gate (Sec. 3.3.1, Eq. 10-12; Attention U-Net): one coefficient per voxel, from ``x`` and a gate signal.

    ``x`` and ``gate`` are ``(B, C, H, W, D)`` of one shape; so is the result, ``x`` scaled by a coefficient in [0, 1].
    """

    def __init__(self, channels: int, norm: str | tuple):
        super().__init__()
        inner_channels = channels // 2
        self.project_x = self._projection(channels, inner_channels, norm)
        self.project_gate = self._projection(channels, inner_channels, norm)
        self.coefficient = self._projection(inner_channels, 1, norm)

    @staticmethod
    def _projection(in_channels: int, out_channels: int, norm: str | tuple) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 1), get_norm_layer(norm, spatial_dims=3, channels=out_channels)
        )

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * torch.sigmoid(self.coefficient(F.relu(self.project_x(x) + self.project_gate(gate))))


class DecoderLevel(nn.Module):
    """One level of the decoder: three convolutions of ``x``, plus ``residual``, gated by ``residual``.

    ``x`` is ``(B, in_channels, H, W, D)``, ``residual`` and the result are ``(B, out_channels, H, W, D)``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str | tuple):
        super().__init__()
        self.stage = convolution_stage(in_channels, out_channels, depth=3)
        self.gate = AttentionGate(out_channels, norm)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.gate(self.stage(x) + residual, residual)


class MPUNet(nn.Module):
    """MPU-Net (Fig. 2): a residual encoder, position attention at its end, a gated decoder, four fused output maps.

    The defaults are the released network of Table 6 without its dead modules, 21,507,255 parameters, with the ELU of
    the paper (α = 1; the release sets α to the number of channels by a slip, see ``elu_alpha``).

    In evaluation the result is ``(B, out_channels, H, W, D)`` log-probabilities: the mean of the four maps' softmax
    (Eq. 18). In training with ``deep_supervision`` it is ``(B, 4, out_channels, H, W, D)``: the fused map, then the
    coarse ones of 1/2, 1/4 and 1/8 resolution, each enlarged to the full size. Sizes that 8 does not divide are padded
    by repeating the last plane and cropped back.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: of the five encoder levels, at 1, 1/2, 1/4, 1/8 and 1/8 of the resolution; 8 must divide the last.
        dropout: probability, after encoders 2-5 and after all gates but the last (elementwise, training only).
        norm: any norm of MONAI, as a name or (name, arguments).
        elu_alpha: α of the five down-sampling blocks' ELU, one for all or one each
            (the released network has 32, 64, 128, 256, 512).
        deep_supervision: also return the coarse maps in training.

    Raises:
        ValueError: for other than five ``channels`` or ``elu_alpha``, or a last channel that 8 does not divide.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: float = 0.2,
        norm: str | tuple = "batch",
        elu_alpha: float | Sequence[float] = 1.0,
        deep_supervision: bool = True,
    ):
        super().__init__()
        alphas = [float(elu_alpha)] * 5 if isinstance(elu_alpha, int | float) else [float(a) for a in elu_alpha]
        if len(channels) != 5 or len(alphas) != 5:
            raise ValueError(f"MPUNet has five levels, got channels {list(channels)} and elu_alpha {alphas}")
        widths = [*channels, 2 * channels[-1]]  # the last down-sampling doubles once more
        self.deep_supervision = deep_supervision

        self.encoders = nn.ModuleList(
            convolution_stage(in_channels if level == 0 else widths[level], widths[level], depth=2)
            for level in range(5)
        )
        self.downs = nn.ModuleList(
            Downsampling(widths[level], widths[level + 1], 2 if level < 3 else 1, norm, alphas[level])
            for level in range(5)
        )
        self.context = nn.Sequential(
            nn.Conv3d(widths[5], widths[4], 3, padding=1),
            get_norm_layer(norm, spatial_dims=3, channels=widths[4]),
            nn.PReLU(),
            PositionAttention(widths[4]),
            nn.Conv3d(widths[4], widths[4], 3, padding=1),
            get_norm_layer(norm, spatial_dims=3, channels=widths[4]),
            nn.PReLU(),
        )
        decoder_widths = [widths[level] for level in (4, 3, 2, 1)]  # coarse to fine
        skip_widths = [widths[level] for level in (3, 2, 1, 0)]
        self.decoders = nn.ModuleList(
            DecoderLevel(skip if level == 0 else width + skip, width, norm)
            for level, (width, skip) in enumerate(zip(decoder_widths, skip_widths, strict=True))
        )
        self.ups = nn.ModuleList(
            [nn.Identity()]  # the first decoder level has the context's resolution
            + [
                nn.Sequential(nn.ConvTranspose3d(coarse, fine, 2, stride=2), nn.PReLU(fine))
                for coarse, fine in itertools.pairwise(decoder_widths)
            ]
        )
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, 1) for width in decoder_widths)
        self.dropout = nn.Dropout(dropout)
        initialize_convolutions(self)

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the four skip tensors, coarse to fine, and the encoder's end (at 1/8, twice the last channels).

        Each level adds its own input; the first adds the image, one channel (the mean of several) to all of its own.
        """
        skips: list[Tensor] = []
        for level, (encoder, down) in enumerate(zip(self.encoders, self.downs)):
            x = encoder(x) + (x.mean(dim=1, keepdim=True) if level == 0 else x)
            if level > 0:
                x = self.dropout(x)
            if level < 4:
                skips.insert(0, x)
            x = down(x)
        return skips, x

    def forward(self, image: Tensor) -> Tensor:
        x = pad_to_multiple(image, 8)
        size = x.shape[2:]
        skips, x = self.encode(x)

        x = self.context(x)
        maps: list[Tensor] = []
        for level, (up, decoder, head) in enumerate(zip(self.ups, self.decoders, self.heads)):
            residual = up(x)
            x = decoder(skips[0] if level == 0 else torch.cat([residual, skips[level]], dim=1), residual)
            if level < 3:
                x = self.dropout(x)
            maps.insert(0, upsample(head(x), size))

        maps = [log_probabilities(logits, image.shape[2:]) for logits in maps]
        fused = fuse_log_probabilities(maps)
        if self.training and self.deep_supervision:
            return torch.stack([fused] + maps[1:], dim=1)
        return fused


class UNet(nn.Module):
    """The paper's baseline (Sec. 4.2) as released: one convolution a level, additive skips, 2,326,638 parameters.

    In evaluation the result is ``(B, out_channels, H, W, D)`` log-probabilities of the finest map alone (the baseline
    does not fuse). In training with ``deep_supervision`` it is ``(B, 4, out_channels, H, W, D)``: that map, then those
    of 1/4, 1/8 and 1/16 resolution, each enlarged to the full size. Sizes that 16 does not divide are padded by
    repeating the last plane and cropped back.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: of the four encoder levels, after which the resolution is 1/2, 1/4, 1/8 and 1/16.
        dropout: probability, after each decoder level but the last (elementwise, training only; the release has none).
        deep_supervision: also return the coarse maps in training.

    Raises:
        ValueError: for other than four ``channels``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256),
        dropout: float = 0.0,
        deep_supervision: bool = True,
    ):
        super().__init__()
        if len(channels) != 4:
            raise ValueError(f"UNet has four levels, got channels {list(channels)}")
        self.deep_supervision = deep_supervision
        encoder_widths = [in_channels, *channels]
        decoder_widths = [*reversed(channels), out_channels]  # coarse to fine
        self.encoders = nn.ModuleList(
            nn.Conv3d(encoder_widths[level], encoder_widths[level + 1], 3, padding=1) for level in range(4)
        )
        self.decoders = nn.ModuleList(
            nn.Conv3d(decoder_widths[level], decoder_widths[level + 1], 3, padding=1) for level in range(4)
        )
        head_widths = [*decoder_widths[:3], out_channels]
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, 1) for width in head_widths)
        self.dropout = nn.Dropout(dropout)
        initialize_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        x = pad_to_multiple(image, 16)
        size = x.shape[2:]
        skips: list[Tensor] = []
        for encoder in self.encoders:
            x = F.relu(F.max_pool3d(encoder(x), 2))
            skips.insert(0, x)

        maps: list[Tensor] = []
        for level, (decoder, head) in enumerate(zip(self.decoders, self.heads)):
            if level < 3:
                maps.insert(0, upsample(head(x), size))
                x = F.relu(upsample(decoder(x), skips[level + 1].shape[2:]))
                x = self.dropout(x + skips[level + 1])
            else:
                maps.insert(0, head(F.relu(upsample(decoder(x), size))))

        maps = [log_probabilities(logits, image.shape[2:]) for logits in maps]
        if self.training and self.deep_supervision:
            return torch.stack(maps, dim=1)
        return maps[0]
