"""MONAI's federated client runs the bundle's own configs: it needs no file of weights; metrics and steps come back."""

import csv
import subprocess
import sys

import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

from federated import job
from scripts.errors import InputError
from scripts.metrics import OVERLAP_METRICS
from scripts.networks import MPUNet
from scripts.phantom import write_phantoms
from tests import ROOT
from tests.test_workflows import TINY


@pytest.fixture
def algo(tmp_path):
    write_phantoms(tmp_path / "phantoms", cases=3, seed=0, size=(64, 64, 48))
    settings = TINY | {
        "dataset_dir": str(tmp_path / "phantoms"), "output_dir": str(tmp_path / "run"),
        "ckpt_path": str(tmp_path / "run/model.pt"), "val_interval": 5,
    }  # fmt: skip
    evaluation = {"section": "validation", "save_predictions": False}
    algo = MonaiAlgo(str(ROOT), send_weight_diff=False, train_kwargs=settings, eval_kwargs=settings | evaluation)
    algo.initialize({ExtraItems.CLIENT_NAME: "north"})
    return algo


def test_monai_s_federated_client_measures_and_trains_the_weights_it_is_given(algo, tmp_path):
    torch.manual_seed(1)
    weights = MPUNet(channels=TINY["network_def::channels"]).state_dict()
    given = {name: value.clone() for name, value in weights.items()}
    metrics = algo.evaluate(ExchangeObject(weights=given)).metrics
    assert metrics.keys() >= OVERLAP_METRICS.keys()
    for rounds in (1, 2):
        algo.train(ExchangeObject(weights=given))
        trained = algo.get_weights()
        assert trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 1  # of three cases one is for training
        moved = [(trained.weights[name] - value).abs().max() for name, value in weights.items() if "heads" in name]
        # the first step of Adam moves a weight by the learning rate, in the second round it has another moment
        assert all(0 < step < 2 * TINY["learning_rate"] for step in moved)
        with open(tmp_path / "run/training.csv", encoding="utf-8", newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == list(map(str, range(1, rounds + 1)))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"pretrained": "models/model.pt"}, "^pretrained: every round would begin with these weights"),
        ({"ckpt_path": "model.pt"}, "^ckpt_path: every site has its own, in its folder of results; leave it out"),
        ({"output_dir": "out of all"}, "/out of all: has a space in its name, which NVFLARE cannot have; rename it"),
        ({"resume": True}, "^resume: every round would begin with each site's own weights"),
        ({"network_def::chanels": [4, 4]}, r"^--network_def::chanels: .* did you mean --network_def::channels\?"),
        ({"roi_size": 96}, "^--roi_size: expected three whole numbers of at least 1"),
    ],
)
def test_what_a_job_cannot_have_is_refused(tmp_path, monkeypatch, overrides, message):
    (tmp_path / "sites/north").mkdir(parents=True)
    monkeypatch.setattr(job, "FedAvgRecipe", object)  # as if it were installed
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        job.main(**{"dataset_dir": str(tmp_path / "sites"), "output_dir": "out"} | overrides)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["missing", "without-sites"])
def test_a_job_needs_a_folder_for_each_site(tmp_path, folder):
    (tmp_path / "without-sites").mkdir()
    result = subprocess.run(
        [sys.executable, "federated/job.py", "--dataset_dir", str(tmp_path / folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].endswith("with a folder of cases for each site")
    assert "Traceback" not in result.stderr
