"""Whole jobs through `monai.bundle run`, as small as they go: what a user types, and what is there afterwards."""

import csv
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, load, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.data import make_datalist
from scripts.errors import find_input_error
from scripts.files import read_weights
from scripts.metrics import OVERLAP_METRICS, SURFACE_METRICS
from scripts.networks import MPUNet
from scripts.phantom import write_phantoms
from tests import ROOT
from tests.golden import golden_io, released_state_dict
from tests.test_networks import released_network

TINY = {
    "network_def::channels": [4, 4, 8, 8, 8],
    "spacing": [8.0, 8.0, 8.0],
    "roi_size": [32, 32, 32],
    "min_slices": 32,
    "num_workers": 0,
    "device": "cpu",
    "learning_rate": 0.001,
}
INFERENCE_KNOBS = ("network_def::channels", "spacing", "roi_size", "device")


def configs(*names):
    return [str(ROOT / f"configs/{name}.json") for name in names]


def run_bundle(*names, **overrides):
    run(config_file=configs(*names), **({"bundle_root": str(ROOT)} | overrides))


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=6, seed=0, size=(64, 64, 48))
    return folder


@pytest.fixture(scope="session")
def trained(phantoms, tmp_path_factory):
    """Train two epochs of a tiny MPU-Net; return its settings."""
    output_dir = tmp_path_factory.mktemp("run")
    settings = TINY | {
        "dataset_dir": str(phantoms), "output_dir": str(output_dir), "ckpt_path": str(output_dir / "model.pt")
    }  # fmt: skip
    run_bundle("train", **settings, max_epochs=2, val_interval=1)
    return settings


