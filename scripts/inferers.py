"""How a network is run on an image or its windows."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import generate_spatial_bounding_box
from monai.utils import convert_to_tensor, ensure_tuple_rep, fall_back_tuple
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from scripts.devices import half_precision, is_out_of_memory
from scripts.transforms import find_segmented

logger = logging.getLogger(__name__)

COARSE_ZOOM = 0.5
COARSE_PROBABILITY = 0.1  # of all but background, above which something may be there
WINDOW_STEP = 16  # of the sizes of windows that fit an image
SHRINKAGE = 1 / 8  # of windows of which there are several
NOTHING = 1e-6  # probability of the other classes in windows that are left out


class CoarseToFineInferer(SlidingWindowInferer):
    """MONAI's sliding window, which with ``coarse_pass`` leaves out windows that are far from what is to be found.

    The network first sees the image at half the resolution. Windows that touch the box of all that may be there by
    that, and ``margin`` voxels around it, are run as they always are: inside the box the result is the same to the
    bit. The others are run too if either pass finds nothing, and if the fine one finds something at the box's faces or
    outside it, where it may go on.

    Args:
        coarse_pass: whether windows are left out.
        margin: voxels.
        fit_windows: of the coarse pass, see `fit_windows`.
        kwargs: of `SlidingWindowInferer`.
    """

    def __init__(
        self, *args: Any, coarse_pass: bool = False, margin: int = 16, fit_windows: bool = True, **kwargs: Any
    ):
        super().__init__(*args, with_coord=True, **kwargs)
        self.coarse_pass = coarse_pass
        self.margin = margin
        self.fit_windows = fit_windows

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's log-probabilities ``(B, C, H, W, D)`` of ``inputs`` ``(B, C, H, W, D)``."""

        def run_all(windows: Tensor, places: list, *args: Any, **kwargs: Any) -> Tensor:
            return network(windows, *args, **kwargs)

        size = inputs.shape[2:]
        if not self.coarse_pass or min(size) < 1 / COARSE_ZOOM:
            return super().__call__(inputs, run_all, *args, **kwargs)
        small = functional.interpolate(convert_to_tensor(inputs), scale_factor=COARSE_ZOOM, mode="trilinear")
        fitted = fit_windows(self, small.shape[2:]) if self.fit_windows else self
        coarse = super(CoarseToFineInferer, fitted).__call__(small, run_all, *args, **kwargs)
        background = coarse.softmax(dim=1)[:, 0]
        first, end = generate_spatial_bounding_box(background, lambda p: p < 1 - COARSE_PROBABILITY)
        if not any(end):
            return super().__call__(inputs, run_all, *args, **kwargs)
        first = [max(int(i / COARSE_ZOOM) - self.margin, 0) for i in first]
        end = [min(math.ceil(i / COARSE_ZOOM) + self.margin, n) for i, n in zip(end, size, strict=True)]
        padding = [max(roi - n, 0) // 2 for roi, n in zip(fall_back_tuple(self.roi_size, size), size, strict=True)]

        def is_near(place: list) -> bool:
            """Whether a window, whose place is that in the padded image, touches the box."""
            axes = zip(place[2:], padding, first, end, strict=True)
            return all(where.start - pad < b and where.stop - pad > a for where, pad, a, b in axes)

        def nothing(windows: Tensor) -> Tensor:
            result = windows.new_full((len(windows), coarse.shape[1], *windows.shape[2:]), math.log(NOTHING))
            result[:, 0] = 0
            return result

        def run_near(windows: Tensor, places: list, *args: Any, **kwargs: Any) -> Tensor:
            return network(windows, *args, **kwargs) if any(map(is_near, places)) else nothing(windows)

        def run_others(windows: Tensor, places: list, *args: Any, **kwargs: Any) -> Tensor:
            """What they lack in the sum of all windows."""
            if any(map(is_near, places)):
                return torch.zeros_like(nothing(windows))
            return network(windows, *args, **kwargs) - nothing(windows)

        result = super().__call__(inputs, run_near, *args, **kwargs)
        segmented = find_segmented(convert_to_tensor(result).movedim(1, 0))
        inside = [slice(a + (a > 0), b - (b < n)) for a, b, n in zip(first, end, size, strict=True)]
        found_nothing = not segmented.any()
        segmented[(..., *inside)] = False
        if found_nothing or segmented.any():
            result += super().__call__(inputs, run_others, *args, **kwargs)
        return result


def convolves_pairs_of_slices(network: nn.Module, image: Tensor) -> bool:
    """Return whether a 3D convolution of ``network`` takes or makes two slices along the first axis of ``image``.

    There the weights' gradient that oneDNN computes in bfloat16 is wrong, often NaN (PyTorch 2.13 on x86-64).
    """
    found = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(2 in (inputs[0].shape[2], output.shape[2]))

    kinds = nn.Conv3d | nn.ConvTranspose3d
    hooks = [module.register_forward_hook(look) for module in network.modules() if isinstance(module, kinds)]
    if not hooks:
        return False
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return any(found)


def train_dropout_alone(network: nn.Module) -> None:
    """Put a network into evaluation but for its dropout, which goes on: Monte Carlo dropout (Gal, Ghahramani 2016)."""
    network.eval()
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.train()


def fit_windows(inferer: SlidingWindowInferer, size: Sequence[int]) -> SlidingWindowInferer:
    """Return the inferer, with windows no larger than an image of ``size`` needs, in steps of `WINDOW_STEP` voxels.

    What is missing of a window larger than the image is air, and there may be more of it than a network has seen: a
    norm over the window, or a network that knows crops by their edges, would then see another image. Where there are
    several along an axis, they are up to `SHRINKAGE` smaller if that takes no more of them: the last one overlaps less.
    """
    fitted = copy.copy(inferer)
    axes = zip(fall_back_tuple(inferer.roi_size, size), size, ensure_tuple_rep(inferer.overlap, len(size)), strict=True)
    fitted.roi_size = [_fit_window(*axis) for axis in axes]
    return fitted


def is_padded(inferer: SlidingWindowInferer, size: Sequence[int]) -> bool:
    """Return whether an image of ``size`` is smaller than the inferer's windows, and by more than a step of theirs."""
    windows = fall_back_tuple(inferer.roi_size, size)
    return any(window - length >= WINDOW_STEP for window, length in zip(windows, size, strict=True))


def _fit_window(roi: int, size: int, overlap: float) -> int:
    """Return the size along an axis of windows that fit an image of ``size``; see `fit_windows`."""

    def step(window: int) -> int:
        return max(int(window * (1 - overlap)), 1)

    others = max(-(-(size - roi) // step(roi)), 0)
    smallest = (1 - SHRINKAGE) * roi if others else 0
    sizes = range(WINDOW_STEP, roi, WINDOW_STEP)
    return next((window for window in sizes if window >= smallest and window + others * step(window) >= size), roi)


@contextmanager
def _lent(network: Callable[..., Tensor], device: torch.device | None) -> Iterator[None]:
    """Have a network on another ``device``, if one is given, until the block ends: it may be in training."""
    if device is None or not isinstance(network, nn.Module):
        yield
        return
    home = next((parameter.device for parameter in network.parameters()), device)
    network.to(device)
    try:
        yield
    finally:
        network.to(home)


class DeviceInferer(Inferer):
    """Another inferer whose network runs as suits the image's device; what it returns is float32.

    With ``amp`` it computes in `half_precision`, where the device has that. On the CPU, and in half precision, weights
    and image are laid out channels last (``torch.channels_last_3d``), for which there are the faster convolutions.
    A network is trained in float32 on a CPU if it `convolves_pairs_of_slices` of images of that size.

    A network in evaluation sees one of the windows that hold nothing but air (or any one number): its answer is theirs.
    One in training that a sliding window runs without gradients is there for its dropout: `train_dropout_alone`.

    Where memory does not suffice for a sliding window without gradients, it tries again with fewer windows at once,
    then keeps the result on the CPU, then runs the network there, and says so; images to come are run likewise.

    Args:
        inferer: MONAI's, such as ``SimpleInferer`` or ``SlidingWindowInferer``.
        amp: automatic mixed precision.
        fit_windows: of a sliding window, see `fit_windows`; not for a network that takes one size alone.
    """

    def __init__(self, inferer: Inferer, amp: bool = True, fit_windows: bool = True):
        super().__init__()
        self.inferer = inferer
        self.amp = amp
        self.fit_windows = fit_windows
        self.device: torch.device | None = None  # other than the image's
        self.in_full_precision: dict[tuple, bool] = {}  # by network and shape: whether it is trained so

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return what the inferer makes of ``inputs`` ``(B, C, H, W, D)`` with the network."""
        while True:
            try:
                with _lent(network, self.device):
                    return self._infer(inputs.to(self.device or inputs.device), network, *args, **kwargs)
            except RuntimeError as error:
                if not is_out_of_memory(error) or torch.is_grad_enabled():
                    raise
                remedy = self._save_memory(inputs.device)
                if not remedy:
                    raise
            logger.warning("not enough memory for an image of %s voxels: %s", tuple(inputs.shape[2:]), remedy)
            torch.cuda.empty_cache()

    def _save_memory(self, device: torch.device) -> str:
        """Settle for less memory, and return how; empty if there is nothing left to do without."""
        if not isinstance(self.inferer, SlidingWindowInferer):
            return ""
        if self.inferer.sw_batch_size > 1:
            self.inferer.sw_batch_size //= 2
            return f"going on with {self.inferer.sw_batch_size} windows at a time"
        if device.type != "cpu" and self.inferer.device is None:
            self.inferer.device = torch.device("cpu")
            return "going on with the result in the memory of the CPU"
        if device.type != "cpu" and self.device is None:
            self.device = torch.device("cpu")
            return "going on with the network on the CPU"
        return ""

    def _needs_full_precision(self, network: Callable[..., Tensor], image: Tensor) -> bool:
        """Return whether gradients on the CPU need float32, and say so once."""
        key = (id(network), image.shape)
        if key not in self.in_full_precision:
            needed = isinstance(network, nn.Module) and convolves_pairs_of_slices(network, image)
            if needed:
                logger.warning(
                    "training in float32: bfloat16 is not safe on crops of %s voxels", tuple(image.shape[2:])
                )
            self.in_full_precision[key] = needed
        return self.in_full_precision[key]

    def _infer(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        on_cpu = inputs.device.type == "cpu"
        dtype = half_precision(inputs.device) if self.amp else None
        channels_last = on_cpu or dtype is not None
        if isinstance(network, nn.Module):
            if channels_last:
                network.to(memory_format=torch.channels_last_3d)
            if network.training and isinstance(self.inferer, SlidingWindowInferer) and not torch.is_grad_enabled():
                train_dropout_alone(network)
        is_same_again = isinstance(network, nn.Module) and not network.training
        answers: dict[tuple, Tensor] = {}  # by number and shape, to windows of one number

        def predict(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            image = image.as_tensor() if isinstance(image, MetaTensor) else image
            number = image.flatten()[0]
            if not is_same_again or (image != number).any():
                return run(image, *args, **kwargs)
            key = (number.item(), image.shape)
            if key not in answers:
                answers[key] = run(image, *args, **kwargs)
            return answers[key].clone()  # what uses it may write on it

        def run(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last_3d)
            full = dtype is None or (on_cpu and torch.is_grad_enabled() and self._needs_full_precision(network, image))
            with torch.autocast(image.device.type, dtype=dtype, enabled=not full):
                return network(image, *args, **kwargs).float()

        inferer = self.inferer
        if isinstance(inferer, SlidingWindowInferer):
            fitted = fit_windows(inferer, inputs.shape[2:])
            if self.fit_windows:
                inferer = fitted
            elif is_padded(inferer, inputs.shape[2:]):
                logger.warning(
                    "an image of %s voxels is padded to the one window that this network takes, %s: its mask is not "
                    "that of the network it was exported from, whose windows fit; export it for such images with %s",
                    tuple(inputs.shape[2:]), tuple(inferer.roi_size), tuple(fitted.roi_size),
                )  # fmt: skip
        return inferer(inputs, predict, *args, **kwargs)
