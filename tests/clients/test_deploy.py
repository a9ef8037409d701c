"""The MONAI Deploy application: DICOM in, DICOM SEG out, from the bundle's folder and from its TorchScript export.

`make test-clients` runs this in an environment with the App SDK.
"""

import subprocess
import sys

import numpy as np
import pytest

from scripts.export import export
from tests.clients.small import OBLIQUE, read_segments
from tests.dicoms import write_slice

pytest.importorskip("monai.deploy", reason="MONAI Deploy is not installed here; make test-clients installs it")

import pydicom

pytestmark = pytest.mark.client

TARGETS = {"liver": ["liver"], "liver_and_tumor": ["liver", "tumor"]}
CODES = {"liver": ("123037004", "10200004"), "tumor": ("49755003", "108369006")}  # SNOMED CT: category and type


def run_app(bundle, dicom, output, *options, cwd=None):
    command = [sys.executable, str(bundle / "deploy/app.py"), "-i", str(dicom), "-o", str(output), *options]
    return subprocess.run(
        command, cwd=cwd or output.parent, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["folder", "export"])
def test_the_seg_has_the_mask_of_bundle_run_and_says_what_it_is(
    target, source, scan, bundle, elsewhere, reference, tmp_path
):
    if source == "folder":
        done = run_app(bundle(target), scan.dicom, tmp_path / "out")
    else:  # by the app of another folder, the models of which are another network's
        (path,) = export(bundle(target) / "models/model.pt", tmp_path, onnx=False)
        done = run_app(elsewhere, scan.dicom, tmp_path / "out", "-m", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("*.dcm")
    seg, masks = read_segments(path, scan.label.shape, scan.affine)
    expected = np.asarray(reference(scan.dicom, target).dataobj)
    names = [item.SegmentLabel for item in seg.SegmentSequence]
    assert names == TARGETS[target]
    for number, name in enumerate(names, start=1):
        np.testing.assert_array_equal(masks[number], expected == number)
        item = seg.SegmentSequence[number - 1]
        category, kind = item.SegmentedPropertyCategoryCodeSequence[0], item.SegmentedPropertyTypeCodeSequence[0]
        assert (category.CodeValue, kind.CodeValue) == CODES[name]
        assert {category.CodingSchemeDesignator, kind.CodingSchemeDesignator} == {"SCT"}
        assert item.SegmentAlgorithmType == "AUTOMATIC"
    source_slice = pydicom.dcmread(next(scan.dicom.iterdir()), stop_before_pixels=True)
    assert seg.FrameOfReferenceUID == source_slice.FrameOfReferenceUID
    assert seg.StudyInstanceUID == source_slice.StudyInstanceUID
    references = seg.ReferencedSeriesSequence[0]
    assert references.SeriesInstanceUID == source_slice.SeriesInstanceUID
    known = {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in scan.dicom.iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in references.ReferencedInstanceSequence} <= known


def test_the_seg_of_a_turned_scan_lies_on_it(oblique_scan, bundle, reference, tmp_path):
    done = run_app(bundle("liver"), oblique_scan.dicom, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("*.dcm")
    seg, masks = read_segments(path, oblique_scan.label.shape, oblique_scan.affine)
    np.testing.assert_array_equal(masks[1], np.asarray(reference(oblique_scan.dicom).dataobj))
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(np.array(orientation, float), OBLIQUE, atol=1e-4)


def test_an_export_that_lies_in_the_folder_is_not_used_unasked(scan, bundle, tmp_path):
    stale = bundle("liver") / "models/model.ts"
    stale.touch()
    try:
        done = run_app(bundle("liver"), scan.dicom, tmp_path / "out")
    finally:
        stale.unlink()
    assert done.returncode != 0
    assert f"{stale}: would be used, not model.pt; give it by -m, or move it away" in done.stderr
    assert not list(tmp_path.rglob("*.dcm"))


def test_a_folder_without_a_ct_fails_and_says_so(bundle, tmp_path):
    for number in range(3):
        tags = {"0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4"}
        write_slice(tmp_path / f"mr/{number}.dcm", np.zeros((8, 8)), (0, 0, number), tags=tags)
    done = run_app(bundle("liver"), tmp_path / "mr", tmp_path / "out")
    assert done.returncode != 0
    assert not list((tmp_path / "out").rglob("*.dcm"))
