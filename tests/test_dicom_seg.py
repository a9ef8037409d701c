"""A DICOM SEG lies on the scan that it is of, to the voxel, and says what it is and by what it was made."""

import csv
import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from functools import partial

import itk
import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="highdicom is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")

from scripts.data import TARGETS, class_names  # noqa: E402
from scripts.dicom_seg import CODES, Algorithm, make_segmentation, read_algorithm  # noqa: E402
from scripts.errors import InputError  # noqa: E402
from scripts.inference import FailureReport  # noqa: E402
from scripts.scans import ScanReader, read_dicom_series  # noqa: E402
from tests import ROOT  # noqa: E402
from tests.dicoms import (  # noqa: E402
    AIR_HU,
    CT_CLASS,
    LIVER_HU,
    ROOT_UID,
    SCAN,
    SHAPE,
    TUMOR_HU,
    write_enhanced,
    write_series,
)
from tests.jobs import infer_with_oracle, input_error_of  # noqa: E402
from tests.niftis import save  # noqa: E402
from tests.test_scans import DIRECTIONS, make_affine  # noqa: E402

SPACING_MM = 1.5
CLASSES = class_names("liver_and_tumor")
ALGORITHM = Algorithm("MPU-Net liver CT segmentation", "1.2.3", "The authors", "ab" * 32)
REAL_SCAN = ROOT.parent / "shared/data/real_abdominal_ct"
PATHS = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
DCMQI = shutil.which("segimage2itkimage", path=PATHS)
needs_dcmqi = pytest.mark.skipif(not DCMQI, reason="dcmqi is not installed")


FRAME = ("FrameOfReferenceUID", f"{ROOT_UID}.3")


def segment(folder, series="", find_tumor=True):
    """Return the DICOM SEG of a series, of the mask that brightness makes of what was read, as it is in a file."""
    image = np.asarray(ScanReader(series).get_data(ScanReader(series).read(folder))[0])
    mask = (image > LIVER_HU - 10).astype(np.uint8) + (image > TUMOR_HU - 10)
    segmentation = make_segmentation(folder, mask, CLASSES, ALGORITHM, series)
    file = folder.with_name(f"{folder.name}_seg.dcm")
    segmentation.save_as(file)
    return file


def read_frames_by_hand(file):
    """Return (segment, pixels (rows, columns), position in mm, row and column in mm, source) of each frame of a SEG."""
    seg = pydicom.dcmread(file)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    frames = bits[: seg.NumberOfFrames * seg.Rows * seg.Columns].reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing_mm = shared.PixelMeasuresSequence[0].PixelSpacing  # of rows, of columns
    for pixels, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        segment_ = group if "SegmentIdentificationSequence" in group else shared  # there if all frames are of one
        number = segment_.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position_mm = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        yield number, pixels, position_mm, axes * [[spacing_mm[1]], [spacing_mm[0]]], source


def places_by_hand(file):
    """Return segment → LPS mm of its voxels, by the definition of DICOM's tags."""
    places = {1: [], 2: []}
    for number, pixels, position_mm, (row_mm, column_mm), _ in read_frames_by_hand(file):
        rows, columns = np.nonzero(pixels)
        places[number] += list(position_mm + columns[:, None] * row_mm + rows[:, None] * column_mm)
    return places


