"""The paper's baseline: a plain U-Net."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.networks.fusion import log_probabilities
from scripts.networks.layers import at_least_float32, initialize_convolutions, pad_to_multiple, upsample


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
                maps.insert(0, upsample(at_least_float32(head(x)).contiguous(), size))
                x = F.relu(upsample(decoder(x), skips[level + 1].shape[2:]))
                x = self.dropout(x + skips[level + 1])
            else:
                maps.insert(0, at_least_float32(head(F.relu(upsample(decoder(x), size)))))

        maps = [log_probabilities(logits, image.shape[2:]) for logits in maps]
        if self.training and self.deep_supervision:
            return torch.stack(maps, dim=1)
        return maps[0]
