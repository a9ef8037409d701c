"""Two sites train in NVFLARE's simulator: each on its own cases, and the weights of all are the mean of theirs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from scripts.networks import MPUNet
from scripts.phantom import write_phantoms
from scripts.settings import read_settings
from tests import ROOT
from tests.test_workflows import TINY

pytest.importorskip("nvflare", reason="needs requirements-nvflare.txt")
pytestmark = pytest.mark.client


def test_two_sites_train_one_round(tmp_path):
    for seed, site in enumerate(("north", "south")):
        write_phantoms(tmp_path / "sites" / site, cases=3, seed=seed, size=(64, 64, 48))
    command = [sys.executable, "federated/job.py", "--dataset_dir", str(tmp_path / "sites"), "--rounds", "1"]
    command += ["--output_dir", str(tmp_path / "out")]
    for key, value in TINY.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    network = MPUNet(channels=TINY["network_def::channels"])
    network.load_state_dict(torch.load(tmp_path / "out/model.pt", weights_only=True))
    settings = read_settings(tmp_path / "out/model.pt")
    for key in ("spacing", "roi_size", "network_def::channels"):
        assert settings[key.removeprefix("network_def::")] == TINY[key], key
    cases = set()
    for site in ("north", "south"):
        folder = tmp_path / "out/sites" / site
        datalist = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
        assert datalist["dataset_dir"] == str(tmp_path / "sites" / site)
        cases |= {item["image"] for item in datalist["training"]}
        assert (folder / "training.csv").read_text(encoding="utf-8").count("\n") == 2  # one epoch
        assert (folder / "evaluation_validation/per_case.csv").is_file()
        assert read_settings(folder / "model.pt") == settings
    assert len(cases) == 2
    weights = [torch.load(tmp_path / "out/sites" / site / "last.pt", weights_only=True) for site in ("north", "south")]
    for name, value in network.state_dict().items():
        mean = sum(state["network"][name].double() for state in weights) / 2  # each did one step
        torch.testing.assert_close(value.double(), mean, rtol=1e-4, atol=1e-6, msg=name)