def places_by_dcmqi(file):
    """The same by another program, which reads SEG with DCMTK and writes a volume of each segment."""
    folder = file.with_suffix("")
    folder.mkdir()
    command = [DCMQI, "--inputDICOM", file, "--outputDirectory", folder, "-t", "nrrd"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "absent" not in done.stderr, done.stderr  # what DCMTK says of missing attributes
    places = {}
    for number in (1, 2):
        image = itk.imread(str(folder / f"{number}.nrrd"))
        voxels = np.argwhere(itk.array_from_image(image))[:, ::-1]
        places[number] = [list(image.TransformIndexToPhysicalPoint(list(map(int, voxel)))) for voxel in voxels]
    return places


def true_places(affine):
    """Return segment → LPS mm of the boxes of `SCAN`, whose voxels lie in RAS as ``affine`` says."""
    to_lps = np.diag([-1.0, -1, 1, 1]) @ affine
    return {
        number: nib.affines.apply_affine(to_lps, np.argwhere(hu == SCAN))
        for number, hu in ((1, LIVER_HU), (2, TUMOR_HU))
    }


def assert_same_places(found, expected):
    for number in (1, 2):
        both = (np.array(sorted(map(tuple, np.round(places[number], 2) + 0.0))) for places in (found, expected))
        np.testing.assert_allclose(*both, atol=0.02, err_msg=f"segment {number}")


@pytest.mark.parametrize("reader", ["by hand", pytest.param("by dcmqi", marks=needs_dcmqi)])
@pytest.mark.parametrize("along", [1, -1], ids=["along the normal", "against it"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_another_reader_finds_the_segments_where_the_scan_has_them(tmp_path, direction, along, reader):
    row, column, normal = DIRECTIONS[direction]
    start_mm, step_mm = (7, -3, 11), np.multiply(normal, 2.5 * along)
    write_series(tmp_path / "ct", SCAN, step_mm=step_mm, start_mm=start_mm, axes=(*row, *column))
    places = {"by hand": places_by_hand, "by dcmqi": places_by_dcmqi}[reader](segment(tmp_path / "ct"))
    assert_same_places(places, true_places(make_affine(row, column, step_mm, start_mm, SPACING_MM)))


def test_false_distances_and_rounded_directions_in_the_slices_do_not_mislead(tmp_path):
    files = write_series(tmp_path / "ct", SCAN, step_mm=(0, 0, 2.5))
    for number, file in enumerate(files):
        header = pydicom.dcmread(file)
        header.SpacingBetweenSlices = 1
        header.ImageOrientationPatient = [1, number * 1e-7, 0, 0, 1, 0]
        header.save_as(file)
    seg = pydicom.dcmread(segment(tmp_path / "ct"))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (2.5, 2.5)


def test_of_a_tilted_gantry_the_segments_lie_on_the_slices(tmp_path):
    write_series(tmp_path / "ct", SCAN, step_mm=(0, 0.7, 2))
    affine = make_affine((1, 0, 0), (0, 1, 0), (0, 0.7, 2), spacing_mm=SPACING_MM)
    assert_same_places(places_by_hand(segment(tmp_path / "ct")), true_places(affine))


def test_pixels_that_are_no_squares_keep_their_sides(tmp_path):
    write_series(tmp_path / "ct", SCAN, spacing_mm=(0.5, 2.0))
    affine = make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1), spacing_mm=1) @ np.diag([0.5, 2, 1, 1])
    assert_same_places(places_by_hand(segment(tmp_path / "ct")), true_places(affine))


@pytest.mark.parametrize("direction", ["feet up", "column cosine negative", "oblique"])
def test_each_frame_refers_to_the_slice_whose_pixels_it_has(tmp_path, direction):
    row, column, normal = DIRECTIONS[direction]
    files = write_series(tmp_path / "ct", SCAN, step_mm=normal, axes=(*row, *column))
    seg_file = segment(tmp_path / "ct")
    sources = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, files)}
    seen = set()
    for number, pixels, position_mm, _, source in read_frames_by_hand(seg_file):
        header = sources[source.ReferencedSOPInstanceUID]
        assert source.ReferencedSOPClassUID == header.SOPClassUID
        np.testing.assert_allclose(position_mm, header.ImagePositionPatient, atol=1e-4)
        hu = header.pixel_array * header.RescaleSlope + header.RescaleIntercept
        np.testing.assert_array_equal(pixels, hu == {1: LIVER_HU, 2: TUMOR_HU}[number])
        seen.add((number, header.SOPInstanceUID))
    assert len(seen) == 8 + 1  # slices 4 to 11 have liver, slice 7 tumour too
    referenced = pydicom.dcmread(seg_file).ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == f"{ROOT_UID}.2.1"
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == set(sources)


