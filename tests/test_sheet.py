import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.errors import InputError
from scripts.sheet import draw_sheet


def write_case(folder, name: str, liver: bool) -> None:
    image = np.full((30, 20, 16), -1000, np.int16)
    image[5:25, 5:15] = 40
    label = np.zeros(image.shape, np.uint8)
    label[8:16, 7:12, 4:12] = liver
    label[10:14, 7:11, 4:10] *= 2
    for kind, voxels in (("volume", image), ("segmentation", label)):
        nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 5.0, 1.0])), folder / f"{kind}-{name}.nii.gz")


def is_red(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > 0.8) & (picture[..., 1] < 0.5) & (picture[..., 2] < 0.5)


def is_yellow(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > 0.8) & (picture[..., 1] > 0.6) & (picture[..., 2] < 0.4)


def test_a_sheet_outlines_liver_and_tumour_in_both_planes_and_shows_a_case_without_one(tmp_path):
    write_case(tmp_path, "0", liver=True)
    write_case(tmp_path, "1", liver=False)
    draw_sheet(tmp_path, tmp_path / "sheet.png")
    picture = imread(tmp_path / "sheet.png")[..., :3]
    height, width = picture.shape[:2]
    cell = width // 6
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        assert is_red(picture[rows, :cell]).any()
        assert is_yellow(picture[rows, :cell]).any()
        assert not is_red(picture[rows, cell : 2 * cell]).any()
        assert (picture[rows, cell : 2 * cell] > 0.4).any()
        assert not (picture[rows, 3 * cell :] > 0.1).any()


def test_another_scan_comes_below_and_only_as_many_cases_as_asked_for_above(tmp_path):
    for name in ("0", "1"):
        write_case(tmp_path, name, liver=True)
    draw_sheet(tmp_path, tmp_path / "one.png", cases=1)
    draw_sheet(tmp_path, tmp_path / "beside.png", cases=1, beside=str(tmp_path / "volume-1.nii.gz"))
    one, beside = imread(tmp_path / "one.png")[..., :3], imread(tmp_path / "beside.png")[..., :3]
    assert beside.shape[0] > one.shape[0]
    assert beside.shape[1] == one.shape[1]
    cell = one.shape[1] // 6
    assert not (one[:, cell:] > 0.1).any()
    assert (beside[-one.shape[0] // 3 :, 5 * cell :] > 0.4).any()


def test_files_of_one_volume_along_a_fourth_axis_are_drawn(tmp_path):
    write_case(tmp_path, "0", liver=True)
    draw_sheet(tmp_path, tmp_path / "sheet.png")
    for path in tmp_path.glob("*.nii.gz"):
        nifti = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(nifti.dataobj)[..., None], nifti.affine), path)
    draw_sheet(tmp_path, tmp_path / "fourth.png")
    np.testing.assert_array_equal(imread(tmp_path / "fourth.png"), imread(tmp_path / "sheet.png"))


def test_labels_of_64_bits_are_drawn(tmp_path):
    write_case(tmp_path, "0", liver=True)
    label = nib.load(tmp_path / "segmentation-0.nii.gz")
    voxels = np.asanyarray(label.dataobj).astype(np.int64)
    nib.save(nib.Nifti1Image(voxels, label.affine, dtype=np.int64), tmp_path / "segmentation-0.nii.gz")
    draw_sheet(tmp_path, tmp_path / "sheet.png")
    assert is_red(imread(tmp_path / "sheet.png")[..., :3]).any()


def test_what_cannot_be_read_is_an_input_error_that_names_it(tmp_path):
    write_case(tmp_path, "0", liver=True)
    with pytest.raises(InputError, match="cases: expected a whole number of at least 1, received 0"):
        draw_sheet(tmp_path, tmp_path / "sheet.png", cases=0)
    with pytest.raises(InputError, match=r"nothing\.nii: cannot be read"):
        draw_sheet(tmp_path, tmp_path / "sheet.png", beside=str(tmp_path / "nothing.nii"))
    (tmp_path / "volume-0.nii.gz").write_bytes(b"no scan")
    with pytest.raises(InputError, match=r"volume-0\.nii\.gz: cannot be read"):
        draw_sheet(tmp_path, tmp_path / "sheet.png")


@pytest.mark.parametrize("shape", [(30, 20, 40), (15, 10, 8), (30, 20, 16, 2)])
def test_a_label_of_another_grid_is_refused_by_name(tmp_path, shape):
    write_case(tmp_path, "0", liver=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "segmentation-0.nii.gz")
    with pytest.raises(InputError, match=r"segmentation-0\.nii\.gz: has shape \(.*\), its image \(30, 20, 16\)"):
        draw_sheet(tmp_path, tmp_path / "sheet.png")
