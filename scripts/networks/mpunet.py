"""MPU-Net: the paper's network, as released, with every module of its text as an option."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from scripts.knobs import is_true
from scripts.networks.attention import (
    ATTENTION_REDUCTION,
    AttentionGate,
    CrossAttention,
    PatchSequence,
    PositionAttention,
)
from scripts.networks.checkpointing import checkpoint_activations
from scripts.networks.fusion import MeanFusion, PyramidPoolingFusion, WeightedFusion, log_probabilities
from scripts.networks.layers import (
    Downsampling,
    MultiScaleBlock,
    PReLU,
    at_least_float32,
    convolution_stage,
    get_norm,
    initialize_convolutions,
    pad_to_multiple,
    upsample,
)
from scripts.networks.slabs import CHECKPOINTED_SLAB_VOXELS, in_slabs, is_local


class DecoderLevel(nn.Module):
    """One level of the decoder: three convolutions of residual and skip, plus the residual, gated by the residual.

    ``residual`` and the result are ``(B, channels, H, W, D)``; the skip is the first of ``skips``, ``(B, skip_channels,
    H, W, D)``, and is taken from that list, so that nothing holds it when the gate is computed.

    Args:
        channels: of ``residual``: what comes from the level below.
        skip_channels: of ``skip``: what comes from the encoder.
        norm: any norm of MONAI.
        from_skip: convolve the skip alone, as at the lowest level, instead of both.
        multi_scale: a `MultiScaleBlock` in the place of the convolutions.
        gated: whether there is a gate.
        cross_attention: by which ``residual`` first attends to ``skip``.
        stage_norm: norm after each of the convolutions, if any.
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        norm: str | tuple,
        from_skip: bool = False,
        multi_scale: bool = False,
        gated: bool = True,
        cross_attention: CrossAttention | None = None,
        stage_norm: str | tuple | None = None,
    ):
        super().__init__()
        in_channels = skip_channels if from_skip else channels + skip_channels
        if multi_scale:
            self.stage = nn.Sequential(MultiScaleBlock(in_channels, channels, stage_norm))
        else:
            self.stage = convolution_stage(in_channels, channels, depth=3, of_pair=True, norm=stage_norm)
        self.gate = AttentionGate(channels, norm) if gated else None
        self.from_skip = from_skip
        self.cross_attention = cross_attention

    def convolve(self, residual: Tensor, skip: Tensor) -> Tensor:
        """Return the stage's result plus ``residual``."""
        x = self.stage[0](skip) if self.from_skip else self.stage[0](residual, skip)
        for index, layer in enumerate(self.stage):
            if index > 0:
                x = layer(x)
        return x.add_(residual)

    def forward(self, residual: Tensor, skips: list[Tensor]) -> Tensor:
        if self.cross_attention is not None:
            residual = self.cross_attention(residual, skips[0])
        x = self.convolve(residual, skips.pop(0))
        return x if self.gate is None else self.gate(x, residual, not torch.is_grad_enabled())