def test_segments_are_coded_in_snomed_ct_and_their_algorithm_is_identified(tmp_path):
    write_series(tmp_path / "ct", SCAN)
    seg = pydicom.dcmread(segment(tmp_path / "ct"))
    assert (seg.SOPClassUID.name, seg.Modality, seg.SegmentationType) == ("Segmentation Storage", "SEG", "BINARY")
    liver, tumor = seg.SegmentSequence
    for segment_, label, category, kind in (
        (liver, "liver", "123037004", "10200004"),
        (tumor, "tumor", "49755003", "108369006"),
    ):
        assert segment_.SegmentLabel == label
        assert segment_.SegmentedPropertyCategoryCodeSequence[0].CodeValue == category
        assert segment_.SegmentedPropertyTypeCodeSequence[0].CodeValue == kind
        assert segment_.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
        assert segment_.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment_.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (ALGORITHM.name, "1.2.3")
        family = algorithm.AlgorithmFamilyCodeSequence[0]
        assert (family.CodeValue, family.CodingSchemeDesignator) == ("123110", "DCM")  # artificial intelligence
    assert tumor.AnatomicRegionSequence[0].CodeValue == "10200004"
    assert (seg.ManufacturerModelName, seg.SoftwareVersions) == (ALGORITHM.name, "1.2.3")
    assert seg.DeviceSerialNumber == "ab" * 32  # the sum of the weights


def test_every_class_of_every_target_has_a_code():
    assert {name for target in TARGETS for name in class_names(target)[1:]} == set(CODES)


def test_the_algorithm_is_this_bundle_with_the_sum_of_its_weights(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"abc")
    algorithm = read_algorithm(tmp_path / "model.pt")
    metadata = json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))
    assert (algorithm.name, algorithm.version) == (metadata["name"], metadata["version"])
    assert algorithm.weights == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert max(map(len, algorithm)) <= 64  # as long as DICOM lets them be


def test_patient_study_and_frame_of_reference_are_the_scans_and_the_series_is_new(tmp_path):
    own = {"0010|0010": "Doe^Jane", "0010|0020": "P-1", "0008|0050": "A-7", "0020|0011": "5", "0010|0030": "19700102"}
    write_series(tmp_path / "ct", SCAN, tags=own)
    first, second = (pydicom.dcmread(segment(tmp_path / "ct")) for _ in range(2))
    assert (first.PatientName, first.PatientID, first.AccessionNumber) == ("Doe^Jane", "P-1", "A-7")
    assert first.PatientBirthDate == "19700102"
    assert (first.StudyInstanceUID, first.FrameOfReferenceUID) == (f"{ROOT_UID}.1", f"{ROOT_UID}.3")
    assert first.SeriesNumber == 1005
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
        assert len({first[keyword].value, second[keyword].value, f"{ROOT_UID}.2.1", f"{ROOT_UID}.4.1.1"}) == 4


def change_headers(files, change):
    for file in files:
        header = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation():
            change(header)
            header.save_as(file)


@pytest.mark.parametrize(
    "character_set, name", [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")]
)
def test_a_name_in_other_letters_is_still_the_patients(tmp_path, character_set, name):
    def rename(header):
        header.SpecificCharacterSet = character_set
        header.PatientName = name

    change_headers(write_series(tmp_path / "ct", SCAN), rename)
    assert pydicom.dcmread(segment(tmp_path / "ct")).PatientName == name


def test_files_without_a_preamble_get_a_seg(tmp_path):
    for file in write_series(tmp_path / "ct", SCAN):
        file.write_bytes(file.read_bytes()[132:])
    assert_same_places(
        places_by_hand(segment(tmp_path / "ct")),
        true_places(make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1), spacing_mm=SPACING_MM)),
    )


