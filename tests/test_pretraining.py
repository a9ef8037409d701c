"""The recipe of the weights for real CTs, as short as it goes: `make pretrain` in small."""

import json

import nibabel as nib
import torch

from scripts.phantom import write_phantoms
from tests.test_workflows import run_bundle

SMALL = {
    "network_def::channels": [4, 4, 8, 8, 8],
    "spacing": [9.0, 9.0, 9.0],
    "roi_size": [32, 32, 16],
    "device": "cpu",
    "max_epochs": 2,
    "val_interval": 2,
    "ema_momentum": 0.5,
}


def test_weights_are_averaged_and_inference_needs_nothing_but_them(tmp_path):
    cases, path = tmp_path / "cases", tmp_path / "weights.pt"
    write_phantoms(cases, cases=6, seed=0, spacing=(9.0, 9.0, 9.0), variety="wide")
    settings = SMALL | {"dataset_dir": str(cases), "output_dir": str(tmp_path / "run"), "ckpt_path": str(path)}
    run_bundle("train", "pretrain", **settings)
    run_bundle("train", "pretrain", **settings | {"max_epochs": 4, "resume": "true"})

    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    last, averaged, kept = state["network"], state["averaged"], torch.load(path, weights_only=True)
    assert not torch.equal(averaged["heads.0.weight"], last["heads.0.weight"])
    if state["best"]["best_epoch"] == 4:
        assert torch.equal(kept["heads.0.weight"], averaged["heads.0.weight"])
    trained_with = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
    assert (trained_with["spacing"], trained_with["channels"]) == (SMALL["spacing"], SMALL["network_def::channels"])

    scan = cases / "volume-0.nii.gz"
    run_bundle("inference", dataset_dir=str(scan), output_dir=str(tmp_path / "out"), ckpt_path=str(path), device="cpu")
    mask, image = nib.load(tmp_path / "out/volume-0_seg.nii.gz"), nib.load(scan)
    assert mask.shape == image.shape
