"""A DICOM series, or a file, with its mask becomes a case that can be trained on."""

import nibabel as nib
import numpy as np
import pytest

from scripts import data
from scripts.cases import check_case, find_cases
from scripts.errors import InputError
from scripts.pairs import add_case
from tests.dicoms import write_series
from tests.niftis import make_image, make_label, save, save_case, write_json

DICOM_AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])  # of a series in LPS from 0, in RAS


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "patient" / "series", make_image(), step_mm=(0, 0, 2))
    return tmp_path / "patient" / "series"


def read(file):
    nifti = nib.load(file)
    return np.asanyarray(nifti.dataobj), nifti.affine


def test_a_series_and_its_mask_become_a_case_of_the_same_voxels(tmp_path, series):
    mask = save(tmp_path / "mask.nii.gz", make_label(), DICOM_AFFINE)
    report = add_case(tmp_path / "mine", series, mask)
    assert (report.status, report.slices, report.findings) == ("ok", 48, ())
    (case,) = find_cases(tmp_path / "mine")
    assert case == report.case
    (image, affine), (label, label_affine) = read(case.image), read(case.label)
    assert image.dtype == np.int16 and label.dtype == np.uint8
    np.testing.assert_array_equal(image, make_image())
    np.testing.assert_array_equal(label, make_label())
    np.testing.assert_allclose(affine, DICOM_AFFINE)
    np.testing.assert_array_equal(label_affine, affine)
    assert check_case(case).status == "ok"


def test_a_mask_with_other_axes_is_turned_to_its_scan(tmp_path, series):
    turned = nib.as_closest_canonical(nib.Nifti1Image(make_label(), DICOM_AFFINE))
    mask = tmp_path / "mask.nii.gz"
    nib.save(turned, mask)
    report = add_case(tmp_path / "mine", series, mask)
    np.testing.assert_array_equal(read(report.case.label)[0], make_label())
    assert check_case(report.case).findings == ()


def test_numbers_go_on_from_the_highest_and_nothing_is_replaced(tmp_path):
    save_case(tmp_path / "mine", 4, suffix=".nii.gz")
    save(tmp_path / "elsewhere" / "deeper" / "segmentation-11.nii", make_label())
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "elsewhere")
    fractions = make_image().astype(np.float32) + 0.25
    image, mask = save(tmp_path / "scan.nii", fractions), save(tmp_path / "mask.nii", make_label())
    report = add_case(tmp_path / "mine", image, mask)
    assert report.case.name == "volume-12"
    stored = read(report.case.image)[0]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, fractions)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (make_label()[..., :40], r"mask.nii.gz: has shape \(12, 10, 40\) along its image's axes"),
        (make_label() * 3, "mask.nii.gz: has label values other than 0, 1 and 2: 3, 6; map them to these"),
    ],
)
def test_what_is_no_pair_is_refused_by_name_and_nothing_is_written(tmp_path, series, label, said):
    mask = save(tmp_path / "mask.nii.gz", label, DICOM_AFFINE)
    with pytest.raises(InputError, match=said):
        add_case(tmp_path / "mine", series, mask)
    assert not (tmp_path / "mine").exists()


def test_what_is_missing_is_said_by_name(tmp_path, series):
    mask = save(tmp_path / "mask.nii.gz", make_label(), DICOM_AFFINE)
    given = [(series, "no.nii", "no.nii"), ("no.nii", mask, "no.nii"), (tmp_path, mask, tmp_path)]
    for image, label, name in (*given, (series, series, f"{series}: is a folder")):
        with pytest.raises(InputError, match=f"^{name}"):
            add_case(tmp_path / "mine", image, label)


def test_a_scan_that_is_there_already_is_refused_by_name(tmp_path, series):
    mask = save(tmp_path / "mask.nii.gz", make_label(), DICOM_AFFINE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "volume-0.nii.gz").write_bytes(b"damaged")
    save(tmp_path / "mine" / "volume-1.nii.gz", make_image()[..., ::-1] + 1)
    first = add_case(tmp_path / "mine", series, mask).case
    turned = tmp_path / "turned.nii"
    nib.save(nib.as_closest_canonical(nib.load(first.image)), turned)
    for again in (series, turned):
        with pytest.raises(InputError, match=f"^{again}: is there already, as {first.image}; to give it another mask"):
            add_case(tmp_path / "mine", again, mask)


def test_a_pair_is_written_whole_or_not_at_all(tmp_path, series, monkeypatch):
    mask = save(tmp_path / "mask.nii.gz", make_label(), DICOM_AFFINE)
    synced = []

    def sync(file):
        synced.append(file)
        if len(synced) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("scripts.files.os.fsync", sync)
    with pytest.raises(KeyboardInterrupt):
        add_case(tmp_path / "mine", series, mask)
    assert len(synced) == 2 and not list((tmp_path / "mine").iterdir())


def test_a_folder_with_a_list_of_its_cases_is_left_alone(tmp_path, series):
    mask = save(tmp_path / "mask.nii.gz", make_label(), DICOM_AFFINE)
    write_json(tmp_path / "mine" / "dataset.json", {"training": []})
    with pytest.raises(InputError, match=r"mine: has a dataset\.json, which lists its cases"):
        add_case(tmp_path / "mine", series, mask)


def test_the_command_says_what_it_wrote_and_what_is_doubtful(tmp_path, series, capsys):
    mask = save(tmp_path / "mask.nii.gz", make_label() * 0, DICOM_AFFINE)
    data.add(tmp_path / "mine", series, mask)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{tmp_path}/mine/volume-0.nii.gz and segmentation-0.nii.gz: 48 slices, liver 0.0 ml, of which tumour 0.0 ml",
        "warning: mask.nii.gz: is empty: no liver and no tumour",
    ]
    save(tmp_path / "short.nii", make_image()[..., :30])
    save(tmp_path / "mask.nii", make_label()[..., :30])
    data.add(tmp_path / "mine", tmp_path / "short.nii", tmp_path / "mask.nii")
    assert capsys.readouterr().out.endswith("of fewer than 48 slices: trained on with --min_slices 1 alone\n")


def test_what_a_header_does_not_say_is_said_before_it_is_written_anew(tmp_path):
    for name, voxels in (("scan", make_image()), ("mask", make_label())):
        nifti = nib.Nifti1Image(voxels, None)
        nifti.header.set_zooms((1.5, 1.5, 2))
        nib.save(nifti, tmp_path / f"{name}.nii")
    findings = add_case(tmp_path / "mine", tmp_path / "scan.nii", tmp_path / "mask.nii").findings
    assert [finding.severity for finding in findings] == ["warning", "warning"]
    assert all("its header says no orientation" in finding.reason for finding in findings)
