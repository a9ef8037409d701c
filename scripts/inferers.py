"""How a network is run on an image or its windows."""

from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from scripts.devices import half_precision


class DeviceInferer(Inferer):
    """Another inferer whose network runs as suits the image's device; what it returns is float32.

    With ``amp`` it computes in `half_precision`, where the device has that. On the CPU weights and image are laid out
    channels last (``torch.channels_last_3d``), for which PyTorch has the faster convolutions; values stay the same.

    Args:
        inferer: MONAI's, such as ``SimpleInferer`` or ``SlidingWindowInferer``.
        amp: automatic mixed precision.
    """

    def __init__(self, inferer: Inferer, amp: bool = True):
        super().__init__()
        self.inferer = inferer
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return what the inferer makes of ``inputs`` ``(B, C, H, W, D)`` with the network."""
        on_cpu = inputs.device.type == "cpu"
        if on_cpu and isinstance(network, nn.Module):
            network.to(memory_format=torch.channels_last_3d)

        def predict(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            image = image.as_tensor() if isinstance(image, MetaTensor) else image
            if on_cpu:
                image = image.contiguous(memory_format=torch.channels_last_3d)
            return network(image, *args, **kwargs).float()

        dtype = half_precision(inputs.device) if self.amp else None
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None):
            return self.inferer(inputs, predict, *args, **kwargs)
