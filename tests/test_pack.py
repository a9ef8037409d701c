"""The zip is the whole bundle and nothing else, the same every time, and it works where it is unpacked."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import download, download_large_files

from scripts.errors import InputError
from scripts.networks import MPUNet
from scripts.pack import NAME, SUMS, list_files, pack
from tests import ROOT

VERSION = json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))["version"]
ZIP = f"{NAME}_v{VERSION}.zip"
CHANNELS = [4, 4, 8, 8, 8]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the bundle without weights, so that those a user has trained do not count."""
    root = tmp_path_factory.mktemp("bundle")
    for name in list_files():
        if not name.startswith("models/") or name.endswith(".md"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    return root


def test_the_same_files_give_the_same_bytes(copy, tmp_path):
    first = pack(tmp_path / "first", copy)
    for path in copy.rglob("*"):
        os.utime(path, (0, 1_000_000_000))
    second = pack(tmp_path / "second", copy)
    assert first.name == ZIP
    assert first.read_bytes() == second.read_bytes()


def test_the_zip_has_the_bundle_and_nothing_else(copy, tmp_path):
    (copy / "scripts/__pycache__").mkdir(exist_ok=True)
    (copy / "scripts/__pycache__/junk.pyc").touch()
    (copy / "docs/.hidden").touch()
    with zipfile.ZipFile(pack(tmp_path, copy)) as archive:
        names = archive.namelist()
        assert archive.read(f"{NAME}/metadata.json") == archive.read(f"{NAME}/configs/metadata.json")
    assert all(name.startswith(f"{NAME}/") for name in names)
    tops = {name.split("/")[1] for name in names}
    assert {"configs", "scripts", "models", "docs", "LICENSE", "Makefile", "metadata.json", "README.md", SUMS} <= tops
    assert not [name for name in names if "tests" in name or "pycache" in name or "hidden" in name]
    assert f"{NAME}/scripts/report/page.html.j2" in names
    assert f"{NAME}/scripts/phantom/painting.py" in names


def test_the_sums_are_those_of_the_files(copy, tmp_path):
    path = pack(tmp_path, copy)
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(f"{NAME}/{SUMS}").decode().splitlines()
        assert len(lines) == len(archive.namelist()) - 1
        for line in lines:
            digest, name = line.split("  ")
            assert hashlib.sha256(archive.read(f"{NAME}/{name}")).hexdigest() == digest
    digest, name = (tmp_path / f"{ZIP}.sha256").read_text(encoding="utf-8").split()
    assert (digest, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), ZIP)


def test_an_incomplete_copy_is_not_packed(copy, tmp_path):
    incomplete = shutil.copytree(copy, tmp_path / "incomplete")
    (incomplete / "LICENSE").unlink()
    with pytest.raises(InputError, match=r"LICENSE: no such file; pack from a complete copy"):
        pack(tmp_path, incomplete)


@pytest.fixture(scope="module")
def downloaded(copy, tmp_path_factory):
    """The folder to which MONAI has unpacked the zip, with weights of a small network."""
    folder = tmp_path_factory.mktemp("downloaded")
    torch.manual_seed(0)
    torch.save(MPUNet(channels=CHANNELS).state_dict(), copy / "models/model.pt")
    path = pack(folder / "shared", copy)
    (copy / "models/model.pt").unlink()
    download(name=NAME, bundle_dir=str(folder / "bundles"), url=path.as_uri(), source="github", progress=False)
    return folder / "bundles"


def run_python(arguments, folder):
    """Run Python in a folder from which the bundle cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_downloaded_bundle_segments_from_another_folder(downloaded, tmp_path):
    image = nib.Nifti1Image(np.zeros((40, 40, 40), np.int16), np.eye(4))
    nib.save(image, tmp_path / "ct.nii.gz")
    command = ["-m", "monai.bundle", "run", "--config_file", downloaded / NAME / "configs/inference.json"]
    command += ["--dataset_dir", "ct.nii.gz", "--output_dir", "out", "--device", "cpu", "--check_hu", "false"]
    run_python([*command, "--network_def::channels", CHANNELS, "--roi_size", "[32,32,32]"], tmp_path)
    assert nib.load(tmp_path / "out/ct_seg.nii.gz").shape == image.shape


def test_weights_that_are_elsewhere_are_fetched_and_checked(copy, tmp_path):
    torch.save(MPUNet(channels=CHANNELS).state_dict(), copy / "models/model.pt")
    path = pack(tmp_path, copy, weights_url=(tmp_path / "elsewhere").as_uri())
    shutil.move(copy / "models/model.pt", tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert f"{NAME}/models/model.pt" not in archive.namelist()
        archive.extractall(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/model.pt").write_bytes(b"something else")
    with pytest.raises(Exception, match="sha256 hash check of downloaded file failed"):
        download_large_files(str(tmp_path / NAME))
    shutil.copy(tmp_path / "model.pt", tmp_path / "elsewhere")
    download_large_files(str(tmp_path / NAME))
    assert (tmp_path / NAME / "models/model.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()


def test_an_address_of_no_weights_is_refused(copy, tmp_path):
    with pytest.raises(InputError, match=r"models: has no weights that could be fetched from --weights_url"):
        pack(tmp_path, copy, weights_url="https://example.org")


LOAD = """
import sys
from monai.bundle import load
network = load({name!r}, bundle_dir={folder!r}, workflow_type=sys.argv[1], net_override={{"channels": {channels}}})
print(type(network).__name__, sum(parameter.numel() for parameter in network.parameters()))
"""


@pytest.mark.parametrize("workflow_type", ["train", "inference"])
def test_a_downloaded_bundle_loads_in_another_folder(downloaded, tmp_path, workflow_type):
    program = LOAD.format(name=NAME, folder=str(downloaded), channels=CHANNELS)
    words = run_python(["-c", program, workflow_type], tmp_path)
    parameters = sum(parameter.numel() for parameter in MPUNet(channels=CHANNELS).parameters())
    assert words.splitlines()[-1] == f"MPUNet {parameters}"
    assert list(tmp_path.iterdir()) == []  # loading writes nothing
