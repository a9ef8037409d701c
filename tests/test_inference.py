import csv
import errno
import gzip
import itertools
import json
import math
import re
import shutil
import struct
from functools import partial

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import SaveImaged

from scripts import inference
from scripts.errors import InputError, find_input_error
from scripts.inference import find_images, output_name
from tests import ROOT
from tests.jobs import infer_with_oracle, input_error_of
from tests.oracle import ThresholdOracle

SPACING_MM = (1.5, 1.5, 1.0)  # of configs/inference.json: nothing is interpolated on such a grid
BACKGROUND_HU, FOREGROUND_HU = 0, 150
ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]  # fmt: skip


def make_mask(shape):
    """Return two boxes that no flip, swap or rotation maps onto themselves."""
    mask = np.zeros(shape, dtype=bool)
    mask[2:9, 3:6, 4:12] = True
    mask[12:18, 8:16, 6:8] = True
    return mask


def make_image(mask):
    rng = np.random.default_rng(0)
    return (np.where(mask, FOREGROUND_HU, BACKGROUND_HU) + rng.integers(-20, 20, mask.shape)).astype(np.int16)


@pytest.fixture
def infer(tmp_path):
    return partial(infer_with_oracle, tmp_path, check_hu=False)  # there is no air around the boxes


def save_nifti(path, array, affine=None, sform_code=1, qform_code=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag((*SPACING_MM, 1)) if affine is None else affine)
    image.set_sform(image.affine, sform_code)
    image.set_qform(image.affine, qform_code)
    nib.save(image, path)
    return path


