"""What does the MONAI Label server serve? This bundle, which lies in the app's ``model`` folder (see ``start.py``).

Beside what MONAI Label's own app for bundles does, a request that cannot be fulfilled is answered by the reason.
"""

import os
import sys
from pathlib import Path
from typing import Any

BUNDLE = Path(__file__).parent / "model" / "mpunet_liver_ct"
sys.path.insert(0, str(BUNDLE))
os.environ["MONAI_LABEL_RELOAD_APP_LIB"] = "false"  # else modules are unloaded while another thread imports them

from fastapi import HTTPException  # noqa: E402
from monai.transforms import Activationsd  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException  # noqa: E402
from monailabel.tasks.activelearning.epistemic import Epistemic  # noqa: E402
from monailabel.tasks.activelearning.first import First  # noqa: E402
from monailabel.tasks.activelearning.random import Random  # noqa: E402
from monailabel.tasks.infer.bundle import BundleInferTask  # noqa: E402
from monailabel.tasks.scoring.epistemic_v2 import EpistemicScoring  # noqa: E402
from monailabel.tasks.train.bundle import BundleTrainTask  # noqa: E402

from scripts.errors import find_input_error  # noqa: E402
from scripts.settings import read_settings  # noqa: E402

DROPOUT = 0.2  # of the networks whose disagreement is the score
SAMPLES = 5  # of an image
OPTIONS = ("device", "pretrained", "max_epochs", "val_split", "model_filename")  # of a training


class ProbabilityTask(BundleInferTask):
    """What the network says with dropout: probabilities ``(C, H, W, D)`` on its own grid."""

    def post_transforms(self, data: Any = None) -> list:
        """Return a softmax in the place of what makes a mask."""
        return [Activationsd(keys=self.key_pred, softmax=True)]


class TrainTask(BundleTrainTask):
    """The training of ``configs/train.json`` on what was labelled so far."""

    def config(self) -> dict[str, Any]:
        """Return what a client may choose."""
        options = super().config()
        return {name: options[name] for name in OPTIONS} | {"multi_gpu": False}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Train; 3D Slicer gives an empty ``run_id``, by which MONAI would evaluate every line of the config."""
        return super().__call__({**request, "run_id": request.get("run_id") or "run"}, datastore)

    def _load_checkpoint(self, path: str, pretrained: bool, handlers: list) -> None:
        """Take note of the weights, in the place of adding a handler: the config has its own."""
        self.weights = {"pretrained": path if pretrained else None, "trained_with": read_settings(path)}

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Begin with the weights; validate at the end at the latest, on the training's images if need be."""
        overrides |= self.weights
        interval, epochs = self.bundle_config["val_interval"], overrides[self.const.key_train_trainer_max_epochs()]
        overrides["val_interval"] = min(interval, epochs)
        if not overrides.get(self.const.key_validate_dataset_data()):
            overrides[self.const.key_validate_dataset_data()] = overrides[self.const.key_train_dataset_data()]
        return overrides


class LiverApp(MONAILabelApp):
    """Segmentation, training and active learning with this bundle.

    Args:
        app_dir: the folder of this file.
        studies: folder of images, or URL of a DICOMweb server.
        conf: ``--conf`` of the command line.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]):
        super().__init__(app_dir, studies, conf, name="MPU-Net liver CT", description="Liver and its tumours in CT")

    def init_infers(self) -> dict[str, BundleInferTask]:
        """Return the one model."""
        return {BUNDLE.name: BundleInferTask(str(BUNDLE), self.conf, load_strict=True)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return its training."""
        return {BUNDLE.name: TrainTask(str(BUNDLE), self.conf)}

    def init_strategies(self) -> dict[str, Any]:
        """Return how the next image to label is chosen."""
        return {"random": Random(), "first": First(), "epistemic": Epistemic()}

    def init_scoring_methods(self) -> dict[str, EpistemicScoring]:
        """Return by what ``epistemic`` chooses: the entropy of what networks with dropout say on average."""
        task = ProbabilityTask(str(BUNDLE), self.conf, train_mode=True, skip_writer=True, dropout=DROPOUT)
        return {"epistemic": EpistemicScoring(task, simulation_size=SAMPLES)}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment an image as `MONAILabelApp.infer` does.

        Raises:
            HTTPException: 404 if there is no such image, 400 if there is no such model, 422 if it cannot be segmented.
        """
        image = request.get("image")
        if isinstance(image, str) and not os.path.exists(image) and not self._has(image, datastore):
            raise HTTPException(404, f"{image or 'the session'}: no such image; it may have been removed")
        try:
            return super().infer(request, datastore)
        except ImageNotFoundException as error:
            raise HTTPException(404, error.msg) from error
        except MONAILabelException as error:
            raise HTTPException(400, error.msg) from error
        except Exception as error:
            reason = find_input_error(error)
            if reason is None:
                raise
            raise HTTPException(422, str(reason)) from error

    def _has(self, image: str, datastore: Any) -> bool:
        try:
            return bool(image and (datastore or self.datastore()).get_image_uri(image))
        except IndexError:  # from the first of the series of that name on a DICOMweb server, if there is none
            return False
