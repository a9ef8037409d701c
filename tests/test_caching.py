"""Preprocessed scans on disk: the same crops as from memory, and never those of other data or other transforms."""

import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandSpatialCropd,
    ScaleIntensityRanged,
    Spacingd,
)

from scripts.caching import DiskDataset, training_dataset
from scripts.errors import InputError
from tests import ROOT

KEYS = ["image", "label"]


def preprocessing(a_max=200):
    return Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            Spacingd(KEYS, pixdim=(2, 2, 2), mode=("bilinear", "nearest")),
            ScaleIntensityRanged("image", -200, a_max, -1, 1, clip=True),
            RandSpatialCropd(KEYS, roi_size=(6, 6, 6), random_size=False),
        ]
    )


@pytest.fixture
def cases(tmp_path):
    generator = np.random.default_rng(0)
    for name, voxels in (
        ("image", generator.integers(-300, 300, (12, 12, 12)).astype(np.int16)),
        ("label", generator.integers(0, 2, (12, 12, 12)).astype(np.uint8)),
    ):
        nib.save(nib.Nifti1Image(voxels, np.diag((1.5, 1.5, 1.5, 1))), tmp_path / f"{name}.nii")
    return [{"image": str(tmp_path / "image.nii"), "label": str(tmp_path / "label.nii")}]


def crop(dataset):
    dataset.transform.set_random_state(3)
    return dataset[0]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_crops_are_those_of_the_dataset_in_memory_at_first_and_later(cases, tmp_path):
    expected = crop(training_dataset(cases, preprocessing()))
    for _ in range(2):
        result = crop(training_dataset(cases, preprocessing(), cache_dir=tmp_path / "cache"))
        for key in KEYS:
            assert torch.equal(torch.as_tensor(result[key]), torch.as_tensor(expected[key]))
    assert len(files(tmp_path / "cache")) == 1


def test_without_a_folder_scans_are_kept_in_memory(cases):
    assert isinstance(training_dataset(cases, preprocessing(), cache_dir=None), CacheDataset)


def test_a_later_run_does_not_read_the_scan_again(cases, tmp_path):
    crop(DiskDataset(cases, preprocessing(), tmp_path / "cache"))
    stamp = os.stat(cases[0]["image"])
    with open(cases[0]["image"], "r+b") as file:  # other content that claims to be the same
        file.seek(352)
        file.write(bytes(2 * 12**3))
    os.utime(cases[0]["image"], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert crop(DiskDataset(cases, preprocessing(), tmp_path / "cache"))["image"].abs().max() > 0
    assert len(files(tmp_path / "cache")) == 1


def test_changed_files_are_preprocessed_again(cases, tmp_path):
    crop(DiskDataset(cases, preprocessing(), tmp_path / "cache"))
    nib.save(nib.Nifti1Image(np.zeros((12, 12, 12), np.int16), np.diag((1.5, 1.5, 1.5, 1))), cases[0]["image"])
    os.utime(cases[0]["image"], ns=(1, 1))
    assert crop(DiskDataset(cases, preprocessing(), tmp_path / "cache"))["image"].abs().max() == 0
    assert len(files(tmp_path / "cache")) == 2


def test_changed_settings_are_another_preprocessing(cases, tmp_path):
    first = crop(DiskDataset(cases, preprocessing(a_max=200), tmp_path / "cache"))
    second = crop(DiskDataset(cases, preprocessing(a_max=100), tmp_path / "cache"))
    assert not torch.equal(first["image"], second["image"])
    assert len(files(tmp_path / "cache")) == 2


def test_a_damaged_file_is_made_again(cases, tmp_path):
    expected = crop(DiskDataset(cases, preprocessing(), tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    result = crop(DiskDataset(cases, preprocessing(), tmp_path / "cache"))
    assert torch.equal(result["image"], expected["image"])


def test_another_process_finds_the_same_file(cases, tmp_path):
    """The names hold no object identities and no order of sets."""
    program = (
        "import sys, tests.test_caching as t\n"
        "dataset = t.DiskDataset([{'image': sys.argv[1], 'label': sys.argv[2]}], t.preprocessing(), sys.argv[3])\n"
        "dataset[0]\n"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, cases[0]["image"], cases[0]["label"], str(tmp_path / "cache")]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    assert len(files(tmp_path / "cache")) == 1


def test_a_folder_that_cannot_be_is_said_by_its_option(cases, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(InputError, match=rf"^{folder}: cannot be the folder of --cache_dir"):
            DiskDataset(cases, preprocessing(), folder)