def test_training_writes_weights_tables_and_the_list_of_its_cases(trained):
    output_dir = trained["output_dir"]
    datalist = read_json(f"{output_dir}/datalist.json")
    assert [len(datalist[section]) for section in ("training", "validation", "test")] == [4, 1, 1]
    training, validation = table(f"{output_dir}/training.csv"), table(f"{output_dir}/validation.csv")
    assert [row["epoch"] for row in training] == [row["epoch"] for row in validation] == ["1", "2"]
    assert set(training[0]) >= {*OVERLAP_METRICS, "loss", "learning_rate", "seconds"}
    assert set(validation[0]) >= {*OVERLAP_METRICS, *SURFACE_METRICS, "seconds"}
    network = MPUNet(channels=TINY["network_def::channels"])
    network.load_state_dict(torch.load(trained["ckpt_path"], weights_only=True), strict=True)
    assert os.listdir(f"{output_dir}/tensorboard")
    facts = read_json(f"{output_dir}/run.json")
    assert (facts["network"], facts["epochs"], facts["steps_per_epoch"]) == ("MPUNet", 2, 4)
    assert facts["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert facts["weights_sha256"] == hashlib.sha256(Path(trained["ckpt_path"]).read_bytes()).hexdigest()


def test_the_config_in_the_manifest_makes_the_same_run_again(trained, phantoms, tmp_path):
    manifest = read_json(f"{trained['output_dir']}/manifest.json")
    assert manifest["config"]["spacing"] == TINY["spacing"]
    assert manifest["values"]["tensorboard_dir"] == f"{trained['output_dir']}/tensorboard"
    datalist = read_json(f"{trained['output_dir']}/datalist.json")
    for section in ("training", "validation"):
        cases = [{key: [os.path.basename(file)] for key, file in case.items()} for case in datalist[section]]
        assert manifest["data"][section] == cases
    for name, facts in manifest["files"].items():
        assert facts["sha256"] == hashlib.sha256((phantoms / name).read_bytes()).hexdigest()

    (tmp_path / "again.json").write_text(json.dumps(manifest["config"]), encoding="utf-8")
    run(config_file=str(tmp_path / "again.json"), output_dir=str(tmp_path), ckpt_path=str(tmp_path / "model.pt"))
    weights, again = (torch.load(path, weights_only=True) for path in (trained["ckpt_path"], tmp_path / "model.pt"))
    assert all(torch.equal(value, again[key]) for key, value in weights.items())


def test_training_learns(trained):
    losses = [float(row["loss"]) for row in table(f"{trained['output_dir']}/training.csv")]
    assert losses[1] < losses[0]


def test_evaluation_measures_the_test_cases_in_their_own_grid(trained):
    run_bundle("train", "evaluate", **trained)
    rows = table(f"{trained['output_dir']}/evaluation/per_case.csv")
    datalist = read_json(f"{trained['output_dir']}/datalist.json")
    image_file, label_file = (datalist["test"][0][key] for key in ("image", "label"))
    assert [row["case"] for row in rows] == [os.path.basename(image_file).removesuffix(".nii.gz")]
    label = nib.load(label_file)
    volume_ml = (np.asarray(label.dataobj) > 0).sum() * np.prod(label.header.get_zooms()) / 1000
    assert float(rows[0]["reference_volume_ml"]) == pytest.approx(volume_ml, rel=1e-4)
    summary = table(f"{trained['output_dir']}/evaluation/summary.csv")
    assert {row["metric"] for row in summary} >= {*OVERLAP_METRICS, *SURFACE_METRICS}


def test_evaluation_saves_each_mask_on_its_image_s_grid_and_says_where(trained):
    run_bundle("train", "evaluate", **trained)
    (row,) = table(f"{trained['output_dir']}/evaluation/per_case.csv")
    case = read_json(f"{trained['output_dir']}/datalist.json")["test"][0]
    assert (row["image"], row["label"]) == (case["image"], case["label"])
    mask = nib.load(row["prediction"])
    np.testing.assert_array_equal(mask.affine, nib.load(case["image"]).affine)
    pred, label = np.asarray(mask.dataobj) > 0, np.asarray(nib.load(case["label"]).dataobj) > 0
    assert float(row["dice"]) == pytest.approx(2 * (pred & label).sum() / (pred.sum() + label.sum()), abs=1e-5)


def test_images_of_one_name_in_several_folders_keep_their_masks_and_names_apart(trained, phantoms, tmp_path):
    datalist = {"training": [0], "validation": [1], "test": [2, 3]}
    for section, numbers in datalist.items():
        for number in numbers:
            (tmp_path / f"data/patient-{number}").mkdir(parents=True)
            for kind in ("volume", "segmentation"):
                shutil.copy(phantoms / f"{kind}-{number}.nii.gz", tmp_path / f"data/patient-{number}/{kind}.nii.gz")
        files = [{"image": f"patient-{n}/volume.nii.gz", "label": f"patient-{n}/segmentation.nii.gz"} for n in numbers]
        datalist[section] = files
    (tmp_path / "data/dataset.json").write_text(json.dumps(datalist), encoding="utf-8")
    settings = trained | {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
    run_bundle("train", "evaluate", **settings)
    rows = table(tmp_path / "run/evaluation/per_case.csv")
    assert [row["case"] for row in rows] == ["patient-2/volume.nii.gz", "patient-3/volume.nii.gz"]
    for row, number in zip(rows, (2, 3), strict=True):
        assert row["prediction"].endswith(f"run/evaluation/predictions/patient-{number}/volume_seg.nii.gz")
        volume_ml = (np.asarray(nib.load(row["prediction"]).dataobj) > 0).sum() * np.prod(
            nib.load(row["image"]).header.get_zooms()
        )
        assert float(row["volume_ml"]) == pytest.approx(volume_ml / 1000, rel=1e-4)


def test_evaluation_gives_what_inference_of_the_same_case_gives(trained, tmp_path):
    run_bundle("train", "evaluate", **trained, evaluation_dir=str(tmp_path))
    case = read_json(f"{trained['output_dir']}/datalist.json")["test"][0]
    infer_with(trained, case["image"], tmp_path)
    name = os.path.basename(case["image"]).removesuffix(".nii.gz")
    pred = np.asarray(nib.load(tmp_path / f"{name}_seg.nii.gz").dataobj) > 0
    label = np.asarray(nib.load(case["label"]).dataobj) > 0
    assert 0 < pred.mean() < 1  # else it would say nothing
    dice = 2 * (pred & label).sum() / (pred.sum() + label.sum())
    assert float(table(tmp_path / "per_case.csv")[0]["dice"]) == pytest.approx(dice, abs=1e-4)


def test_what_finishes_a_mask_in_inference_finishes_it_in_evaluation(trained, tmp_path):
    knobs = {"largest_component": "true", "fill_holes": "true", "min_island_mm3": 1e9}  # larger than any liver
    run_bundle("train", "evaluate", **trained, evaluation_dir=str(tmp_path), **knobs)
    (row,) = table(tmp_path / "per_case.csv")
    assert float(row["volume_ml"]) == float(row["dice"]) == 0
    infer_with(trained, row["image"], tmp_path, **knobs)
    (row,) = table(tmp_path / "volumes.csv")
    assert float(row["liver_ml"]) == 0


def test_the_manifests_of_evaluation_and_inference_have_the_weights_and_the_images(trained, phantoms, tmp_path):
    run_bundle("train", "evaluate", **trained, evaluation_dir=str(tmp_path / "evaluation"))
    infer_with(trained, phantoms / "volume-0.nii.gz", tmp_path)
    weights = hashlib.sha256(Path(trained["ckpt_path"]).read_bytes()).hexdigest()
    assert Path(f"{trained['ckpt_path']}.sha256").read_text(encoding="utf-8") == f"{weights}  model.pt\n"
    for path in ("evaluation/manifest.json", "inference_manifest.json"):
        assert read_json(tmp_path / path)["weights"]["sha256"] == weights
    assert read_json(tmp_path / "inference_manifest.json")["data"] == {"images": [{"image": ["volume-0.nii.gz"]}]}
    (case,) = read_json(tmp_path / "evaluation/manifest.json")["data"]["cases"]
    assert case["image"] == [os.path.basename(read_json(f"{trained['output_dir']}/datalist.json")["test"][0]["image"])]


def infer_with(trained, dataset_dir, output_dir, **overrides):
    knobs = {key: trained[key] for key in (*INFERENCE_KNOBS, "ckpt_path")}
    run_bundle("inference", dataset_dir=str(dataset_dir), output_dir=str(output_dir), **knobs, **overrides)


def test_no_mask_is_converted_in_a_way_that_one_on_a_gpu_refuses(trained, phantoms, tmp_path, monkeypatch):
    convert = torch.Tensor.__array__

    def refuse(tensor, *args, **kwargs):
        if tensor.dtype == torch.uint8 and tensor.ndim >= 3:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return convert(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
    with pytest.raises(TypeError, match="cuda:0"):
        np.asarray(torch.zeros(2, 2, 2, dtype=torch.uint8))
    infer_with(trained, phantoms / "volume-0.nii.gz", tmp_path)
    assert {"volume-0_seg.nii.gz", "volume-0_seg.png", "volumes.csv"} <= set(os.listdir(tmp_path))
    run_bundle("train", "evaluate", **trained, evaluation_dir=str(tmp_path / "result"), save_predictions=True)
    assert len(list((tmp_path / "result/predictions").glob("*_seg.nii.gz"))) == 1


def test_a_label_stored_with_other_axes_is_evaluated_on_its_image(trained, phantoms, tmp_path):
    (tmp_path / "turned").mkdir()
    for path in phantoms.iterdir():
        image = nib.load(path)
        if path.name.startswith("segmentation"):
            image = image.as_reoriented(np.array([[0, -1], [1, 1], [2, -1]]))
        nib.save(image, tmp_path / "turned" / path.name)
    settings = trained | {"dataset_dir": str(tmp_path / "turned"), "datalist_file": str(tmp_path / "datalist.json")}
    run_bundle("train", "evaluate", **settings, evaluation_dir=str(tmp_path / "turned_result"))
    run_bundle("train", "evaluate", **trained, evaluation_dir=str(tmp_path / "result"))
    ((turned,), (straight,)) = (table(tmp_path / f"{name}/per_case.csv") for name in ("turned_result", "result"))
    assert 0 < float(straight["dice"]) < 1  # else it would say nothing
    for metric in (*OVERLAP_METRICS, *SURFACE_METRICS, "volume_ml", "reference_volume_ml"):
        assert turned[metric] == straight[metric], metric


def test_resumed_training_goes_on_where_it_stopped(trained, phantoms, tmp_path):
    settings = trained | {"output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt"), "val_interval": 1}
    run_bundle("train", **settings, max_epochs=1)
    first = table(tmp_path / "training.csv")
    run_bundle("train", **settings, max_epochs=2, resume="true")
    rows = table(tmp_path / "training.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0] == first[0]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    with pytest.raises(Exception) as caught:
        run_bundle("train", **settings, max_epochs=2, resume="true")
    assert "last.pt: all 2 epochs are done; give a larger --max_epochs" in str(find_input_error(caught.value))


def without_seconds(path):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table(path)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_training_is_that_without_a_break_to_the_bit(phantoms, tmp_path, num_workers):
    """With shuffled cases, random crops, flips, rotations and dropout; batch norms measured anew; three validations."""
    folders = {name: tmp_path / name for name in ("whole", "parts")}
    settings = {
        name: TINY
        | {"dataset_dir": str(phantoms), "output_dir": str(folder), "ckpt_path": str(folder / "model.pt")}
        | {"val_interval": 1, "num_workers": num_workers, "datalist_file": str(tmp_path / "datalist.json")}
        for name, folder in folders.items()
    }
    run_bundle("train", **settings["whole"], max_epochs=3)
    run_bundle("train", **settings["parts"], max_epochs=1)
    run_bundle("train", **settings["parts"], max_epochs=3, resume=True)
    for file, part in (("model.pt", None), ("last.pt", "network"), ("last.pt", "best")):
        whole, parts = (torch.load(folder / file, weights_only=True) for folder in folders.values())
        whole, parts = (whole, parts) if part is None else (whole[part], parts[part])
        if part == "best":  # which says where it is
            assert [best.pop("path") for best in (whole, parts)] == [
                str(folders[name] / "model.pt") for name in folders
            ]
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            same = (
                value == parts[key]
                if isinstance(value, str)
                else torch.equal(*map(torch.as_tensor, (value, parts[key])))
            )
            assert same, (file, key)
    for file in ("training.csv", "validation.csv"):
        assert without_seconds(folders["whole"] / file) == without_seconds(folders["parts"] / file)


def test_the_same_seed_is_the_same_training_and_another_seed_another(phantoms, tmp_path):
    results = []
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        settings = TINY | {"dataset_dir": str(phantoms), "output_dir": str(folder), "seed": seed, "max_epochs": 1}
        run_bundle("train", **settings, ckpt_path=str(folder / "model.pt"), val_interval=1)
        weights = torch.load(folder / "model.pt", weights_only=True)
        results.append(
            (torch.cat([value.flatten() for value in weights.values()]), without_seconds(folder / "training.csv"))
        )
    first, second, other = results
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"target": "tumor"}, "last.pt: is of a run with target liver, not tumor"),
        ({"spacing": [7.0, 7.0, 7.0]}, "last.pt: is of a run with spacing "),
    ],
)
def test_resuming_with_another_target_or_grid_says_so(trained, phantoms, tmp_path, changed, message):
    settings = trained | {"output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt"), "val_interval": 5}
    run_bundle("train", **settings, max_epochs=1)
    with pytest.raises(Exception) as caught:
        run_bundle("train", **settings | changed, max_epochs=2, resume=True)
    assert message in str(find_input_error(caught.value))


