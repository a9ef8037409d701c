"""What MONAI's transforms are told to look for."""

from torch import Tensor


def find_body(image: Tensor) -> Tensor:
    """Return where an image ``(1, H, W, D)`` scaled to [-1, 1] is above the HU window's lower end: the body, no air.

    Of an image that is nothing but air it is everywhere, so that a crop to it leaves something.
    """
    return (image > -1) | (image.max() <= -1)


def find_foreground(label: Tensor) -> Tensor:
    """Return where class indices ``(1, H, W, D)`` are not background; everywhere if all of them are."""
    return (label > 0) | (label.max() <= 0)