def make_oblique_affine():
    angle = np.deg2rad(20)
    turn_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turn_x = np.array(
        [[1, 0, 0], [0, np.cos(angle / 2), -np.sin(angle / 2)], [0, np.sin(angle / 2), np.cos(angle / 2)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag(SPACING_MM)
    affine[:3, 3] = (-40.25, 17.5, 333.125)
    return affine


def test_every_voxel_returns_to_where_it_came_from_in_all_48_axis_orders_and_an_oblique_one(tmp_path, infer):
    ras_mask = make_mask((24, 20, 16))
    ras = nib.Nifti1Image(ras_mask.astype(np.uint8), np.diag((*SPACING_MM, 1)) + np.eye(4, k=3) * 7.5)
    masks = {}
    for codes in ORIENTATIONS:
        to = nib.orientations.axcodes2ornt(codes)
        reoriented = ras.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(ras.affine), to))
        assert "".join(nib.aff2axcodes(reoriented.affine)) == codes
        masks[codes] = np.asarray(reoriented.dataobj).astype(bool)
        save_nifti(tmp_path / "in" / f"{codes}.nii.gz", make_image(masks[codes]), reoriented.affine)
    masks["oblique"] = ras_mask
    save_nifti(tmp_path / "in" / "oblique.nii.gz", make_image(ras_mask), make_oblique_affine())
    assert len(masks) == 49

    out = infer(tmp_path / "in", preview=False)
    for name, mask in masks.items():
        image, result = nib.load(tmp_path / "in" / f"{name}.nii.gz"), nib.load(out / f"{name}_seg.nii.gz")
        assert np.array_equal(result.affine, image.affine), name
        assert np.array_equal(np.asarray(result.dataobj), mask), name


def test_a_mask_that_was_resampled_lies_on_its_image(tmp_path, infer):
    spacing_mm, shape = np.array([0.8, 0.8, 2.5]), (72, 60, 32)  # the network sees 1.5 x 1.5 x 1 mm
    positions_mm = np.indices(shape).transpose(1, 2, 3, 0) * spacing_mm
    radii_mm = np.linalg.norm(positions_mm - (20.3, 24.1, 42.7), axis=-1)
    mask = radii_mm < 14
    image = FOREGROUND_HU / (1 + np.exp(radii_mm - 14))  # a ball with a soft border: no rounding to the coarser voxels
    affine = make_oblique_affine() @ np.diag((*spacing_mm / SPACING_MM, 1))
    save_nifti(tmp_path / "ct.nii.gz", image.astype(np.float32), affine)
    oracle = {"_target_": "tests.oracle.ThresholdOracle", "threshold": 75 / 200, "sharpness": 2.0}
    out = infer(tmp_path / "ct.nii.gz", network_def=oracle, probabilities=True)
    found = np.asarray(nib.load(out / "ct_seg.nii.gz").dataobj).astype(bool)
    assert found.shape == mask.shape
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.97
    np.testing.assert_allclose(np.argwhere(found).mean(axis=0), np.argwhere(mask).mean(axis=0), atol=0.05)
    probability = nib.load(out / "ct_probability.nii.gz")
    np.testing.assert_allclose(probability.affine, affine, atol=1e-5)
    likely = np.asarray(probability.dataobj) > 0.5
    assert likely.shape == mask.shape
    assert 2 * (likely & mask).sum() / (likely.sum() + mask.sum()) > 0.97


@pytest.mark.parametrize("kind", ["full disk", "file for a folder"])
def test_why_a_mask_cannot_be_written_is_said_in_one_line(tmp_path, infer, monkeypatch, kind):
    save_nifti(tmp_path / "in/deep/ct.nii.gz", make_image(make_mask((24, 20, 16))))
    if kind == "full disk":
        monkeypatch.setattr(nib, "save", fail_as_a_full_disk)
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/deep").touch()
    with pytest.raises(Exception) as caught:
        infer(tmp_path / "in", preview=False)
    reason = "the disk is full; free some space" if kind == "full disk" else "; give another place"
    assert re.search(f"^{tmp_path}/out/deep.*: cannot be written.*{reason}", str(find_input_error(caught.value)))


def fail_as_a_full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "sform_code, qform_code, name", [(1, 1, "ct.nii"), (4, 0, "ct.nii"), (0, 1, "ct.nii"), (2, 1, "ct.NII.GZ")]
)
def test_a_nifti_mask_has_the_header_of_its_image(tmp_path, infer, sform_code, qform_code, name):
    mask = make_mask((24, 20, 16))
    image = nib.Nifti1Image(make_image(mask), np.diag((*SPACING_MM, 1)))
    image.set_sform(image.affine, sform_code)
    image.set_qform(image.affine, qform_code)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2, -300)  # stored values differ from HU
    image.header["descrip"] = image.header["data_type"] = b"Doe^Jane"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane 4711"))
    image = nib.Nifti1Image(make_image(mask), None, image.header)
    nib.save(image, tmp_path / name)
    source, result = nib.load(tmp_path / name), nib.load(infer(tmp_path / name, preview=False) / "ct_seg.nii.gz")
    assert (int(result.header["sform_code"]), int(result.header["qform_code"])) == (sform_code, qform_code)
    for field in ("pixdim", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        assert np.array_equal(result.header[field], source.header[field]), field
    assert result.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(result.dataobj), mask)
    assert b"Doe^Jane" not in gzip.decompress((tmp_path / "out/ct_seg.nii.gz").read_bytes())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_each_format_gives_a_mask_on_the_grid_that_itk_reads(tmp_path, infer, suffix):
    mask = make_mask((24, 20, 16))
    image = itk.image_from_array(np.ascontiguousarray(make_image(mask).transpose(2, 1, 0)))
    image.SetSpacing(SPACING_MM)
    image.SetOrigin((10.5, -20.25, 300.0))
    image.SetDirection(itk.matrix_from_array(np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])))
    itk.imwrite(image, str(tmp_path / f"ct{suffix}"))
    result = itk.imread(str(infer(tmp_path / f"ct{suffix}", preview=False) / "ct_seg.nii.gz"))
    assert np.array_equal(itk.array_from_image(result).transpose(2, 1, 0), mask)
    np.testing.assert_allclose(result.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(result.GetSpacing(), image.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(
        itk.array_from_matrix(result.GetDirection()), itk.array_from_matrix(image.GetDirection()), atol=1e-6
    )


def test_volumes_previews_and_probabilities_are_written(tmp_path, infer):
    mask = make_mask((24, 20, 16))
    save_nifti(tmp_path / "in" / "a.nii.gz", make_image(mask))
    save_nifti(tmp_path / "in" / "sub" / "a.nii.gz", make_image(np.zeros_like(mask)))
    out = infer(tmp_path / "in", probabilities="true")
    voxels = 7 * 3 * 8 + 6 * 8 * 2
    with open(out / "volumes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["liver_voxels"]) for row in rows] == [voxels, 0]
    assert float(rows[0]["liver_ml"]) == pytest.approx(voxels * 1.5 * 1.5 * 1.0 / 1000, abs=1e-3)
    assert [row["mask"] for row in json.loads((out / "volumes.json").read_text(encoding="utf-8"))] == [
        row["mask"] for row in rows
    ]
    for folder in (out, out / "sub"):
        assert (folder / "a_seg.png").stat().st_size > 10_000
        probability = nib.load(folder / "a_probability.nii.gz")
        assert probability.get_data_dtype() == np.float32
        expected = np.asarray(nib.load(folder / "a_seg.nii.gz").dataobj)
        np.testing.assert_allclose(np.asarray(probability.dataobj), expected, atol=1e-3)
    assert len([path for path in out.rglob("*") if path.is_file()]) == 11  # with the manifest and two records


def test_a_liver_that_the_border_of_the_image_cuts_off_is_said_to_be(tmp_path, infer, monkeypatch):
    mask = make_mask((24, 20, 16))
    save_nifti(tmp_path / "in" / "a.nii.gz", make_image(mask))
    mask[8:12, 8:12] = True  # from the first slice to the last
    save_nifti(tmp_path / "in" / "b.nii.gz", make_image(mask))
    said = []
    monkeypatch.setattr(inference.logger, "info", lambda text, *values: said.append(text % values))
    out = infer(tmp_path / "in", preview=False)
    with open(out / "volumes.csv", encoding="utf-8", newline="") as file:
        assert [row["cut_off"] for row in csv.DictReader(file)] == ["False", "True"]
    assert ["cut off by the image's border" in message for message in said] == [False, True]


def test_no_preview_and_no_probabilities_are_written_unless_wanted(tmp_path, infer):
    save_nifti(tmp_path / "a.nii.gz", make_image(make_mask((24, 20, 16))))
    out = infer(tmp_path / "a.nii.gz", preview="false")
    assert sorted(path.name for path in out.iterdir()) == [
        "a_seg.nii.gz",
        "inference_manifest.json",
        "records",
        "volumes.csv",
        "volumes.json",
    ]


def test_an_image_of_nothing_but_air_gets_an_empty_mask(tmp_path, infer):
    save_nifti(tmp_path / "air.nii.gz", np.full((20, 20, 20), -1000, dtype=np.int16))
    mask = nib.load(infer(tmp_path / "air.nii.gz") / "air_seg.nii.gz")
    assert mask.shape == (20, 20, 20)
    assert not np.asarray(mask.dataobj).any()


def save_dicom_series(folder, volume_hu, series, spacing_mm=SPACING_MM):
    """Write ``volume_hu`` (X, Y, Z) as one DICOM file per slice, the files named in reversed order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(volume_hu.shape[2]):
        image = itk.image_from_array(np.ascontiguousarray(volume_hu[:, :, index].T)[None].astype(np.int16))
        image.SetSpacing(spacing_mm)
        image.SetOrigin((0, 0, index * spacing_mm[2]))
        tags = {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.2.{series}", "0020|0052": "1.2.826.0.1.3680043.2.1125.3",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.4.{series}.{index + 1}", "0020|0013": str(index + 1),
            "0020|0032": rf"0\0\{index * spacing_mm[2]}", "0020|0037": r"1\0\0\0\1\0",
            "0008|0021": "20200101", "0018|0050": str(spacing_mm[2]),
        }  # fmt: skip
        dictionary = image.GetMetaDataDictionary()
        for tag, value in tags.items():
            dictionary[tag] = value
        gdcm = itk.GDCMImageIO.New()
        gdcm.KeepOriginalUIDOn()
        itk.imwrite(image, str(folder / f"{series}-{volume_hu.shape[2] - index:03d}.dcm"), imageio=gdcm)


def test_a_dicom_series_gives_a_mask_on_the_grid_that_itk_reads(tmp_path, infer):
    mask = make_mask((24, 20, 16))
    save_dicom_series(tmp_path / "study" / "1.2.3", make_image(mask), series=1)
    save_dicom_series(tmp_path / "study" / "1.2.4", make_image(mask[::-1]), series=2)
    out = infer(tmp_path / "study", preview=False)
    for name, expected in (("1.2.3", mask), ("1.2.4", mask[::-1])):
        source, result = itk.imread(str(tmp_path / "study" / name)), itk.imread(str(out / f"{name}_seg.nii.gz"))
        assert np.array_equal(itk.array_from_image(result).transpose(2, 1, 0), expected)
        np.testing.assert_allclose(result.GetOrigin(), source.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(result.GetSpacing(), source.GetSpacing(), atol=1e-6)


def test_a_dicom_folder_given_itself_is_one_image_beside_whose_name_outputs_are_named(tmp_path, infer):
    save_dicom_series(tmp_path / "series", make_image(make_mask((24, 20, 16))), series=1)
    out = infer(tmp_path / "series", preview=False)
    assert (out / "series_seg.nii.gz").is_file()


def test_the_list_of_what_is_on_a_disc_is_no_image(tmp_path, infer):
    save_dicom_series(tmp_path / "disc/series", make_image(make_mask((24, 20, 16))), series=1)
    shutil.copyfile(next((tmp_path / "disc/series").iterdir()), tmp_path / "disc/DICOMDIR")
    assert find_images(tmp_path / "disc") == [{"image": str(tmp_path / "disc/series")}]
    assert (infer(tmp_path / "disc", preview=False) / "series_seg.nii.gz").is_file()


def test_a_dicom_series_that_does_not_say_its_modality_is_taken(tmp_path, infer):
    hu = np.full((24, 20, 16), -1000, np.int16)
    hu[4:20, 4:16, 4:12] = 40
    save_dicom_series(tmp_path / "series", hu, series=1)
    for file in (tmp_path / "series").iterdir():
        content = file.read_bytes()
        assert content.count(b"\x08\x00\x60\x00\x02\x00\x00\x00CT") == 1  # tag, length and value
        file.write_bytes(content.replace(b"\x60\x00\x02\x00\x00\x00CT", b"\x60\x00\x00\x00\x00\x00"))
    assert (infer(tmp_path / "series", check_hu=True, preview=False) / "series_seg.nii.gz").is_file()


def test_a_folder_that_must_not_be_looked_into_is_named(tmp_path, infer, monkeypatch):
    (tmp_path / "closed").mkdir()

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inference.Path, "iterdir", refuse)
    assert find_images(tmp_path / "closed") == [{"image": str(tmp_path / "closed")}]
    assert inference.images_root(tmp_path / "closed") == str(tmp_path)
    monkeypatch.undo()
    (tmp_path / "closed" / "1.dcm").touch()
    monkeypatch.setattr(inference.Path, "lstat", refuse)  # names may be read, and nothing else
    assert find_images(tmp_path / "closed") == [{"image": str(tmp_path / "closed")}]


def test_folders_with_parts_of_one_series_are_named(tmp_path, caplog):
    hu = make_image(make_mask((24, 20, 16)))
    save_dicom_series(tmp_path / "a", hu[..., :8], series=1)
    save_dicom_series(tmp_path / "b", hu[..., 8:], series=1)
    save_dicom_series(tmp_path / "c", hu, series=2)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM, damaged")
    assert len(find_images(tmp_path)) == 4
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}/a and {tmp_path}/b: have files of one DICOM series, and each ")


@pytest.mark.parametrize("written, inside", [(".", "."), ("..", "deep")])
def test_the_folder_that_one_is_in_has_a_name_in_its_outputs(tmp_path, monkeypatch, written, inside):
    save_dicom_series(tmp_path / "series", make_image(make_mask((24, 20, 16))), series=1)
    (tmp_path / "series/deep").mkdir()
    monkeypatch.chdir(tmp_path / "series" / inside)
    assert find_images(written) == [{"image": str(tmp_path / "series")}]
    assert inference.images_root(written) == str(tmp_path)


def test_a_dicom_folder_of_two_series_is_refused_unless_one_is_chosen(tmp_path, infer):
    mask = make_mask((24, 20, 16))
    save_dicom_series(tmp_path / "mixed", make_image(mask), series=1)
    save_dicom_series(tmp_path / "mixed", make_image(mask[:, :, ::-1])[:, :, :12], series=2)
    message = input_error_of(infer, tmp_path / "mixed")
    assert "mixed: holds 2 DICOM series; choose one by --series: " in message
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    chosen = next(word for word in message.split("--series: ")[1].split(", ") if "(12 files of CT)" in word)
    chosen = chosen.split(" ")[0]
    result = nib.load(infer(tmp_path / "mixed", series=chosen, preview=False) / "mixed_seg.nii.gz")
    assert result.shape == (24, 20, 12)
    assert "has no DICOM series 9.9; it has " in input_error_of(infer, tmp_path / "mixed", series="9.9")


def truncated(path):
    save_nifti(path, np.random.default_rng(0).integers(-100, 100, (40, 40, 40)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:5000])
    return path


def with_nan(path):
    array = make_image(make_mask((24, 20, 16))).astype(np.float32)
    array[3, 4, 5] = np.nan
    return save_nifti(path, array)


BAD_IMAGES = {
    "a truncated file": (truncated, "ct.nii.gz: cannot be read (EOFError: Compressed file ended"),
    "a 2D image": (lambda p: save_nifti(p, np.zeros((30, 30), np.int16)), "ct.nii.gz: is a 2D image of shape (30, 30)"),
    "one slice": (lambda p: save_nifti(p, np.zeros((30, 30, 1), np.int16)), "ct.nii.gz: is a 2D image of shape"),
    "a 4D image": (
        lambda p: save_nifti(p, np.zeros((9, 9, 9, 3), np.int16)),
        "ct.nii.gz: is a 4D image of shape (9, 9, 9, 3); give one 3D volume",
    ),
    "NaN voxels": (with_nan, "ct.nii.gz: has NaN or infinite voxels; replace them (air is -1000 HU)"),
    "text": (lambda p: p.write_text("hello", encoding="utf-8"), "ct.nii.gz: cannot be read"),
}


def with_header(offset, form, *values):
    """A sound file but for some bytes of its header."""

    def make(path):
        save_nifti(path.with_name("ct.nii"), make_image(make_mask((24, 20, 16))))
        content = bytearray(path.with_name("ct.nii").read_bytes())
        struct.pack_into(form, content, offset, *values)
        path.with_name("ct.nii").unlink()
        path.write_bytes(gzip.compress(bytes(content)))

    return make


def of_type(dtype):
    return lambda path: save_nifti(path, np.zeros((24, 20, 16), dtype))


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_IMAGES |= {
    "complex numbers": (of_type(np.complex64), "ct.nii.gz: holds complex64 voxels, not numbers; convert it to HU"),
    "colours": (of_type(RGB), "voxels, not numbers; convert it to HU"),
    "an affine of NaN": (with_header(280, "<4f", math.nan, 0, 0, 0), "ct.nii.gz: its header gives no voxel size"),
    "an affine of zeros": (with_header(280, "<12f", *[0] * 12), "ct.nii.gz: its header gives no voxel size"),
    "sizes below zero": (with_header(40, "<4h", 3, -24, 20, 16), "ct.nii.gz: cannot be read"),
    "sizes of terabytes": (with_header(40, "<4h", 3, 32000, 32000, 32000), "ct.nii.gz: cannot be read"),
    "an unknown type of numbers": (with_header(70, "<h", 999), "ct.nii.gz: cannot be read"),
    "another magic": (with_header(344, "<4s", b"xxxx"), "ct.nii.gz: cannot be read"),
}
NOT_HU = {
    "nothing but one number": (lambda hu: 0 * hu, "every voxel is 0; it holds no scan"),
    "HU + 1024": (lambda hu: hu + 1024, "no voxel is under -200 HU (they are 24 to 1184); it looks like HU + 1024"),
    "HU wrapped to unsigned": (lambda hu: hu.astype(np.uint16), "no voxel is under -200 HU"),
    "an MR's numbers": (lambda hu: np.abs(3 * hu), "no voxel is under -200 HU"),
    "bone and air alone": (
        lambda hu: np.where(hu < 0, -1000, 700).astype(np.int16),
        "hardly any voxel is soft tissue (-100 to 200 HU)",
    ),
    "HU + 1024 with a margin far below air": (
        lambda hu: np.pad(hu[:-1, :, :] + 1024, ((1, 0), (0, 0), (0, 0)), constant_values=-2000),
        "20% of the voxels are over 800 HU; it looks like HU + 1024",  # 16 * 12 * 8 of 24 * 20 * 16
    ),
}


@pytest.mark.parametrize("kind", NOT_HU)
def test_what_is_no_ct_in_hu_is_refused_unless_told_otherwise(tmp_path, infer, kind):
    change, expected = NOT_HU[kind]
    hu = np.full((24, 20, 16), -1000, np.int16)
    hu[4:20, 4:16, 4:12] = 40
    hu[8:12, 6:12, 6:10] = 160
    save_nifti(tmp_path / "ct.nii.gz", change(hu))
    message = input_error_of(infer, tmp_path / "ct.nii.gz", check_hu="true")
    assert f"ct.nii.gz: {expected}" in message
    assert message.endswith(", or give --check_hu false")
    assert (infer(tmp_path / "ct.nii.gz") / "ct_seg.nii.gz").is_file()


def test_a_ct_in_hu_is_taken(tmp_path, infer):
    hu = np.full((24, 20, 16), -1000, np.int16)
    hu[4:20, 4:16, 4:12] = 40
    save_nifti(tmp_path / "ct.nii.gz", hu)
    assert (infer(tmp_path / "ct.nii.gz", check_hu=True) / "ct_seg.nii.gz").is_file()


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named_and_leaves_nothing_behind(tmp_path, infer, kind):
    make, expected = BAD_IMAGES[kind]
    make(tmp_path / "ct.nii.gz")
    assert expected in input_error_of(infer, tmp_path / "ct.nii.gz")
    assert not list((tmp_path / "out").glob("*.nii*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize("target, left", [("liver", "larger"), ("tumor", "both")])
def test_the_largest_component_alone_is_kept_if_asked_but_never_of_tumours(tmp_path, infer, target, left):
    mask = make_mask((24, 20, 16))
    save_nifti(tmp_path / "ct.nii.gz", make_image(mask))
    out = infer(tmp_path / "ct.nii.gz", largest_component="true", target=target)
    expected = mask.copy()
    if left == "larger":
        expected[12:18] = False  # 96 voxels against 168
    np.testing.assert_array_equal(np.asarray(nib.load(out / "ct_seg.nii.gz").dataobj) > 0, expected)


def test_bad_images_in_a_folder_are_named_and_the_others_are_segmented(tmp_path, infer):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.nii.gz", "c.nii.gz"):
        save_nifti(folder / name, make_image(make_mask((24, 20, 16))))
    truncated(folder / "b.nii.gz")
    save_nifti(folder / "d.nii.gz", np.zeros((30, 30), np.int16))
    message = input_error_of(infer, folder)
    out = tmp_path / "out"
    assert message.startswith(f"2 of 4 images were not segmented, see {out}/failed.csv; the first: ")
    assert "b.nii.gz: cannot be read (EOFError: " in message
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    with open(out / "volumes.csv", encoding="utf-8", newline="") as file:
        assert [row["image"].rpartition("/")[2] for row in csv.DictReader(file)] == ["a.nii.gz", "c.nii.gz"]
    with open(out / "failed.csv", encoding="utf-8", newline="") as file:
        failed = list(csv.DictReader(file))
    assert [row["image"].rpartition("/")[2] for row in failed] == ["b.nii.gz", "d.nii.gz"]
    assert "is a 2D image of shape (30, 30)" in failed[1]["reason"]
    for name in ("b.nii.gz", "d.nii.gz"):
        (folder / name).unlink()
    infer(folder)
    assert not (out / "failed.csv").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_if_no_image_can_be_read_they_are_in_the_table_too(tmp_path, infer, count):
    files = [truncated(tmp_path / f"scans/{number}.nii.gz") for number in range(count)]
    message = input_error_of(infer, files[0] if count == 1 else tmp_path / "scans")
    with open(tmp_path / "out/failed.csv", encoding="utf-8", newline="") as file:
        failed = list(csv.DictReader(file))
    assert [row["image"] for row in failed] == list(map(str, files))
    found = f"2 of 2 images were not segmented, see {tmp_path}/out/failed.csv; the first: "
    assert message == (found if count == 2 else "") + failed[0]["reason"]


def test_of_one_image_the_windows_are_counted_with_the_time_left_of_several_the_images(tmp_path, infer, capsys):
    folder = tmp_path / "scans"
    for name in ("a.nii.gz", "c.nii.gz"):
        save_nifti(folder / name, make_image(make_mask((24, 20, 16))))
    infer(folder / "a.nii.gz", preview=False)
    assert "1/1 [" in capsys.readouterr().err
    truncated(folder / "b.nii.gz")
    assert "1 of 3 images" in input_error_of(infer, folder, preview=False)
    shown = capsys.readouterr().err
    assert "images: 100%" in shown and "3/3 [" in shown
    assert "1/1 [" not in shown


def test_a_coarse_pass_gives_the_same_mask(tmp_path, infer):
    mask = make_mask((72, 60, 32))
    save_nifti(tmp_path / "ct.nii.gz", make_image(mask))
    out = infer(tmp_path / "ct.nii.gz", preview=False, coarse_pass="true", coarse_margin=4, roi_size=[16, 16, 16])
    np.testing.assert_array_equal(np.asarray(nib.load(out / "ct_seg.nii.gz").dataobj) > 0, mask)


def test_a_client_that_runs_transforms_and_inferer_by_itself_gets_the_mask_on_the_images_grid(tmp_path):
    mask = make_mask((24, 20, 16))
    path = save_nifti(tmp_path / "ct.nii.gz", make_image(mask)[::-1], np.diag((-1.5, 1.5, 1.0, 1)))
    config = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs/inference.json")]))
    config.update({"device": "cpu", "roi_size": [32, 32, 32], "dataset_dir": "unused", "check_hu": False})
    config["ckpt_path"] = str(tmp_path / "none.pt")
    data = {"image": str(path), "image_path": str(path)}  # as MONAI Label: no batches, SaveImaged taken out
    for transform in config.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    with torch.no_grad():
        oracle = ThresholdOracle(threshold=75 / 200).eval()
        data["pred"] = config.get_parsed_content("inferer")(data["image"][None], oracle)[0]
    for transform in config.get_parsed_content("postprocessing").transforms:
        data = data if isinstance(transform, SaveImaged) else transform(data)
    assert data["pred"].shape == (1, 24, 20, 16)
    np.testing.assert_array_equal(np.asarray(data["pred"])[0] > 0, mask[::-1])
    np.testing.assert_allclose(data["pred"].affine, nib.load(path).affine)


def test_missing_inputs_and_weights_are_named(tmp_path, infer):
    assert "nowhere: no such file or folder; give an image" in input_error_of(infer, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty: no images found; looked for .nii, .nii.gz, .nrrd" in input_error_of(infer, tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    assert "notes.txt: not an image file that can be segmented" in input_error_of(infer, tmp_path / "notes.txt")
    save_nifti(tmp_path / "ct.nii.gz", make_image(make_mask((24, 20, 16))))
    message = input_error_of(infer, tmp_path / "ct.nii.gz", ckpt_path=str(tmp_path / "model.pt"))
    assert "model.pt: no such file; train first, convert released weights to it, or give other weights" in message


def test_images_whose_masks_would_overwrite_each_other_are_refused(tmp_path):
    for name in ("ct.nii.gz", "ct.mha"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"ct\.nii\.gz: its mask would have the same name as that of ct\.mha"):
        find_images(tmp_path)


def test_images_are_found_in_subfolders_and_hidden_files_are_not(tmp_path):
    for name in ("b.nii", "a/c.MHA", "a/.hidden.nii", "a/notes.txt", "._b.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [{"image": str(tmp_path / "b.nii")}, {"image": str(tmp_path / "a/c.MHA")}]


def test_linked_folders_are_searched_once_and_hidden_ones_are_not(tmp_path):
    for name in ("archive/p1/s1/a.nii", "archive/p1/s2/b.nii", "cohort/p2/c.nii", "cohort/.trash/d.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cohort/p1").symlink_to(tmp_path / "archive/p1")
    (tmp_path / "cohort/p2/loop").symlink_to(tmp_path / "cohort")
    found = [item["image"].removeprefix(f"{tmp_path}/cohort/") for item in find_images(tmp_path / "cohort")]
    assert found == ["p1/s1/a.nii", "p1/s2/b.nii", "p2/c.nii"]


def test_masks_of_an_earlier_run_are_not_taken_for_images(tmp_path):
    for name in ("ct.nii", "out/ct_seg.nii.gz", "out/sub/b_seg.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path, output_dir=tmp_path / "out") == [{"image": str(tmp_path / "ct.nii")}]
    assert len(find_images(tmp_path)) == 3


def test_masks_may_be_written_above_the_images_but_not_among_them(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "ct.nii").touch()
    assert find_images(scans, output_dir=tmp_path) == [{"image": str(scans / "ct.nii")}]
    with pytest.raises(InputError, match="scans: is --output_dir too, where masks would be taken for images; give an"):
        find_images(scans, output_dir=tmp_path / "other/../scans")
    assert find_images(scans / "ct.nii", output_dir=scans) == [{"image": str(scans / "ct.nii")}]


@pytest.mark.parametrize(
    "path, name", [("x/ct.nii.gz", "ct"), ("ct.1.nii", "ct.1"), ("x/1.2.840/", "1.2.840"), ("CT.MHA", "CT")]
)
def test_outputs_are_named_by_the_image_without_its_suffix_alone(path, name):
    assert output_name(path) == name


REAL_CT = ROOT.parent / "shared/data/real_abdominal_ct"


@pytest.mark.skipif(not REAL_CT.is_dir(), reason="the real series is not part of the bundle")
def test_a_real_compressed_dicom_series_gives_a_mask_on_exactly_its_grid(infer):
    out = infer(REAL_CT / "dicom", roi_size=[160, 160, 64])
    source, result = itk.imread(str(REAL_CT / "dicom")), itk.imread(str(out / "dicom_seg.nii.gz"))
    assert result.GetLargestPossibleRegion().GetSize() == source.GetLargestPossibleRegion().GetSize()
    np.testing.assert_allclose(result.GetOrigin(), source.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(result.GetSpacing(), source.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(
        itk.array_from_matrix(result.GetDirection()), itk.array_from_matrix(source.GetDirection()), atol=1e-6
    )
    bright = itk.array_from_image(source) > 75
    found = itk.array_from_image(result).astype(bool)
    assert 2 * (bright & found).sum() / (bright.sum() + found.sum()) > 0.85  # noise is smoothed by resampling