def is_group_running(process):
    """Whether the process or any that it started is there."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")
def test_no_worker_process_outlives_an_error_in_a_worker(phantoms, tmp_path):
    data = Path(shutil.copytree(phantoms, tmp_path / "data"))
    settings = {"max_epochs": 5, "num_workers": 2, "cache_rate": 0.0, "datalist_file": tmp_path / "datalist.json"}
    datalist = make_datalist(data, tmp_path / "datalist.json", min_slices=TINY["min_slices"])
    Path(datalist["training"][0]["image"]).write_bytes(b"damaged since it was checked")
    process = start_training(data, tmp_path / "run", **settings)
    assert process.wait(timeout=600) == 1
    assert not is_group_running(process)
    assert datalist["training"][0]["image"] in (tmp_path / "run/log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")
def test_the_workers_of_a_killed_training_end_by_themselves(phantoms, tmp_path):
    process = start_training(phantoms, tmp_path, max_epochs=10_000, num_workers=2)
    wait_for_rows(process, tmp_path / "training.csv", 1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while is_group_running(process) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not is_group_running(process)


def can_mount():
    """Whether this computer lets a test mount a disk of its own, which nobody else sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def start_training(phantoms, folder, **overrides):
    """Start `python -m monai.bundle run training` as a process of its own, its output in ``log.txt``."""
    settings = TINY | {"dataset_dir": phantoms, "output_dir": folder, "ckpt_path": folder / "model.pt"} | overrides
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    folder.mkdir(exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for_rows(process, path, rows):
    """Wait until a table of a running process has so many rows, or the process has ended."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if path.is_file() and len(table(path)) >= rows:
            return
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_its_step_with_a_message(phantoms, tmp_path, number):
    process = start_training(phantoms, tmp_path, max_epochs=10_000, val_interval=10_000)
    wait_for_rows(process, tmp_path / "training.csv", 2)
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    messages = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert messages.strip().splitlines()[-1] == (
        f"stopped. {tmp_path}/last.pt has the last finished epoch; go on from it with --resume true"
    )
    assert "Traceback" not in messages
    done = torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] // 4
    assert len(table(tmp_path / "training.csv")) == done >= 2


def read_every_file(folder):
    """Fail unless every file of a run, in whatever state it was killed, is whole; return the kinds there are."""
    kinds = set()
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".part-")):
        kinds.add(path.suffix)
        if path.suffix == ".pt":
            read_weights(path)  # its sum too, if it has one
        elif path.suffix == ".csv":
            rows = table(path)
            assert rows
            assert all(None not in row and None not in row.values() for row in rows), "cut off"
        elif path.suffix == ".json":
            assert read_json(path)
        elif path.parent.name == "tensorboard":
            EventAccumulator(str(path)).Reload()
        else:
            assert path.suffix in (".md", ".sha256", ".txt"), path
            assert path.read_text(encoding="utf-8") or path.suffix == ".txt"
    return kinds


def assert_same_end(whole, killed):
    """Fail unless the weights, the checkpoints and the tables of two runs are the same to the bit."""
    for name in ("last.pt", "model.pt"):
        expected, weights = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        expected, weights = (state.get("network", state) for state in (expected, weights))
        assert expected.keys() == weights.keys()
        assert all(torch.equal(expected[key], weights[key]) for key in expected)
    for name in ("training.csv", "validation.csv"):
        assert without_seconds(whole / name) == without_seconds(killed / name)
    assert not list(killed.glob(".part-*"))
    assert read_every_file(killed) >= {".pt", ".csv", ".json", ".sha256"}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_training_ends_as_one_that_was_not(phantoms, tmp_path):
    settings = {"val_interval": 1, "datalist_file": str(tmp_path / "datalist.json")}
    process = start_training(phantoms, tmp_path / "killed", **settings, max_epochs=10_000)
    wait_for_rows(process, tmp_path / "killed/training.csv", 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    read_every_file(tmp_path / "killed")
    settings |= TINY | {"dataset_dir": str(phantoms), "max_epochs": len(table(tmp_path / "killed/training.csv")) + 2}
    for name in ("whole", "killed"):
        folder = str(tmp_path / name)
        run_bundle("train", **settings, output_dir=folder, ckpt_path=f"{folder}/model.pt", resume=name == "killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_training_killed_at_twenty_random_moments_ends_as_one_that_was_not(phantoms, tmp_path):
    """Four of the moments are while it starts, before the first epoch and later; the others while it trains."""
    generator = random.Random(0)
    settings = {"max_epochs": 80, "val_interval": 1, "datalist_file": tmp_path / "datalist.json"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    process = start_training(phantoms, whole, **settings)
    wait_for_rows(process, whole / "training.csv", 1)
    start_seconds = time.monotonic() - started
    assert process.wait() == 0
    done, moments = 0, []
    for attempt in range(20):
        resume = (killed / "last.pt").is_file() or (killed / "previous-last.pt").is_file()
        process = start_training(phantoms, killed, **settings, resume=resume)
        if attempt in (0, 1, 7, 13):
            time.sleep(generator.uniform(0, start_seconds))
        else:
            wait_for_rows(process, killed / "training.csv", done + 1)
            time.sleep(generator.uniform(0, 1))
        assert process.poll() is None, (killed / "log.txt").read_text(encoding="utf-8")[-3000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        read_every_file(killed)
        table_file = killed / "training.csv"
        done = len(table(table_file)) if table_file.is_file() else 0
        moments.append((done, bool(list(killed.glob(".part-*")))))
    print(f"epochs done, and whether a file was being written, at each kill: {moments}")
    assert start_training(phantoms, killed, **settings, resume=True).wait() == 0
    assert_same_end(whole, killed)


FULL_DISK = """
import json, pathlib, sys
import nibabel as nib, numpy as np, torch
from monai.bundle import run
from scripts.errors import InputError, find_input_error
from scripts.files import read_weights, write_table, write_weights
from monai.data import MetaTensor
from scripts.inference import CheckedSaveImaged, GridWriter

disk, settings = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])

