"""A DICOM series is one even stack of slices, read to where it lies, or is refused in one line."""

import itk
import numpy as np
import pytest
from monai.transforms import EnsureChannelFirst, LoadImage

from scripts.errors import InputError, find_input_error
from scripts.scans import ScanReader, is_dicom, read_dicom_series
from tests.dicoms import CT_CLASS, JPEG, JPEG_2000, ROOT_UID, as_run_lengths, write_series

SHAPE = (12, 10, 6)
HU = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def load(folder, series=""):
    return LoadImage(reader=ScanReader(series), image_only=True)(folder)


def make_affine(row, column, step_mm, start_mm=(0, 0, 0), spacing_mm=1.5):
    """Voxel (column, row, slice) → RAS mm by the definition of DICOM's tags."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([np.multiply(row, spacing_mm), np.multiply(column, spacing_mm), step_mm, start_mm])
    return LPS_TO_RAS @ affine


def assert_is(image, hu, affine):
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(image, hu)


DIRECTIONS = {  # row, column, normal
    "feet up": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "column cosine negative": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "row cosine negative": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "both negative": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "on the side": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "oblique": ((0.8, 0.6, 0), (-0.6, 0.8, 0), (0, 0, 1)),
}


@pytest.mark.parametrize("along", [1, -1], ids=["along the normal", "against it"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_slices_of_any_direction_and_order_lie_where_their_tags_say(tmp_path, direction, along):
    row, column, normal = DIRECTIONS[direction]
    start_mm, step_mm = (7, -3, 11), np.multiply(normal, 2.5 * along)
    write_series(tmp_path, HU, step_mm=step_mm, start_mm=start_mm, axes=(*row, *column))
    image = load(tmp_path)
    if along == 1:
        assert_is(image, HU, make_affine(row, column, step_mm, start_mm))
    else:  # read along the normal: from the other end
        other_end_mm = np.add(start_mm, np.multiply(step_mm, SHAPE[2] - 1))
        assert_is(image, HU[:, :, ::-1], make_affine(row, column, -step_mm, other_end_mm))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_negative_distance_of_slices_does_not_turn_the_scan_over(tmp_path, direction):
    row, column, normal = DIRECTIONS[direction]
    step_mm = np.multiply(normal, 2.5)
    write_series(tmp_path, HU, step_mm=step_mm, axes=(*row, *column), tags={"0018|0088": "-2.5"})
    assert_is(load(tmp_path), HU, make_affine(row, column, step_mm))


def test_slices_of_a_tilted_gantry_are_a_sheared_volume_and_not_a_straight_one(tmp_path, caplog):
    write_series(tmp_path, HU, step_mm=(0, 0.7, 2))
    assert_is(load(tmp_path), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0.7, 2)))
    assert "its slices are tilted; the mask has a sheared affine" in caplog.text


def test_positions_that_are_rounded_are_a_straight_volume(tmp_path):
    write_series(tmp_path, HU, step_mm=(0.001, 0, 0.625))
    direction = itk.array_from_matrix(read_dicom_series(tmp_path).GetDirection())
    np.testing.assert_array_equal(direction, np.eye(3))


def recode(file, syntax):
    """Write a DICOM file again in another transfer syntax."""
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.dcmread(file)
    if syntax == "JPEGLSLossless":
        header.compress(pydicom.uid.JPEGLSLossless)
        header.save_as(file)
        return
    header.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    header["PixelData"].VR = "OW"
    little = syntax != "ExplicitVRBigEndian"
    pydicom.dcmwrite(file, header, implicit_vr=False, little_endian=little)
    if not little:
        content, count = file.read_bytes(), len(header.PixelData)
        file.write_bytes(content[:-count] + np.frombuffer(content[-count:], "<i2").astype(">i2").tobytes())


@pytest.mark.parametrize("syntax", ["JPEGLSLossless", "DeflatedExplicitVRLittleEndian", "ExplicitVRBigEndian"])
def test_slices_in_other_transfer_syntaxes_are_read_to_the_voxel(tmp_path, syntax):
    for file in write_series(tmp_path, HU):
        recode(file, syntax)
    assert_is(load(tmp_path), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


@pytest.mark.parametrize("kind", ["JPEG lossless", "JPEG 2000", "run lengths"])
def test_compressed_slices_are_read_to_the_voxel(tmp_path, kind):
    files = write_series(tmp_path, HU, compression=JPEG if kind == "JPEG lossless" else JPEG_2000)
    if kind == "run lengths":
        for index, file in enumerate(files):
            as_run_lengths(file, HU[:, :, index])
    assert_is(load(tmp_path), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_a_scout_and_other_objects_beside_the_ct_are_left_out(tmp_path):
    write_series(tmp_path, HU)
    scout = {"0008|0008": r"ORIGINAL\PRIMARY\LOCALIZER"}
    write_series(tmp_path, HU[:, :, :1], series=2, tags=scout, axes=(1, 0, 0, 0, 0, -1))
    same_series = scout | {"0020|000e": f"{ROOT_UID}.2.1"}
    write_series(tmp_path, HU[:, :, :1], series=3, start_mm=(0, 0, 99), tags=same_series)
    write_series(tmp_path, HU[:, :, :2], series=4, tags={"0008|0060": "PT"})
    assert_is(load(tmp_path), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


SCOUT_PLANES = {"coronal": (1, 0, 0, 0, 0, -1), "sagittal": (0, 1, 0, 0, 0, -1)}


@pytest.mark.parametrize(("planes", "height_mm"), [(("coronal",), 102), (("coronal", "sagittal"), 150)])
def test_scouts_in_the_series_do_not_turn_slices_over_that_are_numbered_from_the_head(tmp_path, planes, height_mm):
    write_series(tmp_path, HU, step_mm=(0, 0, -1), start_mm=(0, 0, 105))
    scout = {"0008|0008": r"ORIGINAL\PRIMARY\LOCALIZER", "0020|000e": f"{ROOT_UID}.2.1"}
    for number, plane in enumerate(planes):
        place = {"start_mm": (0, 0, height_mm), "axes": SCOUT_PLANES[plane]}
        write_series(tmp_path, HU[:, :, :1], series=7 + number, tags=scout, **place)
    assert_is(load(tmp_path), HU[:, :, ::-1], make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 100)))


@pytest.mark.parametrize("name", ["identifier", "uid"])
def test_one_of_several_series_is_chosen_by_its_listed_identifier_or_its_uid(tmp_path, name):
    write_series(tmp_path, HU)
    write_series(tmp_path, HU[::-1], series=2)
    with pytest.raises(
        InputError, match=r"holds 2 DICOM series; choose one by --series: (\S+) \(6 files of CT\)"
    ) as error:
        read_dicom_series(tmp_path)
    identifiers = str(error.value).split("--series: ")[1].split(" (6 files of CT)")
    chosen = {"identifier": identifiers[1].removeprefix(", "), "uid": f"{ROOT_UID}.2.2"}[name]
    assert_is(load(tmp_path, chosen), HU[::-1], make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_a_screen_that_calls_itself_ct_is_left_out(tmp_path):
    write_series(tmp_path, HU)
    for number in range(2):
        (shot,) = write_series(tmp_path / "shots", HU[:, :, :1], series=5 + number)
        content = shot.read_bytes().replace(b"\x20\x00\x32\x00", b"\x20\x00\x31\x00")
        shot.rename(tmp_path / f"shot-{number}.dcm").write_bytes(content)
    assert_is(load(tmp_path), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


@pytest.mark.parametrize("chosen", ["", f"{ROOT_UID}.2.1"])
def test_a_series_whose_slices_differ_in_the_text_of_their_thickness_is_one(tmp_path, chosen):
    for index in range(SHAPE[2]):
        thickness = {"0018|0050": "1" if index % 2 else "1.0"}
        write_series(
            tmp_path, HU[:, :, index : index + 1], first_number=index + 1, start_mm=(0, 0, index), tags=thickness
        )
    assert_is(load(tmp_path, chosen), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_kinds_of_slices_in_one_series_that_are_no_stack_are_to_be_chosen_from(tmp_path):
    write_series(tmp_path, HU[:, :, :3])
    write_series(tmp_path, HU[:, :, 3:], first_number=4, start_mm=(0, 0, 9), tags={"0018|0050": "1.0"})
    with pytest.raises(InputError, match="holds 2 DICOM series; choose one by --series"):
        read_dicom_series(tmp_path)


def mixed_directions(folder):
    write_series(folder, HU[:, :, :3])
    write_series(folder, HU[:, :, 3:], first_number=4, start_mm=(0, 0, 3), axes=(0, 1, 0, -1, 0, 0))


def one_off_the_line(folder):
    write_series(folder, HU[:, :, :2])
    write_series(folder, HU[:, :, 2:3], first_number=3, start_mm=(1, 0, 2))
    write_series(folder, HU[:, :, 3:], first_number=4, start_mm=(0, 0, 3))


def twice(folder):
    write_series(folder, HU)
    write_series(folder, HU[:, :, 2:3], first_number=9, start_mm=(0, 0, 2))


def two_distances(folder):
    write_series(folder, HU)
    write_series(folder, HU, first_number=7, start_mm=(0, 0, 5 + 2), step_mm=(0, 0, 2))


def last_truncated(folder):
    file = write_series(folder, HU)[-1]
    file.write_bytes(file.read_bytes()[:-100])


def all_truncated(folder):
    for file in write_series(folder, HU):
        file.write_bytes(file.read_bytes()[:400])


def not_decodable(folder):
    for file in write_series(folder, HU, compression=JPEG_2000):
        file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.80"))


def without(tag, other):
    """Write a series whose ``tag`` is another, of no meaning."""

    def write(folder):
        for file in write_series(folder, HU):
            content = file.read_bytes()
            assert content.count(tag) == 1
            file.write_bytes(content.replace(tag, other))

    return write


def frames(folder):
    image = itk.image_from_array(np.ascontiguousarray(HU.T + 1000).astype(np.uint16))
    itk.imwrite(image, str(folder / "all.dcm"))


def colours(folder):
    itk.imwrite(itk.image_from_array(np.zeros((10, 12, 3), np.uint8), is_vector=True), str(folder / "shot.dcm"))


def write_with_tags(**tags):
    return lambda folder: write_series(folder, HU, **tags)


BAD_SERIES = {
    "a slice is missing": (
        write_with_tags(left_out=(3,)),
        "from 1-997.dcm and 1-995.dcm it is 2 mm, between other slices 1 mm: slices are missing",
    ),
    "two are missing": (write_with_tags(left_out=(1, 4)), "from 1-999.dcm and 1-997.dcm it is 2 mm"),
    "a slice is there twice": (twice, "1-997.dcm and 1-991.dcm lie in the same place; keep one of them"),
    "the distance changes": (two_distances, "it is 2 mm, between other slices 1 mm: slices are missing, or their dist"),
    "a slice is off the line": (one_off_the_line, "1-997.dcm is 1 mm off the line of the slices; export"),
    "planes of two directions": (mixed_directions, "are planes of different directions; keep one of the kinds"),
    "the last slice is truncated": (last_truncated, "1-994.dcm cannot be read, it is damaged or incomplete"),
    "all are truncated": (all_truncated, "holds no slices of a scan that can be read, only localizers, other objects"),
    "an unknown compression": (not_decodable, "its pixels cannot be decoded; decompress it, for example by gdcmconv"),
    "no positions": (
        without(b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"),
        "has no position in the patient; export the original slices",
    ),
    "no orientation": (
        without(b"\x20\x00\x37\x00", b"\x20\x00\x36\x00"),
        "has no orientation or no pixel spacing; export the original slices",
    ),
    "no pixel spacing": (
        without(b"\x28\x00\x30\x00", b"\x28\x00\x2f\x00"),
        "has no orientation or no pixel spacing; export the original slices",
    ),
    "white for the lowest HU": (
        without(b"MONOCHROME2", b"MONOCHROME1"),
        "is to be shown with white for the lowest HU (MONOCHROME1); export it as MONOCHROME2",
    ),
    "a secondary capture of many frames": (frames, "all.dcm holds 6 frames; convert it to one DICOM file per slice"),
    "colours": (colours, "shot.dcm is in colours, not a CT; export the CT's slices"),
}


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_what_is_no_even_stack_is_refused_in_one_line(tmp_path, kind):
    make, expected = BAD_SERIES[kind]
    make(tmp_path)
    with pytest.raises(InputError) as error:
        read_dicom_series(tmp_path)
    assert expected in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("first_byte, suffix", [(0, ".dicom"), (0, ".ct"), (132, ".dcm"), (132, ".IMA")])
def test_files_of_other_suffixes_or_without_the_preamble_are_found_and_read(tmp_path, first_byte, suffix):
    for file in write_series(tmp_path, HU):
        file.with_suffix(suffix).write_bytes(file.read_bytes()[first_byte:])
        if suffix != ".dcm":
            file.unlink()
    assert all(map(is_dicom, tmp_path.iterdir()))
    assert_is(load(tmp_path), HU, make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_a_single_slice_is_read_and_has_one(tmp_path):
    write_series(tmp_path, HU[:, :, :1])
    assert load(tmp_path).shape == (12, 10, 1)


def test_an_objects_kind_is_the_media_storage_class(tmp_path):
    from scripts.scans import _object_class

    assert _object_class(write_series(tmp_path, HU)[0]) == CT_CLASS.encode()
    (tmp_path / "other").write_bytes(b"x" * 2000)
    assert _object_class(tmp_path / "other") == b""


def test_no_other_reader_tries_what_ours_cannot_read(tmp_path, caplog):
    (tmp_path / "ct.nii.gz").write_bytes(b"\x93NUMPY" + b"junk" * 100)
    with pytest.raises(Exception) as error:
        load(tmp_path / "ct.nii.gz")
    assert find_input_error(error.value) is None
    assert "not a gzip file" in str(error.value)
    assert "NumpyReader" not in caplog.text


def test_the_dictionary_of_a_series_has_its_modality_and_no_patient(tmp_path):
    write_series(tmp_path, HU, tags={"0010|0010": "Doe^Jane", "0008|0060": "MR"})
    assert load(tmp_path).meta["0008|0060"] == "MR"
    assert "Doe" not in str(load(tmp_path).meta)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_an_image_of_four_axes_that_holds_one_volume_is_that_volume(tmp_path, suffix):
    image = itk.image_from_array(np.ascontiguousarray(HU.T[None].astype(np.int16)))
    image.SetSpacing((1.5, 1.5, 2, 1))
    itk.imwrite(image, str(tmp_path / f"ct{suffix}"))
    read = EnsureChannelFirst()(LoadImage(reader=ScanReader(), image_only=True)(str(tmp_path / f"ct{suffix}")))
    assert_is(read[0], HU, LPS_TO_RAS @ np.diag([1.5, 1.5, 2, 1]))
