"""The bundle's inference with a network that knows the answer, and what a user is told when a job fails."""

import pytest
import torch
from monai.bundle import run

from scripts.errors import find_input_error
from tests import ROOT


def infer_with_oracle(folder, dataset_dir, **overrides):
    """Run configs/inference.json with an oracle that finds what is brighter than 75 HU; return its ``folder/out``."""
    weights = folder / "weights/model.pt"
    weights.parent.mkdir(exist_ok=True)
    torch.save({}, weights)
    settings = {
        "network_def": {"_target_": "tests.oracle.ThresholdOracle", "threshold": 75 / 200},
        "bundle_root": str(ROOT),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(folder / "out"),
        "ckpt_path": str(weights),
        "device": "cpu",
        "roi_size": [32, 32, 32],
    }
    run(config_file=str(ROOT / "configs/inference.json"), **(settings | overrides))
    return folder / "out"


def input_error_of(function, *args, **kwargs):
    """Return what the `InputError` says by which a call fails, however MONAI has wrapped it."""
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    error = find_input_error(caught.value)
    assert error is not None, caught.value
    return str(error)