def test_what_dicom_lets_be_empty_may_be_missing(tmp_path):
    def strip(header):
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                        "StudyDate", "StudyTime", "ReferringPhysicianName", "SeriesNumber"):  # fmt: skip
            del header[keyword]

    change_headers(write_series(tmp_path / "ct", SCAN), strip)
    seg_file = segment(tmp_path / "ct")
    assert pydicom.dcmread(seg_file).PatientID in ("", None)
    assert_same_places(
        places_by_hand(seg_file), true_places(make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1), spacing_mm=SPACING_MM))
    )


@pytest.mark.parametrize("sex, kept", [("F", "F"), ("U", ""), ("REMOVED", "")])
def test_a_sex_that_dicom_does_not_have_is_left_out(tmp_path, sex, kept):
    change_headers(write_series(tmp_path / "ct", SCAN), lambda header: setattr(header, "PatientSex", sex))
    assert (pydicom.dcmread(segment(tmp_path / "ct")).PatientSex or "") == kept


@pytest.mark.parametrize(
    "keyword, value, reason",
    [
        ("SOPClassUID", f"{ROOT_UID}.9", "no DICOM SEG can be made of it (KeyError: "),
        ("SOPClassUID", "", "has no SOPClassUID, which a DICOM SEG refers to"),
        ("FrameOfReferenceUID", None, "no DICOM SEG can be made of it (ValueError: "),
    ],
)
def test_headers_of_which_no_seg_can_be_made_are_said_in_one_line(tmp_path, keyword, value, reason):
    values = iter(range(SHAPE[2]))

    def spoil(header):
        setattr(header, keyword, f"{ROOT_UID}.{next(values)}" if value is None else value)

    change_headers(write_series(tmp_path / "ct", SCAN), spoil)
    with pytest.raises(InputError) as caught:
        segment(tmp_path / "ct")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_mask_is_a_seg_of_the_whole_scan_with_nothing_in_it(tmp_path):
    write_series(tmp_path / "ct", np.full_like(SCAN, AIR_HU))
    seg = pydicom.dcmread(segment(tmp_path / "ct"))
    assert not any(seg.PixelData)
    assert seg.NumberOfFrames == 2 * SHAPE[2]


def test_a_mask_of_another_scan_is_refused(tmp_path):
    write_series(tmp_path / "ct", SCAN)
    with pytest.raises(ValueError, match="expected a mask of 16 slices, received 15"):
        make_segmentation(tmp_path / "ct", np.zeros((24, 20, 15)), CLASSES, ALGORITHM)


@pytest.mark.parametrize("order", [range(16), range(15, -1, -1), [*range(1, 16, 2), *range(0, 16, 2)]])
def test_an_enhanced_ct_is_read_whatever_the_order_and_slope_of_its_frames_and_gets_a_seg(tmp_path, order):
    slopes = np.where(np.arange(16) % 3, 1.0, 0.5)
    file = write_enhanced(tmp_path / "ct/all.dcm", SCAN, step_mm=(0, 0, 2.5), order=order, slopes=slopes)
    affine = make_affine((1, 0, 0), (0, 1, 0), (0, 0, 2.5), spacing_mm=SPACING_MM)
    image, metadata = ScanReader().get_data(read_dicom_series(tmp_path / "ct"))
    places = nib.affines.apply_affine(metadata["affine"], np.argwhere(image == TUMOR_HU))
    expected = nib.affines.apply_affine(affine, np.argwhere(SCAN == TUMOR_HU))
    assert_same_places({1: places, 2: places}, {1: expected, 2: expected})
    assert set(np.unique(image)) == {AIR_HU, LIVER_HU, TUMOR_HU}

    seg_file = segment(tmp_path / "ct")
    assert_same_places(places_by_hand(seg_file), true_places(affine))
    stored = pydicom.dcmread(file).pixel_array
    for number, pixels, _, _, source in read_frames_by_hand(seg_file):
        frame = source.ReferencedFrameNumber - 1
        hu = stored[frame] * slopes[order[frame]]
        np.testing.assert_array_equal(pixels, hu == {1: LIVER_HU, 2: TUMOR_HU}[number])