class MPUNet(nn.Module):
    """MPU-Net (Fig. 2): a residual encoder, position attention at its end, a gated decoder, four fused output maps.

    The defaults are the released network of Table 6 without its dead modules, 21,507,255 parameters, with the ELU of
    the paper (α = 1; the release sets α to the number of channels by a slip, see ``elu_alpha``). What the paper's text
    has beyond the release are options, off by default.

    In evaluation the result is ``(B, out_channels, H, W, D)`` log-probabilities: the mean of the four maps' softmax
    (Eq. 18). In training with ``deep_supervision`` it is ``(B, 4, out_channels, H, W, D)``: the fused map, then the
    coarse ones of 1/2, 1/4 and 1/8 resolution, each enlarged to the full size. Sizes that 8 does not divide are padded
    by repeating the last plane and cropped back.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: of the five encoder levels, at 1, 1/2, 1/4, 1/8 and 1/8 of the resolution; 8 must divide the last.
        dropout: probability, after encoders 2-5 and after all gates but the last (elementwise, training only).
        norm: of down-sampling, context and gates: any norm of MONAI, as a name or (name, arguments).
        stage_norm: norm after each convolution of the encoder's and the decoder's stages too; None: none, as in the
            release. With it the loss falls faster, and bears higher learning rates.
        elu_alpha: α of the five down-sampling blocks' ELU, one for all or one each
            (the released network has 32, 64, 128, 256, 512).
        deep_supervision: also return the coarse maps in training.
        position_attention: the PAM at the encoder's end (Eq. 8-9).
        attention_gates: the gates of the decoder (Eq. 10-12).
        attention_heads: heads of every attention (Sec. 3.2.3, Eq. 6-7).
        attention_scaled: whether every attention divides its scores by √d (Eq. 7), or not (Eq. 8).
        attention_reduction: an attention's channels over those of its queries and keys; 1 is Eq. 6.
        attention_levels: encoder levels, 1 to 5, that end in a PAM too (Sec. 3.5, the paper's future work).
        cross_attention: after each up-sampling, the decoder attends to the skip (Sec. 3.3).
        max_keys: the most keys and values of ``attention_levels`` and ``cross_attention``; of more positions, they are
            averaged (`PositionAttention`). The PAM at the encoder's end always has all.
        patch_size: P of the patches in whose sequence the encoder's end attends (Eq. 1-4); None: no patches and no
            position embedding, as in the release. The encoder has halved the size three times before.
        embedding_size: grid on which the patches' position embedding is learned (Eq. 2).
        multi_scale: two-branch multi-scale blocks in the decoder (Eq. 14-17) instead of three convolutions.
        fusion_weights: fuse the maps with learned weights (Sec. 3.5) instead of by their mean.
        pyramid_pooling: fuse the maps by pyramid pooling with these bins (Sec. 3.5), such as (1, 2, 3, 6); empty: off.
        checkpointing: train in less memory and more time: see `checkpoint_activations`; the finest level in slabs, see
            `in_slabs`. Not for TorchScript.

    Raises:
        ValueError: for other than five ``channels`` or ``elu_alpha``, for channels that ``attention_heads *
            attention_reduction`` does not divide where there is attention, for ``attention_levels`` outside 1-5, for
            ``patch_size`` without ``position_attention``, for two ways of fusion, or for a switch (which may be text,
            as a command line gives it) that is neither true nor false.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: float = 0.2,
        norm: str | tuple = "batch",
        stage_norm: str | tuple | None = None,
        elu_alpha: float | Sequence[float] = 1.0,
        deep_supervision: bool = True,
        position_attention: bool = True,
        attention_gates: bool = True,
        attention_heads: int = 1,
        attention_scaled: bool = False,
        attention_reduction: int = ATTENTION_REDUCTION,
        attention_levels: Sequence[int] = (),
        cross_attention: bool = False,
        max_keys: int = 4096,
        patch_size: int | None = None,
        embedding_size: Sequence[int] = (8, 8, 6),
        multi_scale: bool = False,
        fusion_weights: bool = False,
        pyramid_pooling: Sequence[int] = (),
        checkpointing: bool = False,
    ):
        super().__init__()
        deep_supervision = is_true(deep_supervision, "deep_supervision")
        position_attention = is_true(position_attention, "position_attention")
        attention_gates = is_true(attention_gates, "attention_gates")
        attention_scaled = is_true(attention_scaled, "attention_scaled")
        cross_attention = is_true(cross_attention, "cross_attention")
        multi_scale = is_true(multi_scale, "multi_scale")
        fusion_weights = is_true(fusion_weights, "fusion_weights")
        checkpointing = is_true(checkpointing, "checkpointing")
        alphas = [float(elu_alpha)] * 5 if isinstance(elu_alpha, int | float) else [float(a) for a in elu_alpha]
        if len(channels) != 5 or len(alphas) != 5:
            raise ValueError(f"MPUNet has five levels, got channels {list(channels)} and elu_alpha {alphas}")
        if not set(attention_levels) <= set(range(1, 6)):
            raise ValueError(f"attention_levels are encoder levels 1 to 5, got {list(attention_levels)}")
        if patch_size is not None and not position_attention:
            raise ValueError("patch_size is of the sequence of the position attention, but position_attention is off")
        if fusion_weights and pyramid_pooling:
            raise ValueError("maps are fused by fusion_weights or by pyramid_pooling, got both")
        widths = [*channels, 2 * channels[-1]]  # the last down-sampling doubles once more
        self.deep_supervision = deep_supervision
        self.settings = {  # what configs ask for
            "channels": list(channels),
            "dropout": dropout,
            "norm": norm,
            "stage_norm": stage_norm,
            "elu_alpha": elu_alpha,
            "fusion_weights": fusion_weights,
        }
        attention = {"heads": attention_heads, "scaled": attention_scaled, "reduction": attention_reduction}

        self.encoders = nn.ModuleList(
            convolution_stage(in_channels if level == 0 else widths[level], widths[level], depth=2, norm=stage_norm)
            for level in range(5)
        )
        self.downs = nn.ModuleList(
            Downsampling(widths[level], widths[level + 1], 2 if level < 3 else 1, norm, alphas[level])
            for level in range(5)
        )
        self.level_attentions = nn.ModuleList(
            PositionAttention(widths[level], max_keys=max_keys, **attention)
            if level + 1 in attention_levels
            else nn.Identity()
            for level in range(5)
        )
        context_attention = PositionAttention(widths[4], **attention) if position_attention else nn.Identity()
        if patch_size is not None:
            context_attention = PatchSequence(widths[4], patch_size, embedding_size, context_attention)
        self.context = nn.Sequential(
            nn.Conv3d(widths[5], widths[4], 3, padding=1),
            get_norm(norm, widths[4]),
            nn.PReLU(),
            context_attention,
            nn.Conv3d(widths[4], widths[4], 3, padding=1),
            get_norm(norm, widths[4]),
            nn.PReLU(),
        )
        decoder_widths = [widths[level] for level in (4, 3, 2, 1)]  # coarse to fine
        skip_widths = [widths[level] for level in (3, 2, 1, 0)]
        self.decoders = nn.ModuleList(
            DecoderLevel(
                width,
                skip,
                norm,
                from_skip=level == 0,
                multi_scale=multi_scale,
                gated=attention_gates,
                cross_attention=CrossAttention(width, max_keys=max_keys, source_channels=skip, **attention)
                if cross_attention and level > 0
                else None,
                stage_norm=stage_norm,
            )
            for level, (width, skip) in enumerate(zip(decoder_widths, skip_widths, strict=True))
        )
        self.ups = nn.ModuleList(
            [nn.Identity()]  # the first decoder level has the context's resolution
            + [
                nn.Sequential(nn.ConvTranspose3d(coarse, fine, 2, stride=2), PReLU(fine))
                for coarse, fine in itertools.pairwise(decoder_widths)
            ]
        )
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, 1) for width in decoder_widths)
        self.fusion: nn.Module = MeanFusion()
        if fusion_weights:
            self.fusion = WeightedFusion(len(self.heads))
        elif pyramid_pooling:
            self.fusion = PyramidPoolingFusion(len(self.heads), out_channels, pyramid_pooling)
        self.dropout = nn.Dropout(dropout)
        initialize_convolutions(self)
        self.checkpointing = checkpointing
        if checkpointing:
            for module in (*self.encoders, *self.downs, *self.ups):
                checkpoint_activations(module)
            for decoder in self.decoders:
                checkpoint_activations(decoder, "convolve")
                if decoder.gate is not None:
                    checkpoint_activations(decoder.gate)
            if stage_norm is None:
                finest = self.decoders[-1]
                finest.convolve = partial(in_slabs, finest.convolve, slab_voxels=CHECKPOINTED_SLAB_VOXELS)

    def encode(self, x: Tensor, slabs: bool = False) -> tuple[list[Tensor], Tensor]:
        """Return the four skip tensors, coarse to fine, and the encoder's end (at 1/8, twice the last channels).

        Each level adds its own input; the first adds the image, one channel (the mean of several) to all of its own.
        """
        skips: list[Tensor] = []
        for level, (encoder, attention, down) in enumerate(zip(self.encoders, self.level_attentions, self.downs)):
            encoded = encoder(x)
            if level == 0:  # in all channels first: numbers of different strides are added slowly
                x = torch.empty_like(encoded).copy_(x.mean(dim=1, keepdim=True).to(encoded.dtype))
            x = encoded.add_(x.to(encoded.dtype))
            if level > 0:
                x = self.dropout(x)
            x = attention(x)
            if level < 4:
                skips.insert(0, x)
            x = self.downsample_in_slabs(x) if level == 0 and slabs else down(x)
        return skips, x

    @torch.jit.unused
    def suits_slabs(self, image: Tensor) -> bool:
        """Return whether the finest level is computed `in_slabs`: in evaluation on a CPU, where it pays."""
        if self.training or torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        finest = (self.level_attentions[0], self.downs[0], self.ups[-1], self.decoders[-1], self.heads[-1])
        return image.device.type == "cpu" and all(map(is_local, finest))

    @torch.jit.unused
    def downsample_in_slabs(self, x: Tensor) -> Tensor:
        return in_slabs(self.downs[0], x)

    @torch.jit.unused
    def decode_in_slabs(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        up, decoder, head = self.ups[-1], self.decoders[-1], self.heads[-1]
        return in_slabs(lambda x, skip: at_least_float32(head(decoder(up(x), [skip]))).contiguous(), x, skips.pop())

    def forward(self, image: Tensor) -> Tensor:
        x = pad_to_multiple(image, 8)
        size = x.shape[2:]
        slabs = False
        if not torch.jit.is_scripting():
            slabs = self.suits_slabs(x)
        skips, x = self.encode(x, slabs)

        x = self.context(x)
        logits: list[Tensor] = []
        for up, decoder, head in zip(self.ups, self.decoders, self.heads):
            if slabs and len(skips) == 1:
                logits.insert(0, self.decode_in_slabs(x, skips))
            else:
                x = up(x)
                x = decoder(x, skips)
                if len(skips) > 0:
                    x = self.dropout(x)
                # contiguous: few channels are enlarged faster so
                logits.insert(0, at_least_float32(head(x)).contiguous())
        del x  # the largest tensor there is

        maps = [log_probabilities(upsample(coarse, size), image.shape[2:]) for coarse in logits]
        fused = self.fusion(maps)
        if self.training and self.deep_supervision:
            return torch.stack([fused] + maps[1:], dim=1)
        return fused
