"""How the maps of several scales become one (Sec. 3.3.4, Eq. 18; Sec. 3.5): mean, learned weights, pyramid pooling."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.networks.layers import pad_to_multiple, upsample


def fuse_log_probabilities(log_probabilities: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability of several maps (Eq. 18): what is averaged is probability.

    The result is a valid logits tensor too: its softmax is exactly the mean of the maps' softmax.
    """
    return torch.logsumexp(torch.stack(log_probabilities), dim=0) - math.log(len(log_probabilities))


def log_probabilities(logits: Tensor, size: list[int]) -> Tensor:
    """Crop ``(B, classes, H, W, D)`` to the spatial ``size`` and normalise over the classes."""
    return F.log_softmax(logits[:, :, : size[0], : size[1], : size[2]], dim=1)


class MeanFusion(nn.Module):
    """`fuse_log_probabilities` as a module: what the paper measured."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        return fuse_log_probabilities(maps)


class WeightedFusion(nn.Module):
    """The weighted mean of the maps' probabilities (Sec. 3.5), with learned weights that are positive and sum to 1.

    Log-probabilities ``(B, classes, H, W, D)`` each in and out. It starts as the plain mean.
    """

    def __init__(self, num_maps: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_maps))  # through a softmax

    def forward(self, maps: list[Tensor]) -> Tensor:
        log_weights = F.log_softmax(self.weights, dim=0).view(-1, 1, 1, 1, 1, 1)
        return torch.logsumexp(torch.stack(maps) + log_weights, dim=0)


class PyramidPoolingFusion(nn.Module):
    """Pyramid pooling (Sec. 3.5; PSPNet, the paper's [107]) of the maps' probabilities, and one convolution to classes.

    Log-probabilities ``(B, classes, H, W, D)`` each in and out. All maps together are averaged over ``bins``³ equal
    regions (a size that ``bins`` does not divide is padded by its last plane), each such level is projected to
    ``classes`` channels, enlarged again and set beside the maps. Without PSPNet's batch norm and ReLU: what is pooled
    are probabilities.

    Args:
        num_maps: how many maps there are.
        out_channels: classes.
        bins: regions along each axis, one number per pyramid level.
    """

    def __init__(self, num_maps: int, out_channels: int, bins: Sequence[int]):
        super().__init__()
        in_channels = num_maps * out_channels
        self.bins = [int(number) for number in bins]
        self.projections = nn.ModuleList(nn.Conv3d(in_channels, out_channels, 1) for _ in self.bins)
        self.classify = nn.Conv3d(in_channels + len(self.bins) * out_channels, out_channels, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        probabilities = torch.cat(maps, dim=1).exp()
        height, width, depth = probabilities.shape[2:]
        levels = [probabilities]
        for index, projection in enumerate(self.projections):
            padded = pad_to_multiple(probabilities, self.bins[index])
            size = padded.shape[2:]
            pooled = F.avg_pool3d(padded, [length // self.bins[index] for length in size])
            levels.append(upsample(projection(pooled), size)[:, :, :height, :width, :depth])
        return F.log_softmax(self.classify(torch.cat(levels, dim=1)), dim=1)