def write_mask(voxels, path):
    pred = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.eye(4), meta={"filename_or_obj": path.name})
    names = {"output_dir": path.parent, "output_postfix": "", "output_ext": path.suffix, "separate_folder": False}
    CheckedSaveImaged("pred", **names, resample=False, output_dtype=np.uint8, writer=GridWriter)({"pred": pred})

rng = np.random.default_rng(0)
small, large = (rng.integers(0, 255, (size, size, size)).astype(np.uint8) for size in (20, 300))
kinds = {
    "model.pt": lambda voxels, path: write_weights({"weight": torch.from_numpy(voxels)}, path),
    "table.csv": lambda voxels, path: write_table(path, [{"text": 1000 * "x"}] * (voxels.size // 1000)),
    "mask.nii": write_mask,
}
for name, write in kinds.items():
    write(small, disk / name)
    before = (disk / name).read_bytes()
    try:
        write(large, disk / name)
    except InputError as error:
        assert f"{name}: cannot be written, the disk is full; free some space" in str(error), error
    else:
        raise AssertionError(name)
    assert (disk / name).read_bytes() == before, name
assert sorted(path.name for path in disk.iterdir()) == sorted([*kinds, "model.pt.sha256"])
read_weights(disk / "model.pt")

free = 2_000_000  # a checkpoint has 0.75 MB, of which two are kept while the third is written
(disk / "filler").write_bytes(bytes(__import__("shutil").disk_usage(disk).free - free))
try:
    run(**settings)
except Exception as error:
    print(find_input_error(error))
"""


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk")
def test_a_full_disk_is_said_in_one_line_and_damages_nothing(phantoms, tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    settings = TINY | {"config_file": str(ROOT / "configs/train.json"), "bundle_root": str(ROOT), "max_epochs": 5}
    settings |= {"dataset_dir": str(phantoms), "output_dir": f"{disk}/run", "ckpt_path": f"{disk}/run/model.pt"}
    mount = f'mount -t tmpfs -o size=16m none {disk} && {sys.executable} -c "$0" {disk} "$1" && cp -r {disk}/run {copy}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, FULL_DISK, json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^/.*/(last|model)\.pt: cannot be written, the disk is full; free some space", done.stdout, re.M)
    assert read_every_file(copy) >= {".pt", ".csv", ".json"}
    assert not list(copy.rglob(".part-*"))


@pytest.mark.parametrize("frozen", [False, True])
def test_finetuning_takes_weights_and_learns_other_classes(trained, tmp_path, frozen):
    pretrained = torch.load(trained["ckpt_path"], weights_only=True)
    settings = trained | {"output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt"), "max_epochs": 1}
    settings |= {"pretrained": trained["ckpt_path"], "target": "liver_and_tumor", "val_interval": 1}
    settings |= {"freeze_encoder": str(frozen).lower(), "learning_rate": 1e-6}
    run_bundle("train", "finetune", **settings)
    tuned = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in tuned.items():
        if name.startswith("heads."):
            assert (len(value), len(pretrained[name])) == (3, 2)
        elif "running_" not in name and "num_batches" not in name:
            # four steps of Adam move a weight by the learning rate each
            assert 0 <= (value - pretrained[name]).abs().max() < 1e-5, name
            changed = not torch.equal(value, pretrained[name])
            assert changed != (frozen and name.startswith(("encoders.", "downs."))), name
    sums = hashlib.sha256(Path(trained["ckpt_path"]).read_bytes()).hexdigest()
    assert read_json(tmp_path / "manifest.json")["weights"]["sha256"] == sums


def test_a_resumed_finetuning_goes_on_with_its_own_weights(trained, tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "parts")}
    settings = {
        name: trained | {"output_dir": str(folder), "ckpt_path": str(folder / "model.pt"), "val_interval": 1}
        for name, folder in folders.items()
    }  # fmt: skip
    for name, epochs, resume in (("whole", 2, False), ("parts", 1, False), ("parts", 2, True)):
        knobs = {"pretrained": trained["ckpt_path"], "max_epochs": epochs, "resume": resume}
        run_bundle("train", "finetune", "warmup", **settings[name], **knobs)
    whole, parts = (torch.load(folder / "last.pt", weights_only=True)["network"] for folder in folders.values())
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_training_ends_early_when_validation_no_longer_improves(trained, tmp_path):
    settings = trained | {"output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt"), "learning_rate": 0.0}
    settings |= {"recalibrate_batch_norm": False, "network_def::norm": "instance"}  # so all epochs are the same
    run_bundle("train", **settings, max_epochs=9, val_interval=1, early_stop_patience=2)
    assert [row["epoch"] for row in table(tmp_path / "validation.csv")] == ["1", "2", "3"]
    assert [row["epoch"] for row in table(tmp_path / "training.csv")] == ["1", "2", "3"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["early_stop"]["counter"] == 2


def test_resuming_a_run_that_never_began_says_so(trained, tmp_path):
    with pytest.raises(Exception) as caught:
        run_bundle("train", **(trained | {"output_dir": str(tmp_path)}), resume=True)
    assert "last.pt: no such file; nothing to resume; start without --resume" in str(find_input_error(caught.value))


@pytest.mark.parametrize(
    "overlays, overrides",
    [
        (["unet"], {"network_def::channels": [4, 8, 8, 8]}),
        (["paper"], {"plane_size": [32, 32], "spacing": [-1, -1, 8.0], "roi_size": [32, 32, 16]}),
        ([], {"target": "liver_and_tumor"}),
        ([], {"target": "tumor", "crops_per_scan": 2, "batch_size": 2}),
    ],
)
def test_other_networks_protocols_and_targets_train_and_infer(phantoms, tmp_path, overlays, overrides):
    settings = TINY | overrides | {"output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt")}
    run_bundle("train", *overlays, **settings, dataset_dir=str(phantoms), max_epochs=1, val_interval=1)
    metrics = table(tmp_path / "validation.csv")[0]
    assert ("dice_tumor" in metrics) == (overrides.get("target") == "liver_and_tumor")
    knobs = {key: settings[key] for key in (*INFERENCE_KNOBS, "ckpt_path", "target", "plane_size") if key in settings}
    knobs |= {"dataset_dir": str(phantoms / "volume-0.nii.gz"), "output_dir": str(tmp_path / "out")}
    run_bundle("inference", *overlays, **knobs)
    image, mask = nib.load(phantoms / "volume-0.nii.gz"), nib.load(tmp_path / "out/volume-0_seg.nii.gz")
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)


def test_the_main_command_works_as_written(phantoms, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    command += [
        "--dataset_dir",
        str(phantoms),
        "--output_dir",
        str(tmp_path),
        "--ckpt_path",
        str(tmp_path / "model.pt"),
    ]
    command += ["--network_def::channels", "[4,4,8,8,8]", "--spacing", "[8,8,8]", "--roi_size", "[32,32,32]"]
    command += ["--min_slices", "32", "--num_workers", "1", "--max_epochs", "1", "--val_interval", "1"]
    somebody = {"HOME": str(tmp_path / "jane-doe"), "USER": "jane-doe", "LOGNAME": "jane-doe"}
    subprocess.run(command, cwd=ROOT, env=os.environ | somebody, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "model.pt").is_file()
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text)["command"] == shlex.join(["python", *command[1:]])
    assert not [place for place in ("jane-doe", sys.executable, str(ROOT)) if place in text]


def test_a_bad_case_ends_the_command_with_one_line_and_writes_no_datalist(phantoms, tmp_path):
    for path in phantoms.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "volume-3.nii.gz").unlink()
    (tmp_path / "volume-3.nii.gz").write_bytes((phantoms / "volume-3.nii.gz").read_bytes()[:30_000])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json", "--min_slices", "32"]
    command += ["--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "volume-3.nii.gz" in errors[0]
    assert "--skip_bad_cases true" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/datalist.json").exists()
    assert "volume-3" in (tmp_path / "out/datalist.md").read_text(encoding="utf-8")


def test_properties_of_both_workflows_are_complete(trained, phantoms, tmp_path):
    knobs = {"bundle_root": str(ROOT), "output_dir": str(tmp_path), "ckpt_path": trained["ckpt_path"]}
    meta = str(ROOT / "configs/metadata.json")
    train = ConfigWorkflow(
        configs("train"), meta_file=meta, workflow_type="train", **(TINY | knobs), dataset_dir=str(phantoms)
    )
    inference_knobs = {key: TINY[key] for key in INFERENCE_KNOBS}
    inference = ConfigWorkflow(
        configs("inference"), meta_file=meta, workflow_type="infer", **inference_knobs, **knobs,
        dataset_dir=str(phantoms),
    )  # fmt: skip
    for workflow in (train, inference):
        workflow.initialize()
        assert workflow.check_properties() == []


def test_released_weights_convert_and_infer_as_the_released_network(tmp_path):
    torch.save({"net": released_state_dict("mpunet"), "epoch": 600}, tmp_path / "best_model.pth")
    command = [sys.executable, "-m", "scripts.convert_released_weights", "--network", "mpunet"]
    command += ["--checkpoint", str(tmp_path / "best_model.pth"), "--output", str(tmp_path / "model.pt")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)

    clipped = np.clip(golden_io("mpunet")["input"][0, 0], -1, 1)
    nib.save(
        nib.Nifti1Image(clipped * 200, np.diag((1.5, 1.5, 1.0, 1))), tmp_path / "ct.nii"
    )  # HU on the network's grid
    knobs = {"dataset_dir": str(tmp_path / "ct.nii"), "output_dir": str(tmp_path), "roi_size": [16, 32, 48]}
    knobs |= {
        "ckpt_path": str(tmp_path / "model.pt"),
        "device": "cpu",
        "probabilities": True,
        "check_hu": False,
        "amp": False,
    }
    run_bundle("inference", "released", **knobs)
    result = np.asarray(nib.load(tmp_path / "ct_probability.nii.gz").dataobj)
    with torch.no_grad():
        expected = released_network("mpunet")(torch.from_numpy(clipped)[None, None]).exp()[0, 1].numpy()
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_the_bundle_loads_by_its_name_from_its_parent_folder(tmp_path, monkeypatch):
    bundle = tmp_path / "mpunet_liver_ct"
    bundle.mkdir()
    for name in ("configs", "scripts", "metadata.json"):
        (bundle / name).symlink_to(ROOT / name)
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    expected = MPUNet().state_dict()
    torch.save(expected, bundle / "models/model.pt")
    monkeypatch.syspath_prepend(str(bundle))
    network = load("mpunet_liver_ct", bundle_dir=str(tmp_path), source="monaihosting")
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
