"""A network that knows the answer: what is brighter than a threshold. It shows what happens to voxels on their way."""

import torch
from torch import Tensor, nn


class ThresholdOracle(nn.Module):
    """Return log-probabilities ``(B, 2, H, W, D)`` that say foreground where the image is above ``threshold``.

    The further above, the surer it is, by ``sharpness``.
    """

    def __init__(self, threshold: float, sharpness: float = 100.0):
        super().__init__()
        self.threshold = threshold
        self.sharpness = sharpness

    def forward(self, image: Tensor) -> Tensor:
        logits = self.sharpness * (image - self.threshold)
        return torch.log_softmax(torch.cat([-logits, logits], dim=1), dim=1)
