"""Exports, made and run by the commands of docs/exports.md, give the bundle's own mask of the small CT."""

import os
import subprocess
import sys

import pytest

from tests.clients.small import SETTINGS, assert_same_mask, segment

pytestmark = pytest.mark.client
MONAI = {"torchscript": ("ckpt_export", "model.ts"), "onnx": ("onnx_export", "model.onnx")}
PACKAGES = {"torchscript": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
TARGET = "liver_and_tumor"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UTF_8 = {"PYTHONIOENCODING": "utf-8"}  # without it MONAI's own command ends where PyTorch prints a sign


def run_module(bundle, *arguments, environment):
    command = [sys.executable, "-m", *arguments]
    subprocess.run(command, cwd=bundle, env=os.environ | environment, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def in_float32(scan, bundle, tmp_path_factory):
    """The mask by ``monai.bundle run`` in float32, in which ONNX Runtime computes."""
    return segment(bundle(TARGET), scan.nifti, tmp_path_factory.mktemp("float32"), amp=False)


@pytest.fixture
def expected(request, scan, reference, in_float32):
    """The mask by ``monai.bundle run`` with the weights, in the precision of an overlay."""
    return reference(scan.nifti, TARGET) if request.node.callspec.params["overlay"] == "torchscript" else in_float32


@pytest.mark.parametrize("overlay", PACKAGES)
def test_an_export_gives_the_mask_of_its_weights_in_a_folder_of_others(
    scan, bundle, elsewhere, expected, tmp_path, overlay
):
    pytest.importorskip(PACKAGES[overlay])
    pytest.importorskip("onnxscript")
    options = ["--weights", "models/model.pt", "--output_dir", str(elsewhere / "models")]
    run_module(bundle(TARGET), "scripts.export", *options, "--onnx", str(overlay != "torchscript"), environment=ASCII)
    config, amp = f"['configs/inference.json','configs/{overlay}.json']", overlay == "torchscript"
    assert_same_mask(segment(elsewhere, scan.nifti, tmp_path / "nifti", config, amp), expected)
    assert_same_mask(segment(elsewhere, scan.dicom, tmp_path / "dicom", config, amp), expected)


@pytest.mark.parametrize("overlay", MONAI)
def test_an_export_by_monai_s_own_command_gives_it_beside_the_settings(scan, bundle, expected, tmp_path, overlay):
    pytest.importorskip(PACKAGES[overlay])
    command, name = MONAI[overlay]
    options = ["--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    options += ["--config_file", "configs/inference.json"]
    if overlay == "onnx":
        pytest.importorskip("onnxscript")
        options += ["--input_shape", str([1, 1, *SETTINGS["roi_size"]])]
    arguments = [command, "network_def", "--filepath", f"models/{name}", *options]
    run_module(bundle(TARGET), "monai.bundle", *arguments, environment=UTF_8)
    config, amp = f"['configs/inference.json','configs/{overlay}.json']", overlay == "torchscript"
    assert_same_mask(segment(bundle(TARGET), scan.nifti, tmp_path / "out", config, amp), expected)
