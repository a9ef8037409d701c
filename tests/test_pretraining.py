"""The recipe of the weights for real CTs, as short as it goes: `make pretrain` in small."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.data import SECTIONS, make_datalist
from scripts.errors import InputError
from scripts.phantom.drawing import RandPhantomd
from scripts.phantom.pool import FIRST_SEEDS, RARE_LIVER_KINDS, write_pool
from scripts.phantom.scan import make_wide_phantom
from scripts.phantom.write import find_case_seed, write_phantoms
from tests import ROOT
from tests.test_workflows import run_bundle

RECIPE = ("train", "pretrain", "pretrain_tumor")
SMALL = {
    "network_def::channels": [4, 4, 8, 8, 8],
    "spacing": [9.0, 9.0, 9.0],
    "roi_size": [32, 32, 16],
    "device": "cpu",
    "max_epochs": 2,
    "val_interval": 2,
    "ema_momentum": 0.5,
}


def test_a_pool_has_other_patients_in_each_section_and_is_a_dataset(tmp_path):
    written = write_pool(tmp_path / "pool", training=2, validation=1, test=1, seed=5, spacing_mm=9.0)
    datalist = make_datalist(written.parent, tmp_path / "datalist.json", min_slices=1)
    assert [len(datalist[section]) for section in SECTIONS] == [2, 1, 1]
    images = [nib.load(case["image"]).get_fdata() for section in SECTIONS for case in datalist[section]]
    assert len({image.tobytes() for image in images}) == 4
    write_phantoms(tmp_path / "alone", 1, FIRST_SEEDS["test"] + 5, spacing=(9.0, 9.0, 9.0), variety="wide")
    assert (images[3] == nib.load(tmp_path / "alone/volume-0.nii.gz").get_fdata()).all()


def test_rare_livers_of_a_pool_follow_the_other_patients(tmp_path):
    options = {"validation": 1, "test": 1, "seed": 3, "spacing_mm": 9.0}
    folder = write_pool(tmp_path / "pool", training=2, rare=2, **options).parent
    few = write_pool(tmp_path / "few", training=2, **options)
    training = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["training"]
    assert training[:2] == json.loads(few.read_text(encoding="utf-8"))["training"]
    numbers = [int(Path(case["image"]).name.split("-")[1].split(".")[0]) for case in training]
    assert numbers == sorted(set(numbers))
    seeds = [find_case_seed(FIRST_SEEDS["training"] + 3, number) for number in range(2, numbers[-1] + 1)]
    kinds = [make_wide_phantom(seed, (9.0, 9.0, 9.0)).description["liver_kind"] for seed in seeds]
    assert [number for number, kind in enumerate(kinds, 2) if kind in RARE_LIVER_KINDS] == numbers[2:]


def test_a_pool_without_test_cases_is_refused_before_it_writes_any(tmp_path):
    with pytest.raises(InputError, match=r"^test: .* at least 1, received 0$"):
        write_pool(tmp_path / "pool", training=1, validation=1, test=0)
    assert not (tmp_path / "pool").exists()


def test_rare_livers_are_of_the_wide_variety_alone(tmp_path):
    with pytest.raises(InputError, match=r"^rare: .* received 1 and 'usual'$"):
        write_pool(tmp_path / "pool", training=1, validation=1, test=1, rare=1, variety="usual")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("options", [{"variety": "wide", "liver_kinds": ["huge"]}, {"liver_kinds": ["small"]}])
def test_livers_that_no_phantom_has_are_refused(tmp_path, options):
    with pytest.raises(InputError, match=r"^liver_kinds: wide phantoms have usual, "):
        write_phantoms(tmp_path, 1, **options)


def test_weights_are_averaged_and_inference_needs_nothing_but_them(tmp_path):
    cases, path = tmp_path / "cases", tmp_path / "weights.pt"
    write_pool(cases, training=4, validation=1, test=1, spacing_mm=9.0)
    settings = SMALL | {"dataset_dir": str(cases), "output_dir": str(tmp_path / "run"), "ckpt_path": str(path)}
    run_bundle("train", "pretrain", **settings)
    kept, after_two = (torch.load(file, weights_only=True) for file in (path, tmp_path / "run/last.pt"))
    assert after_two["best"]["best_epoch"] == 2
    assert torch.equal(kept["heads.0.weight"], after_two["averaged"]["heads.0.weight"])
    run_bundle("train", "pretrain", **settings | {"max_epochs": 4, "resume": "true"})

    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    rates = np.genfromtxt(tmp_path / "run/training.csv", delimiter=",", names=True)["learning_rate"]
    scheduled = 0.001 * (1 - np.array([0 / 2, 1 / 2, 2 / 2, 3 / 4])) ** 0.9  # the third was, before it was resumed
    np.testing.assert_allclose(rates, scheduled, rtol=1e-5)
    assert not torch.equal(state["averaged"]["heads.0.weight"], state["network"]["heads.0.weight"])
    trained_with = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
    assert (trained_with["spacing"], trained_with["channels"]) == (SMALL["spacing"], SMALL["network_def::channels"])

    scan = cases / "test/volume-0.nii.gz"
    run_bundle("inference", dataset_dir=str(scan), output_dir=str(tmp_path / "out"), ckpt_path=str(path), device="cpu")
    mask, image = nib.load(tmp_path / "out/volume-0_seg.nii.gz"), nib.load(scan)
    assert mask.shape == image.shape


def test_the_last_passes_begin_with_weights_and_vary_every_crop_less(tmp_path):
    cases, folder = tmp_path / "cases", tmp_path / "refined"
    write_pool(cases, training=2, validation=1, test=1, spacing_mm=9.0)
    begin = tmp_path / "model.pt"
    settings = SMALL | {"dataset_dir": str(cases), "max_epochs": 1, "val_interval": 1}
    run_bundle("train", "pretrain", **settings | {"output_dir": str(begin.parent), "ckpt_path": str(begin)})
    settings |= {"output_dir": str(folder), "pretrained": str(begin)}
    run_bundle("train", "pretrain", "pretrain_refine", **settings)
    kept, begun = (torch.load(path, weights_only=True) for path in (folder / "model.pt", begin))
    assert 0 < (kept["heads.0.weight"] - begun["heads.0.weight"]).abs().max() < 0.01

    def read_strengths(*names):
        paths = [str(ROOT / f"configs/{name}.json") for name in ("train", *names)]
        config = ConfigParser(ConfigParser.load_config_files(paths))
        affine, smooth, resolution, histogram, scale, shift, noise = (
            config.get_parsed_content(f"train::random_transforms::{index}") for index in range(3, 10)
        )
        probabilities = [each.prob for each in (affine, smooth, resolution, histogram, noise)]
        return np.array([*probabilities, scale.scaler.factors[1], shift.shifter.offsets[1]])

    np.testing.assert_array_equal(read_strengths("pretrain"), [0.5, 0.25, 0.15, 0.2, 0.3, 0.15, 0.1])
    assert (read_strengths("pretrain", "pretrain_refine") < read_strengths("pretrain")).all()


def test_weights_for_tumours_begin_with_the_liver_s_and_crop_around_tumours(tmp_path):
    cases, folder = tmp_path / "cases", tmp_path / "tumor"
    write_pool(cases, training=3, validation=1, test=1, spacing_mm=9.0)
    settings = SMALL | {"dataset_dir": str(cases), "output_dir": str(tmp_path / "run"), "max_epochs": 1}
    run_bundle("train", "pretrain", **settings | {"val_interval": 1})
    begin = tmp_path / "run/model.pt"
    settings |= {"output_dir": str(folder), "pretrained": str(begin), "val_interval": 1}
    run_bundle("train", "pretrain", "pretrain_tumor", **settings)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["weights"]["sha256"] == begin.with_name("model.pt.sha256").read_text(encoding="utf-8").split()[0]
    assert json.loads((folder / "model.json").read_text(encoding="utf-8"))["target"] == "liver_and_tumor"
    assert torch.load(folder / "model.pt", weights_only=True)["heads.0.bias"].shape == (3,)

    label = torch.zeros(1, 64, 64, 32)
    label[:, 20:40, 20:40, 10:20] = 1
    label[:, 30, 30, 15] = 2
    config = ConfigParser(ConfigParser.load_config_files([str(ROOT / f"configs/{name}.json") for name in RECIPE]))
    config.update(SMALL | {"bundle_root": str(ROOT), "pretrained": str(begin), "dataset_dir": str(cases)})
    crop = config.get_parsed_content("crop").set_random_state(0)
    centres = [int(crop({"image": label, "label": label})[0]["label"][0, 16, 16, 8]) for _ in range(40)]
    assert 10 <= centres.count(2) <= 30
    assert centres.count(1) >= 2
    assert centres.count(0) >= 2


def test_each_drawn_patient_is_another_and_the_same_again_from_the_same_seed():
    draw = RandPhantomd(["image", "label"], (9.0, 9.0, 9.0))
    first, second, third = (
        draw.set_random_state(seed)({"case": 1}) if seed is not None else draw({"case": 1}) for seed in (3, None, 3)
    )
    assert first["case"] == 1
    assert torch.equal(first["image"], third["image"])
    assert first["image"].shape != second["image"].shape or not torch.equal(first["image"], second["image"])
    seed = int(np.random.RandomState(3).randint(2**63 - 1, dtype=np.int64))
    phantom = make_wide_phantom(seed, (9.0, 9.0, 9.0), reorient=False)
    assert np.array_equal(first["image"][0].numpy(), phantom.image)
    assert np.array_equal(first["label"][0].numpy(), phantom.label)
    assert np.array_equal(first["image"].affine.numpy(), phantom.affine)


def test_a_training_that_draws_its_patients_reads_no_training_case(tmp_path):
    cases, path = tmp_path / "cases", tmp_path / "weights.pt"
    write_pool(cases, training=1, validation=1, test=1, spacing_mm=9.0)
    knobs = {"network_def::channels": [4, 4, 8, 8, 8], "patients_per_epoch": 2, "crops_per_scan": 3, "num_workers": 1}
    settings = SMALL | knobs | {"dataset_dir": str(cases), "output_dir": str(tmp_path / "run"), "ckpt_path": str(path)}
    configs = [str(ROOT / f"configs/{name}.json") for name in ("train", "pretrain", "pretrain_gpu")]
    run_bundle("train", "pretrain", "pretrain_gpu", **settings)
    assert path.is_file()
    table = np.genfromtxt(tmp_path / "run/training.csv", delimiter=",", names=True)
    assert table.dtype.names == ("epoch", "seconds", "learning_rate", "loss")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["training"] == [{}, {}]

    config = ConfigParser(ConfigParser.load_config_files(configs) | settings | {"bundle_root": str(ROOT)})
    left_out = config.get("train::deterministic_transforms")[:2]
    assert [transform["_target_"] for transform in left_out] == ["LoadImaged", "EnsureChannelFirstd"]
    crops = config.get_parsed_content("train::dataset")[0]
    assert len(crops) == 3
    assert crops[0]["image"].shape == crops[0]["label"].shape == (1, 32, 32, 16)
    assert -1 <= float(crops[0]["image"].min()) < float(crops[0]["image"].max()) <= 1
