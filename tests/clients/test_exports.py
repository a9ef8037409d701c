"""Exports, made and run by the commands of docs/exports.md, give the bundle's own mask of the small CT."""

import subprocess
import sys

import pytest

from tests.clients.small import assert_same_mask, segment

pytestmark = pytest.mark.client
EXPORTS = {"torchscript": ("ckpt_export", "model.ts"), "onnx": ("onnx_export", "model.onnx")}
PACKAGES = {"torchscript": "torch", "onnx": "onnxruntime"}


@pytest.mark.parametrize("overlay", EXPORTS)
def test_an_export_gives_the_mask_of_the_bundle_for_dicom_and_nifti(scan, bundle, reference, tmp_path, overlay):
    pytest.importorskip(PACKAGES[overlay])
    command, name = EXPORTS[overlay]
    export = [sys.executable, "-m", "monai.bundle", command, "network_def", "--filepath", f"models/{name}"]
    export += ["--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    export += ["--config_file", "configs/inference.json"]
    if overlay == "onnx":
        pytest.importorskip("onnxscript")
        export += ["--input_shape", "[1,1,48,48,32]"]
    subprocess.run(export, cwd=bundle(), check=True, capture_output=True, timeout=300)
    config = f"['configs/inference.json','configs/{overlay}.json']"
    amp = overlay == "torchscript"  # ONNX Runtime computes in float32
    expected = reference(scan.nifti) if amp else segment(bundle(), scan.nifti, tmp_path / "expected", amp=False)
    assert_same_mask(segment(bundle(), scan.nifti, tmp_path / "nifti", config, amp), expected)
    assert_same_mask(segment(bundle(), scan.dicom, tmp_path / "dicom", config, amp), expected)
