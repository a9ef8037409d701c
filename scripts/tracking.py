"""What a training shows to those who follow it: pictures of its validation, and MLflow."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import matplotlib.image
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import MLFlowHandler
from monai.utils import ImageMetaKey
from torch.utils.tensorboard import SummaryWriter

from scripts.cases import name_images
from scripts.errors import InputError
from scripts.headers import output_name
from scripts.preview import draw_preview


class ValidationPictures:
    """Draws the first cases of each validation: three planes, the prediction outlined, its label in dashes.

    Each is a PNG in ``output_dir``, such as ``volume-4-epoch-0005.png``, and an image in TensorBoard. Where files of
    several folders share a name, so are the pictures in folders.

    Args:
        output_dir: where the pictures are written.
        tensorboard_dir: TensorBoard's.
        class_names: of all classes, background first.
        window_hu: what the image's -1 and 1 are.
        count: how many cases; 0 for none.
        images: of all cases, by which they are named, see `name_images`.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        tensorboard_dir: str | os.PathLike,
        class_names: Sequence[str],
        window_hu: tuple[float, float],
        count: int = 0,
        images: Sequence[str] = (),
    ):
        self.output_dir = Path(output_dir)
        self.tensorboard_dir = str(tensorboard_dir)
        self.writer: SummaryWriter | None = None  # made with the first picture
        self.class_names = tuple(class_names)
        self.window_hu = tuple(window_hu)
        self.count = int(count)
        self.names = dict(zip(images, name_images(images), strict=True))

    def attach(self, engine: Engine) -> None:
        """Draw during every run of the evaluator ``engine``; of several processes the first draws its own cases."""
        if self.count > 0 and idist.get_rank() == 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of this iteration, if they are among the first."""
        if engine.state.iteration <= self.count:
            for output in engine.state.output:
                self.draw(output, engine.state.epoch)

    def draw(self, output: Mapping[str, MetaTensor], epoch: int) -> None:
        """Draw a case: its image, label and pred ``(1, H, W, D)``."""
        image, label, pred = (output[key] for key in ("image", "label", "pred"))
        source = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
        place = Path(self.names.get(source, ""))
        name = (place.parent / output_name(source)).as_posix()
        path = self.output_dir / f"{name}-epoch-{epoch:04d}.png"
        title = f"{name}, epoch {epoch}; dashed: the label"
        masks = (_array(pred), image.affine, self.class_names, path, title, _array(label))
        draw_preview(self._in_hu(image), *masks)
        picture = (matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8)
        self.writer = self.writer or SummaryWriter(log_dir=self.tensorboard_dir)
        self.writer.add_image(f"validation/{name}", picture, epoch, dataformats="HWC")
        self.writer.flush()

    def _in_hu(self, image: MetaTensor) -> np.ndarray:
        low, high = self.window_hu
        return (_array(image) + 1) / 2 * (high - low) + low


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Return ``(1, H, W, D)`` as an array ``(H, W, D)``."""
    return torch.as_tensor(tensor)[0].detach().cpu().numpy()


class MLflowRun(MLFlowHandler):
    """MONAI's MLflow handler, which keeps the metrics of the training and of the validation apart by a prefix.

    Of several processes the first tracks.

    Args:
        prefix: of the metrics' names, such as ``validation_``.
        kwargs: of ``MLFlowHandler``.

    Raises:
        InputError: if MLflow is not installed.
    """

    def __init__(self, prefix: str, **kwargs: Any):
        if importlib.util.find_spec("mlflow") is None:
            raise InputError("mlflow: is not installed; pip install -r requirements-tracking.txt")
        super().__init__(**kwargs)
        self.prefix = prefix

    def attach(self, engine: Engine) -> None:
        """Track what ``engine`` measures."""
        if idist.get_rank() == 0:
            super().attach(engine)

    def _log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super()._log_metrics({f"{self.prefix}{name}": value for name, value in metrics.items()}, step)