@pytest.mark.parametrize("syntax", ["JPEGLSLossless", "RLELossless"])
def test_a_compressed_enhanced_ct_is_read_to_the_voxel(tmp_path, syntax):
    file = write_enhanced(tmp_path / "ct/all.dcm", SCAN)
    header = pydicom.dcmread(file)
    header.compress(getattr(pydicom.uid, syntax))
    header.save_as(file)
    np.testing.assert_array_equal(np.sort(read_dicom_series(tmp_path / "ct"), None), np.sort(SCAN, None))
    assert_same_places(
        places_by_hand(segment(tmp_path / "ct")),
        true_places(make_affine((1, 0, 0), (0, 1, 0), (0, 0, 1), spacing_mm=SPACING_MM)),
    )


def test_an_enhanced_ct_without_a_slice_is_refused(tmp_path):
    write_enhanced(tmp_path / "ct/all.dcm", SCAN, order=[0, 1, 2, 4, 5, 6, 7], tags={"NumberOfFrames": 7})
    with pytest.raises(InputError, match="its frames cannot be read as one even stack of slices"):
        read_dicom_series(tmp_path / "ct")


@pytest.mark.skipif(not REAL_SCAN.is_dir(), reason="the real scan is not here")
@needs_dcmqi
def test_a_real_scans_liver_comes_back_from_its_seg_to_the_voxel(tmp_path):
    folder = shutil.copytree(REAL_SCAN / "dicom", tmp_path / "ct")
    for number, file in enumerate(sorted(folder.iterdir())):  # what made it anonymous has emptied its identifiers
        header = pydicom.dcmread(file)
        header.StudyInstanceUID, header.SeriesInstanceUID = f"{ROOT_UID}.1", f"{ROOT_UID}.2.1"
        header.SOPClassUID, header.SOPInstanceUID = CT_CLASS, f"{ROOT_UID}.4.1.{number + 1}"
        header.save_as(file)
    image = read_dicom_series(folder)
    scan, metadata = ScanReader().get_data(image)
    reference = nib.load(REAL_SCAN / "liver_reference.nii.gz")
    to_scan = np.linalg.inv(metadata["affine"]) @ reference.affine
    voxels = nib.affines.apply_affine(to_scan, np.argwhere(np.asarray(reference.dataobj))).round().astype(int)
    mask = np.zeros(scan.shape, np.uint8)
    mask[tuple(voxels.T)] = 1
    file = tmp_path / "real.dcm"
    make_segmentation(folder, mask, class_names("liver"), ALGORITHM).save_as(file)

    command = [DCMQI, "--inputDICOM", file, "--outputDirectory", tmp_path, "-t", "nrrd"]
    subprocess.run(command, capture_output=True, check=True)
    result = itk.imread(str(tmp_path / "1.nrrd"))
    found = itk.array_from_image(result)
    assert found.sum() == mask.sum() == 366708  # of the README beside the scan
    first = image.TransformPhysicalPointToIndex(result.GetOrigin())
    np.testing.assert_allclose(result.GetSpacing(), image.GetSpacing(), atol=1e-4)
    directions = (itk.array_from_matrix(each.GetDirection()) for each in (result, image))
    np.testing.assert_allclose(*directions, atol=1e-6)
    np.testing.assert_array_equal(found, mask.T[first[2] : first[2] + len(found)])
    hu = itk.array_from_image(image)[first[2] : first[2] + len(found)][found > 0]
    assert hu.mean() == pytest.approx(89, abs=1)  # overlaid on the source: it is liver, not its mirror image


@pytest.fixture
def infer(tmp_path):
    return partial(infer_with_oracle, tmp_path, dicom_seg=True)


