"""Whatever bytes a file has, its reader takes them or says in one line what is wrong: no other error, no hang."""

import gzip
import json
import random
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from scripts.cases import check_case, find_cases
from scripts.errors import InputError
from scripts.files import read_checkpoint
from scripts.inference import CheckedLoadImaged
from scripts.scans import ScanReader

FEW, MANY = 150, 2500  # inputs of each kind, in every run of the tests and in the slow ones: 4 kinds


def mutate(content: bytes, generator: random.Random, header: int) -> bytes:
    """Change, cut, repeat or insert bytes; half of the changes are within the first ``header`` bytes."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        end = min(header, len(changed)) if generator.random() < 0.5 else len(changed)
        place = generator.randrange(max(end, 1))
        kind = generator.random()
        if kind < 0.7:
            changed[place : place + 1] = bytes([generator.choice((0, 1, 127, 128, 255, generator.randrange(256)))])
        elif kind < 0.8:
            del changed[place:]
        elif kind < 0.9:
            changed[place:place] = changed[place : place + generator.randrange(64)]
        else:
            changed[place:place] = generator.randbytes(generator.randrange(16))
    return bytes(changed)


def nifti_bytes(tmp_path) -> bytes:
    hu = np.full((8, 8, 6), -1000, np.int16)
    hu[2:6, 2:6, 1:5] = 40
    nib.save(nib.Nifti1Image(hu, np.diag((1.5, 1.5, 2.0, 1.0))), tmp_path / "sound.nii")
    return (tmp_path / "sound.nii").read_bytes()


def read_image(path):
    return CheckedLoadImaged(keys="image", reader=ScanReader())({"image": str(path)})


def check_label(path):
    """As the label of a sound image: findings are not errors."""
    (case,) = find_cases(path.parent)
    return check_case(case, min_slices=1)


def assert_reader_is_calm(read, path, inputs):
    """Return how many inputs were taken; any error but `InputError` fails."""
    taken = 0
    for number, content in enumerate(inputs):
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
            taken += 1
        except InputError as error:
            assert str(path.parent) in str(error), number
    return taken


@pytest.fixture(params=[pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def count(request):
    return request.param


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_images(tmp_path, count, suffix):
    generator, sound = random.Random(0), nifti_bytes(tmp_path)
    (tmp_path / "sound.nii").unlink()
    inputs = [mutate(sound, generator, header=352) for _ in range(count)]
    if suffix == ".nii.gz":  # half of them packed after the change, half changed after the packing
        inputs = [
            gzip.compress(content, mtime=0) if number % 2 else mutate(gzip.compress(sound, mtime=0), generator, 20)
            for number, content in enumerate(inputs)
        ]
    taken = assert_reader_is_calm(read_image, tmp_path / f"ct{suffix}", inputs)
    assert 0 < taken < count  # some changes are harmless, and some are not


def test_labels(tmp_path, count):
    generator, sound = random.Random(1), nifti_bytes(tmp_path)
    (tmp_path / "sound.nii").rename(tmp_path / "volume-0.nii")
    inputs = (mutate(sound, generator, header=352) for _ in range(count))
    assert assert_reader_is_calm(check_label, tmp_path / "segmentation-0.nii", inputs) == count


def test_datalists(tmp_path, count):
    generator = random.Random(2)
    case = {"image": "volume-0.nii", "label": "segmentation-0.nii"}
    sound = json.dumps({"training": [case], "validation": [case | {"image": "b.nii"}], "test": []}).encode()
    inputs = (mutate(sound, generator, header=len(sound)) for _ in range(count))
    assert 0 < assert_reader_is_calm(find_cases, tmp_path / "mine.json", inputs) < count


def test_checkpoints(tmp_path, count):
    generator = random.Random(3)
    torch.save({"network": nn.Linear(3, 2).state_dict(), "epoch": 3}, tmp_path / "sound.pt")
    sound = (tmp_path / "sound.pt").read_bytes()
    inputs = (mutate(sound, generator, header=600) for _ in range(count))
    assert 0 < assert_reader_is_calm(read_checkpoint, tmp_path / "last.pt", inputs) < count
