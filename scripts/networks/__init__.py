"""The two networks of the paper: MPU-Net (Sec. 3, Fig. 2) and its U-Net baseline (Sec. 4.2).

Layer sizes are those of the authors' released implementation, which alone reproduces the parameter counts of the
paper's Table 6; its modules that no forward pass uses are left out (1,049,754 parameters of MPU-Net's 22,557,009).

Both networks take an image ``(B, in_channels, H, W, D)`` of any size and return log-probabilities of the same size
(see `fuse_log_probabilities`), so every loss and post-transform that takes logits takes them unchanged.

From leaf to root: `layers`, `attention` and `fusion`, put together in `mpunet`; `unet`.
"""

from scripts.networks.attention import AttentionGate, CrossAttention, PatchSequence, PositionAttention
from scripts.networks.fusion import PyramidPoolingFusion, WeightedFusion, fuse_log_probabilities
from scripts.networks.layers import MultiScaleBlock, pad_to_multiple
from scripts.networks.mpunet import MPUNet
from scripts.networks.unet import UNet

__all__ = [
    "AttentionGate",
    "CrossAttention",
    "MPUNet",
    "MultiScaleBlock",
    "PatchSequence",
    "PositionAttention",
    "PyramidPoolingFusion",
    "UNet",
    "WeightedFusion",
    "fuse_log_probabilities",
    "pad_to_multiple",
]
