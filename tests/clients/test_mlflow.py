"""MLflow has the curves of a training, apart from those of its validation, and what it was made of."""

import json

import pytest
from monai.bundle import run

from scripts.metrics import OVERLAP_METRICS
from scripts.phantom import write_phantoms
from tests import ROOT
from tests.test_workflows import TINY, configs, table

mlflow = pytest.importorskip("mlflow", reason="needs requirements-tracking.txt")
pytestmark = pytest.mark.client


def test_a_training_is_tracked(tmp_path):
    write_phantoms(tmp_path / "phantoms", cases=3, seed=0, size=(64, 64, 48))
    settings = TINY | {
        "dataset_dir": str(tmp_path / "phantoms"), "output_dir": str(tmp_path / "run"),
        "ckpt_path": str(tmp_path / "run/model.pt"), "max_epochs": 2, "val_interval": 1, "validation_pictures": 1,
    }  # fmt: skip
    tracking = str(ROOT / "configs/mlflow.json")
    run(config_file=configs("train"), bundle_root=str(ROOT), tracking=tracking, **settings)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name("mpunet_liver_ct")
    (tracked,) = client.search_runs(experiment.experiment_id)
    assert tracked.info.status == "FINISHED"
    for prefix, file in (("training", "training.csv"), ("validation", "validation.csv")):
        for name in OVERLAP_METRICS:
            history = client.get_metric_history(tracked.info.run_id, f"{prefix}_{name}")
            expected = [float(row[name]) for row in table(tmp_path / "run" / file)]
            assert [point.step for point in history] == [1, 2]
            assert [point.value for point in history] == pytest.approx(expected, rel=1e-4, nan_ok=True)
    steps = client.get_metric_history(tracked.info.run_id, "training_step_loss")
    assert [point.step for point in steps] == [1, 2]
    names = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    datalist = json.loads((tmp_path / "run/datalist.json").read_text(encoding="utf-8"))
    case = datalist["validation"][0]["image"].rpartition("/")[2].removesuffix(".nii.gz")
    pictures = {f"{case}-epoch-000{epoch}.png" for epoch in (1, 2)}
    assert names == {"datalist.json", "manifest.json", "run.json", *pictures}
