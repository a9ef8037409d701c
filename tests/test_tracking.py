"""Those who follow a training see its validation; without MLflow they are told what to install."""

import importlib.util

import matplotlib.image
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.errors import InputError
from scripts.preview import WINDOW_HU
from scripts.tracking import MLflowRun, ValidationPictures

RED = (1.0, 0.25, 0.25)


def make_output(name, labelled=True):
    """A case of water, in which a box is predicted beside the box that is labelled."""
    image, label, pred = (MetaTensor(torch.zeros(1, 40, 40, 40)) for _ in range(3))
    label[:, 5:15, 5:35, 10:30] = labelled
    pred[:, 25:35, 5:35, 10:30] = 1
    image.meta[ImageMetaKey.FILENAME_OR_OBJ] = f"/data/{name}.nii.gz"
    return {"image": image, "label": label, "pred": pred}


def validate(handler, epoch, cases):
    names = iter(cases)
    engine = Engine(lambda engine, batch: [make_output(next(names))])
    handler.attach(engine)
    engine.state.epoch = epoch - 1
    engine.run(range(len(cases)), max_epochs=epoch)


def test_pictures_of_the_first_cases_show_the_prediction_and_its_label(tmp_path):
    handler = ValidationPictures(tmp_path / "pictures", tmp_path / "board", ["background", "liver"], (-200, 200), 2)
    validate(handler, 1, ["volume-1", "volume-2", "volume-3"])
    files = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert files == ["volume-1-epoch-0001.png", "volume-2-epoch-0001.png"]
    handler.draw(make_output("volume-1", labelled=False), epoch=2)
    with_label, without = (
        matplotlib.image.imread(tmp_path / f"pictures/volume-1-epoch-000{epoch}.png")[100:-60, :700, :3]
        for epoch in (1, 2)
    )
    columns = np.arange(700)  # of the axial plane
    red = (np.abs(with_label - RED).max(axis=-1) < 0.1).sum(axis=0)
    dashes = (np.abs(with_label - without).max(axis=-1) > 0.2).sum(axis=0)
    # x goes to the patient's right, which is at the picture's left: there the prediction is
    assert np.average(columns, weights=red) < 350 < np.average(columns, weights=dashes)
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["validation/volume-1", "validation/volume-2"]
    assert [event.step for event in events.Images("validation/volume-1")] == [1, 2]


def test_pictures_of_files_of_one_name_lie_in_folders(tmp_path):
    names = ["a/ct", "b/ct"]
    images = [f"/data/{name}.nii.gz" for name in names]
    board, classes = tmp_path / "board", ["background", "liver"]
    validate(ValidationPictures(tmp_path / "pictures", board, classes, (-200, 200), 2, images), 1, names)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == ["pictures/a/ct-epoch-0001.png", "pictures/b/ct-epoch-0001.png"]


def test_the_image_is_drawn_in_hounsfield_units():
    handler = ValidationPictures("", "", ["background", "liver"], WINDOW_HU, 1)
    np.testing.assert_allclose(handler._in_hu(torch.tensor([[-1.0, 0.0, 1.0]])), [-160, 40, 240])


def test_no_pictures_are_drawn_unless_asked_for(tmp_path):
    validate(ValidationPictures(tmp_path / "pictures", tmp_path, ["background", "liver"], (-200, 200)), 1, ["a"])
    assert list(tmp_path.iterdir()) == []


def test_without_mlflow_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^mlflow: is not installed; pip install -r requirements-tracking\.txt$"):
        MLflowRun(prefix="training_", tracking_uri="sqlite:////nowhere.db")
