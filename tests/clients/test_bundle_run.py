"""The bundle's own command on the small CT: what every other client is held to."""

import numpy as np
import pytest

from tests.clients.small import assert_same_mask, segment

pytestmark = pytest.mark.client


@pytest.mark.parametrize("target, classes", [("liver", 2), ("liver_and_tumor", 3)])
def test_the_mask_of_a_dicom_series_is_that_of_the_same_ct_as_nifti(scan, reference, target, classes):
    mask = reference(scan.nifti, target)
    assert_same_mask(reference(scan.dicom, target), mask)
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    voxels = np.bincount(np.asarray(mask.dataobj).ravel())
    assert len(voxels) == classes
    assert voxels.min() > 1000  # a mask that shows where it lies


def test_the_mask_of_a_turned_scan_is_another_one_on_its_grid(oblique_scan, bundle, tmp_path):
    # in float32: NIfTI keeps the affine to 7 digits, of which bfloat16 and random weights make 458 other voxels
    by_nifti = segment(bundle(), oblique_scan.nifti, tmp_path / "nifti", amp=False)
    assert_same_mask(segment(bundle(), oblique_scan.dicom, tmp_path / "dicom", amp=False), by_nifti)
    np.testing.assert_allclose(by_nifti.affine, oblique_scan.affine, atol=1e-4)