def test_inference_writes_a_seg_of_each_dicom_series_with_the_voxels_of_the_nifti_mask(tmp_path, infer, capfd):
    row, column, normal = DIRECTIONS["column cosine negative"]
    write_series(tmp_path / "study/ct", SCAN, step_mm=normal, axes=(*row, *column))
    save(tmp_path / "study/other.nii.gz", SCAN)
    out = infer(tmp_path / "study")
    assert sorted(path.name for path in out.glob("*_seg.*")) == [
        "ct_seg.dcm", "ct_seg.nii.gz", "ct_seg.png", "other_seg.nii.gz", "other_seg.png",
    ]  # fmt: skip
    assert "other.nii.gz: is no DICOM series, so there is no DICOM SEG of it" in capfd.readouterr().out
    mask = nib.load(out / "ct_seg.nii.gz")
    voxels = np.argwhere(np.asarray(mask.dataobj))
    places = nib.affines.apply_affine(np.diag([-1.0, -1, 1, 1]) @ mask.affine, voxels)
    assert len(places) == 7 * 3 * 8 + 6 * 8 * 2
    found = places_by_hand(out / "ct_seg.dcm")[1]
    assert_same_places({1: found, 2: found}, {1: places, 2: places})


def test_without_the_knob_no_seg_is_written(tmp_path, infer):
    write_series(tmp_path / "ct", SCAN)
    assert not list(infer(tmp_path / "ct", dicom_seg=False).glob("*.dcm"))


