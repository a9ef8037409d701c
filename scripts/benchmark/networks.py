"""What is compared: MPU-Net as released, MPU-Net as it is here, and its peers."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn

from scripts.benchmark.isolation import synchronize
from scripts.errors import InputError
from scripts.files import read_checkpoint
from scripts.networks import MPUNet, PositionAttention, UNet, fuse_log_probabilities, pad_to_multiple
from scripts.networks.fusion import log_probabilities
from scripts.networks.layers import MaxPool, PReLU, upsample


class PlainPositionAttention(PositionAttention):
    """The position attention by its plain formula (Eq. 8-9): with the N × N matrix of N = H·W·D positions."""

    def attend(self, x: Tensor, source: Tensor) -> Tensor:
        """Return ``x`` plus what its positions find in ``source``."""
        query, key = self.query(x).flatten(2).transpose(1, 2), self.key(source).flatten(2)
        weights = torch.softmax(query @ key, dim=-1)
        attended = self.value(source).flatten(2) @ weights.transpose(1, 2)
        return self.gamma * attended.reshape(x.shape) + x


class PlainMPUNet(MPUNet):
    """MPU-Net computed as the release does it: the reference. Same weights, same result.

    The plain attention, PyTorch's modules, and every tensor kept until the end; no options beyond the release's.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 2, channels: Sequence[int] = (16, 32, 64, 128, 256)):
        super().__init__(in_channels, out_channels, channels)
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, MaxPool):
                    setattr(parent, name, nn.MaxPool3d(3, stride=1, padding=1))
                elif isinstance(child, PReLU):
                    setattr(parent, name, nn.PReLU(child.num_parameters))
                elif isinstance(child, PositionAttention):
                    setattr(parent, name, PlainPositionAttention(channels[-1]))

    def forward(self, image: Tensor) -> Tensor:
        x = pad_to_multiple(image, 8)
        size = x.shape[2:]
        skips: list[Tensor] = []
        for level, (encoder, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            x = encoder(x) + (x.mean(dim=1, keepdim=True) if level == 0 else x)
            if level > 0:
                x = self.dropout(x)
            if level < 4:
                skips.insert(0, x)
            x = down(x)

        x = self.context(x)
        maps: list[Tensor] = []
        for level, (up, decoder, head) in enumerate(zip(self.ups, self.decoders, self.heads, strict=True)):
            residual, skip = up(x), skips[level]
            x = decoder.stage(skip if decoder.from_skip else torch.cat([residual, skip], dim=1)) + residual
            x = decoder.gate(x, residual)
            if level < 3:
                x = self.dropout(x)
            maps.insert(0, upsample(head(x), size))

        maps = [log_probabilities(logits, image.shape[2:]) for logits in maps]
        fused = fuse_log_probabilities(maps)
        if self.training and self.deep_supervision:
            return torch.stack([fused, *maps[1:]], dim=1)
        return fused


class Padded(nn.Module):
    """A network that takes only sizes that ``multiple`` divides, for images of any size; what is added is cut off."""

    def __init__(self, network: nn.Module, multiple: int):
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width, depth = image.shape[2:]
        return self.network(pad_to_multiple(image, self.multiple))[..., :height, :width, :depth]


def make_dynunet() -> nn.Module:
    """nnU-Net's network with 32 to 320 channels; the last level halves the plane alone, as 48 slices want."""
    strides = [1, 2, 2, 2, 2, [2, 2, 1]]
    return DynUNet(3, 1, 2, [3] * 6, strides, strides[1:], deep_supervision=True, deep_supr_num=3)


REFERENCE = "MPU-Net as released"
OURS = "MPU-Net"
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    REFERENCE: PlainMPUNet,
    OURS: MPUNet,
    "U-Net of the paper": UNet,
    "DynUNet (32-320)": make_dynunet,
    "SegResNet (32)": lambda: SegResNet(init_filters=32, in_channels=1, out_channels=2),
    "SwinUNETR (24)": lambda: Padded(SwinUNETR(in_channels=1, out_channels=2, feature_size=24), 32),
    "UNet of MONAI (16-256)": lambda: MonaiUNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2),
}
PEERS = [name for name in NETWORKS if name not in (REFERENCE, OURS)]
WANTS_MULTIPLES_OF_32 = ("DynUNet (32-320)", "SwinUNETR (24)")  # of window sizes: 128 suits them, 112 does not


def make_network(name: str, weights: str | Path | None = None, checkpointing: bool = False) -> nn.Module:
    """Return the network ``name`` of `NETWORKS` with a state dict, or with random weights, the same every time.

    Args:
        name: a key of `NETWORKS`.
        weights: a file of them.
        checkpointing: of activations, in training.

    Raises:
        InputError: if the file is not one of this network.
    """
    torch.manual_seed(0)
    network = MPUNet(checkpointing=True) if checkpointing else NETWORKS[name]()
    if weights is not None:
        try:
            network.load_state_dict(read_checkpoint(weights))
        except RuntimeError as error:
            raise InputError(
                f"{weights}: is not the state dict of a full-size MPU-Net; give one that is, or none"
            ) from error
    return network


class StandIn(nn.Module):
    """A network that is computed, in whose place a threshold answers: untrained, it finds the liver all the same.

    What a pipeline does after the network depends on what was found. ``image`` is ``(B, 1, H, W, D)``; the result is
    ``(B, 2, H, W, D)`` log-probabilities that say foreground where the image is above ``threshold``.

    Args:
        network: of whose result nothing is used.
        threshold: as `scripts.benchmark.scans` paints the liver.
        max_windows: after these the network is not computed any more (None: always), only the threshold.

    Attributes:
        seconds: of every window computed.
        voxels: of every window, computed or not.
    """

    def __init__(self, network: nn.Module, threshold: float, max_windows: int | None = None):
        super().__init__()
        self.network, self.threshold, self.max_windows = network, threshold, max_windows
        self.seconds: list[float] = []
        self.voxels: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        started = time.perf_counter()
        if self.max_windows is None or len(self.seconds) < self.max_windows:
            self.network(image)
            synchronize(image.device)
            self.seconds.append(time.perf_counter() - started)
        self.voxels.append(image.numel())
        difference = 20 * (image - self.threshold)
        return F.logsigmoid(torch.cat([-difference, difference], dim=1))

    def seconds_left_out(self) -> float:
        """Return the seconds of the windows that were not computed, by the voxels of those that were but the first."""
        computed = len(self.seconds)
        if computed == len(self.voxels):
            return 0.0
        first = 1 if computed > 1 else 0  # it is slower: what is done once is done then
        per_voxel = sum(self.seconds[first:]) / sum(self.voxels[first:computed])
        return per_voxel * sum(self.voxels[computed:])