def test_one_of_several_series_has_a_seg_of_its_own_slices(tmp_path, infer):
    write_series(tmp_path / "ct", SCAN)
    write_series(tmp_path / "ct", SCAN[::-1], series=2)
    out = infer(tmp_path / "ct", series=f"{ROOT_UID}.2.2")
    seg = pydicom.dcmread(out / "ct_seg.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == f"{ROOT_UID}.2.2"


def test_a_series_that_a_seg_cannot_refer_to_is_named_and_the_others_get_theirs(tmp_path, infer):
    change_headers(write_series(tmp_path / "study/a", SCAN), lambda header: delattr(header, FRAME[0]))
    write_series(tmp_path / "study/b", SCAN)
    message = input_error_of(infer, tmp_path / "study")
    assert message.startswith(f"1 of 2 images have no DICOM SEG, see {tmp_path}/out/failed.csv; the first: ")
    reason = message.partition("the first: ")[2]
    assert reason.endswith(
        "has no FrameOfReferenceUID, which a DICOM SEG refers to; export or anonymise the series with it; "
        f"of {tmp_path}/study/a there is the NIfTI mask alone"
    )
    assert not (tmp_path / "out/a_seg.dcm").exists()
    assert (tmp_path / "out/a_seg.nii.gz").is_file()
    assert (tmp_path / "out/b_seg.dcm").is_file()
    with open(tmp_path / "out/failed.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"image": str(tmp_path / "study/a"), "reason": reason}]
    with open(tmp_path / "out/volumes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    voxels = str(7 * 3 * 8 + 6 * 8 * 2)
    assert [(row["image"], row["liver_voxels"]) for row in rows] == [
        (str(tmp_path / "study/a"), voxels),
        (str(tmp_path / "study/b"), voxels),
    ]
    assert "reason" not in rows[0]

    change_headers(sorted((tmp_path / "study/a").iterdir()), lambda header: setattr(header, *FRAME))
    infer(tmp_path / "study", skip_done=True)
    assert (tmp_path / "out/a_seg.dcm").is_file()
    assert not (tmp_path / "out/failed.csv").exists()


def test_a_series_whose_seg_failed_before_the_run_broke_off_is_not_taken_for_done(tmp_path, infer, monkeypatch):
    change_headers(write_series(tmp_path / "study/a", SCAN), lambda header: delattr(header, FRAME[0]))
    write_series(tmp_path / "study/b", SCAN)
    monkeypatch.setattr(FailureReport, "write", lambda self: None)  # as if it were killed
    input_error_of(infer, tmp_path / "study")
    record = json.loads((tmp_path / "out/records/a.json").read_text(encoding="utf-8"))
    assert "has no FrameOfReferenceUID" in record["reason"]
    assert "reason" not in json.loads((tmp_path / "out/records/b.json").read_text(encoding="utf-8"))


def test_images_without_a_mask_and_those_without_a_seg_are_counted_apart(tmp_path, infer):
    change_headers(write_series(tmp_path / "study/a", SCAN), lambda header: delattr(header, FRAME[0]))
    write_series(tmp_path / "study/b", SCAN, left_out=[5])
    message = input_error_of(infer, tmp_path / "study")
    assert message.startswith("1 of 2 images were not segmented and 1 of 2 images have no DICOM SEG, see ")


def test_without_highdicom_it_says_what_to_install_before_the_network_runs(tmp_path, infer, monkeypatch):
    write_series(tmp_path / "ct", SCAN)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert "highdicom is not installed; pip install -r requirements-dicom.txt" in input_error_of(infer, tmp_path / "ct")
    assert not list((tmp_path / "out").glob("*.nii.gz"))


CANARIES = {
    "PatientName": "Canary^Name", "PatientID": "CANARYID" * 9, "PatientBirthDate": "CANARYBIRTH",
    "PatientAge": "CANARYAGE", "PatientAddress": "canary street", "OtherPatientIDs": "CANARYOTHER",
    "AccessionNumber": "CANARYACCESSIONNUMBER",
    "ReferringPhysicianName": "Canary^Doctor", "InstitutionName": "Canary hospital", "StudyDescription": "canary study",
    "StudyID": "CANARYSTUDY", "PatientComments": "canary comment", "StationName": "CANARYSTATION",
    "ProtocolName": "canary protocol", "SeriesDescription": "canary series", "StudyDate": "CANARYDATE",
    "ImageComments": "canary image", "OperatorsName": "Canary^Operator",
}  # fmt: skip


def add_canaries(files):
    def change(header):
        for keyword, value in CANARIES.items():
            setattr(header, keyword, value)
        header.private_block(0x0041, "canary creator", create=True).add_new(1, "LO", "canary private")

    change_headers(files, change)


def texts_of(folder):
    """Yield (name, content) of all files that were written but the DICOM SEGs, those that are compressed unpacked."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            content = path.read_bytes()
            yield path.name, gzip.decompress(content) if path.suffix == ".gz" else content


REFUSED = ("a slice is missing", "a frame is missing", "without frame of reference")


@pytest.mark.parametrize("kind", ["single frames", "enhanced", *REFUSED])
def test_patient_data_are_written_into_the_seg_alone(tmp_path, infer, capfd, caplog, kind):
    if kind == "enhanced":
        files = [write_enhanced(tmp_path / "ct/all.dcm", SCAN)]
    elif kind == "a frame is missing":
        files = [write_enhanced(tmp_path / "ct/all.dcm", SCAN, order=[0, 1, 3], tags={"NumberOfFrames": 3})]
    else:
        files = write_series(tmp_path / "ct", SCAN)
    add_canaries(files)
    if kind == "without frame of reference":
        change_headers(files, lambda header: delattr(header, "FrameOfReferenceUID"))
    if kind == "a slice is missing":
        files[5].unlink()
    said = ""
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if kind in REFUSED:
            said = input_error_of(infer, tmp_path / "ct")
        else:
            infer(tmp_path / "ct", probabilities=True)
            assert pydicom.dcmread(tmp_path / "out/ct_seg.dcm").PatientName == "Canary^Name"
    captured = capfd.readouterr()
    said += captured.out + captured.err + caplog.text + "".join(str(warning.message) for warning in warned)
    assert "canary" not in said.lower()
    for name, content in texts_of(tmp_path / "out"):
        assert "canary" not in name.lower()
        assert b"canary" not in content.lower(), name
