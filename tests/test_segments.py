"""A mask that a viewer saved comes onto its scan, to the voxel, and its segments are known by their names."""

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.cases import Volume, read_volume
from scripts.dicom_seg import describe_segments, level, make_segmentation, read_algorithm, read_headers
from scripts.errors import InputError
from scripts.pairs import add_case, read_scan
from scripts.scans import find_slices
from scripts.segments import (
    LIVER,
    OTHER,
    TUMOR,
    UNCLEAR,
    find_class,
    read_dicom_seg,
    read_slicer_mask,
    read_slicer_names,
    take_segments,
)
from tests.dicoms import LIVER_HU, ROOT_UID, SCAN, TUMOR_HU, write_series
from tests.niftis import AFFINE, make_image, make_label
from tests.test_scans import DIRECTIONS

CLASSES = ("background", "liver", "tumor")

OTHERS = ("Spleen", "Aorta", "Kidney", "Stomach", "Colon", "Lung")


def mask_of(scan):
    return ((scan.array == LIVER_HU) + 2 * (scan.array == TUMOR_HU)).astype(np.uint8)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("liver",), LIVER),
        (("LIVER", "Organ"), LIVER),
        (("Segment_1", "Liver"), LIVER),
        (("Lesion 2",), TUMOR),
        (("liver_tumor",), TUMOR),
        (("LiverTumor",), TUMOR),
        (("Tumor S6", "Tissue"), TUMOR),
        (("Lesion VIII a",), TUMOR),
        (("Liver mets", "Tissue"), TUMOR),
        (("HCC",), TUMOR),
        (("Hepatocellular carcinoma",), TUMOR),
        (("Segment 3", "Malignant neoplasm of liver"), TUMOR),
        (("Kidney tumor", "Neoplasm"), UNCLEAR),
        (("liver_vessels",), UNCLEAR),
        (("liver without tumor",), UNCLEAR),
        (("masseter_left",), OTHER),
        (("Spleen", "Liver"), OTHER),
        (("Segment_1", "Tissue"), None),
        (("", ""), None),
    ],
)
def test_a_name_says_which_class_a_segment_is(names, expected):
    assert find_class(*names) == expected


def test_segments_of_other_things_are_not_taken_and_listed():
    names = {number: (name,) for number, name in enumerate(("Liver", "Lesion", *OTHERS), start=1)}
    taken, (warning,) = take_segments("seg.dcm", names)
    assert taken == {1: LIVER, 2: TUMOR}
    assert warning.startswith("of its segments Spleen, Aorta, Kidney, Stomach, Colon, ... not taken, by name neither")


@pytest.mark.parametrize(
    ("number", "name", "warnings"), [(1, "Segment_1", 0), (1, "Liver", 0), (7, "Liver", 0), (2, "Segment_2", 1)]
)
def test_a_sole_segment_is_the_livers_but_said_if_that_is_doubtful(number, name, warnings):
    taken, said = take_segments("seg.dcm", {number: (name,)})
    assert taken == {number: LIVER} and len(said) == warnings
    assert all(f"its only segment, {name}, is taken for the liver's" in warning for warning in said)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("Tumor",), "has no segment named liver, but Tumor; name the liver liver"),
        (("Spleen",), "has no segment named liver, but Spleen; name the liver liver"),
        (("Tumor", "Lesion"), "has no segment named liver, but Tumor, Lesion; name"),
        (("Segment_1", "Segment_2"), "has no segment named liver, but Segment_1, Segment_2; name"),
        ((), "has no segment named liver, but none at all; name"),
        (("Kidney tumor",), "liver, its tumours, or neither[?] That is not clear of Kidney tumor; name"),
        (("Liver", "Left liver", "Tumor"), "liver, its tumours, or neither[?] That is not clear of Left liver; name"),
    ],
)
def test_segments_without_a_liver_or_clear_names_are_refused(names, reason):
    with pytest.raises(InputError, match=f"^seg.dcm: {reason}"):
        take_segments("seg.dcm", {number: (name,) for number, name in enumerate(names, start=1)})


class TestDicomSeg:
    """They need highdicom, which clients with packages of their own do not have."""

    @pytest.fixture(autouse=True)
    def imported(self):
        self.pydicom = pytest.importorskip("pydicom", reason="highdicom is not installed")
        self.highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")

    def segment(self, folder, mask=None, kind="BINARY"):
        """Write the true mask of a series as a SEG of some type."""
        mask = mask_of(read_scan(folder)) if mask is None else mask
        (folder.parent / "model.pt").write_bytes(b"weights")
        algorithm = read_algorithm(folder.parent / "model.pt")
        file = folder.with_name(f"{folder.name}_seg.dcm")
        if kind == "BINARY":
            make_segmentation(folder, mask, CLASSES, algorithm).save_as(file)
            return file
        pixels = mask.transpose(2, 1, 0)
        if kind == "FRACTIONAL":
            pixels = np.stack([0.75 * (pixels == 1) + 0.25 * (pixels == 2), pixels == 2], -1).astype(np.float32)
        slices = find_slices(folder)
        headers = read_headers([image.file for image in slices])
        level(headers, slices)
        self.highdicom.seg.Segmentation(
            headers, pixels, kind, describe_segments(CLASSES, algorithm), self.highdicom.UID(), 1, self.highdicom.UID(),
            1, "maker", "model", "1", "0",
        ).save_as(file)  # fmt: skip
        return file

    def rename(self, file, *names):
        """Give the segments of a SEG other labels, and a type that says nothing."""
        seg = self.pydicom.dcmread(file)
        for item, name in zip(seg.SegmentSequence, names, strict=True):
            item.SegmentLabel = name
            item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Tissue"
        seg.save_as(file)
        return file

    @pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_it_is_read_onto_the_grid_of_its_scan(self, tmp_path, direction, kind):
        row, column, normal = DIRECTIONS[direction]
        step_mm = np.multiply(normal, 2.5)
        write_series(tmp_path / "ct", SCAN, step_mm=step_mm, start_mm=(7, -3, 11), axes=(*row, *column))
        scan = read_scan(tmp_path / "ct")
        mask = read_dicom_seg(self.segment(tmp_path / "ct", kind=kind), scan, f"{ROOT_UID}.2.1")
        np.testing.assert_array_equal(mask.array, mask_of(scan))
        np.testing.assert_array_equal(mask.affine, scan.affine)
        assert mask.warnings == ()

    @pytest.mark.parametrize("false_mm", [None, "1", "5"])
    def test_a_tilted_gantry_and_false_distances_do_not_mislead(self, tmp_path, false_mm):
        write_series(tmp_path / "ct", SCAN, step_mm=(0, 0.7, 2))
        scan, file = read_scan(tmp_path / "ct"), self.segment(tmp_path / "ct")
        seg = self.pydicom.dcmread(file)
        measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        if false_mm:
            measures.SpacingBetweenSlices = false_mm
        else:
            del measures.SpacingBetweenSlices
        seg.save_as(file)
        np.testing.assert_array_equal(read_dicom_seg(file, scan).array, mask_of(scan))

    def test_rounded_positions_do_not_mislead(self, tmp_path):
        files = write_series(tmp_path / "ct", SCAN, step_mm=(0, 0, 0.625))
        for file in files:
            header = self.pydicom.dcmread(file)
            header.ImagePositionPatient = [round(value, 1) for value in header.ImagePositionPatient]
            header.save_as(file)
        scan = read_scan(tmp_path / "ct")
        np.testing.assert_array_equal(read_dicom_seg(self.segment(tmp_path / "ct"), scan).array, mask_of(scan))

    def test_a_segment_of_one_slice_is_read(self, tmp_path):
        write_series(tmp_path / "ct", SCAN, step_mm=(0, 0, 2.5))
        scan = read_scan(tmp_path / "ct")
        mask = np.zeros(SCAN.shape, np.uint8)
        mask[4:9, 5, 11] = 1
        np.testing.assert_array_equal(read_dicom_seg(self.segment(tmp_path / "ct", mask), scan).array, mask)

    def test_a_tumour_is_one_whatever_the_order_of_segments(self, tmp_path):
        write_series(tmp_path / "ct", SCAN)
        scan = read_scan(tmp_path / "ct")
        mask = read_dicom_seg(self.rename(self.segment(tmp_path / "ct"), "Metastasis 1", "Liver"), scan)
        np.testing.assert_array_equal(mask.array, np.array([0, 2, 1])[mask_of(scan)])

    def test_one_of_another_series_is_said_to_be(self, tmp_path):
        write_series(tmp_path / "ct", SCAN, series=1)
        write_series(tmp_path / "late", SCAN, series=2)
        (warning,) = read_dicom_seg(self.segment(tmp_path / "ct"), read_scan(tmp_path / "late"), "1.2.3").warnings
        assert warning == "it refers to another series than that of its image"

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            ({"start_mm": (0.7, 0, 0)}, "its voxels are not those of its image"),
            ({"spacing_mm": (0.75, 0.75)}, "its voxels are not those of its image"),
            ({"step_mm": (0, 0, 1.3)}, "its voxels are not those of its image"),
            ({"start_mm": (0, 0, 6)}, "reaches beyond its image"),
        ],
    )
    def test_one_of_another_scan_is_refused(self, tmp_path, other, reason):
        write_series(tmp_path / "ct", SCAN)
        write_series(tmp_path / "other", SCAN, **other)
        with pytest.raises(InputError, match=f"^{tmp_path}/ct_seg.dcm: {reason}"):
            read_dicom_seg(self.segment(tmp_path / "ct"), read_scan(tmp_path / "other"))

    def test_it_is_read_onto_a_scan_with_other_axes(self, tmp_path):
        write_series(tmp_path / "ct", SCAN, step_mm=(0, 0, 2.5), start_mm=(7, -3, 11))
        scan = read_scan(tmp_path / "ct")
        turned = nib.Nifti1Image(scan.array, scan.affine).as_reoriented([[2, -1], [0, 1], [1, -1]])
        turned = Volume(turned.get_fdata(), turned.affine)
        assert turned.array.shape != scan.array.shape
        np.testing.assert_array_equal(read_dicom_seg(self.segment(tmp_path / "ct"), turned).array, mask_of(turned))

    def test_another_object_is_refused_in_one_line(self, tmp_path):
        (file, *_) = write_series(tmp_path / "ct", SCAN)
        with pytest.raises(InputError, match=f"^{file}: cannot be read as a DICOM SEG .*; export it again") as caught:
            read_dicom_seg(file, read_scan(tmp_path / "ct"))
        assert "\n" not in str(caught.value)

    def test_a_series_and_its_seg_become_a_case(self, tmp_path):
        write_series(tmp_path / "ct", make_image(), step_mm=(0, 0, 2))
        file = self.segment(tmp_path / "ct", make_label())
        report = add_case(tmp_path / "mine", tmp_path / "ct", file)
        assert (report.status, report.findings) == ("ok", ())
        np.testing.assert_array_equal(np.asanyarray(nib.load(report.case.label).dataobj), make_label())
        write_series(tmp_path / "late", make_image() + 1, step_mm=(0, 0, 2), series=2)
        (finding,) = add_case(tmp_path / "mine", tmp_path / "late", file).findings
        assert finding.reason == "it refers to another series than that of its image"


def write_slicer_mask(file, array, names, start=(0, 0, 0), fields=None):
    """Write voxels as 3D Slicer does: LPS, a field of the header for every segment's name and number."""
    image = itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([1.5, 1.5, 2.0])
    image.SetOrigin([float(v) for v in np.multiply(start, (-1.5, -1.5, 2.0))])
    image.SetDirection(itk.matrix_from_array(np.diag([-1.0, -1.0, 1.0])))
    dictionary = image.GetMetaDataDictionary()
    for index, (number, name) in enumerate(names.items()):
        dictionary[f"Segment{index}_LabelValue"], dictionary[f"Segment{index}_Name"] = str(number), name
    for field, value in (fields or {}).items():
        dictionary[field] = value
    itk.imwrite(image, str(file), compression=True)
    return file


def read_slicer(file, scan=None):
    mask = read_volume(str(file))
    return read_slicer_mask(file, read_slicer_names(file), mask, scan or Volume(make_image(), AFFINE))


@pytest.mark.parametrize(
    ("names", "values"),
    [
        ({1: "liver", 2: "tumor"}, (1, 2)),
        ({1: "Metastasis", 2: "Liver"}, (2, 1)),
        ({1: "Segment_1", 2: "Segment_2"}, (1, 2)),
        ({5: "Liver", 9: "Tumor"}, (5, 9)),
    ],
)
@pytest.mark.parametrize("start", [(0, 0, 0), (3, 3, 20)], ids=["whole", "cut off"])
def test_what_slicer_saved_has_its_classes_by_name_and_comes_onto_its_scan(tmp_path, names, values, start):
    stored = np.array([0, *values], np.uint8)[make_label()][tuple(slice(first, None) for first in start)]
    mask = read_slicer(write_slicer_mask(tmp_path / "Segmentation.seg.nrrd", stored, names, start))
    np.testing.assert_array_equal(mask.array, make_label())
    np.testing.assert_array_equal(mask.affine, AFFINE)
    unnamed = ("its segments Segment_1, Segment_2 have no names: 1 is liver, 2 tumour",)
    assert mask.warnings == (unnamed if names.get(1) == "Segment_1" else ())


def test_tumours_alone_are_refused(tmp_path):
    tumors = (make_label() == 2).astype(np.uint8)
    with pytest.raises(InputError, match=r"a\.nrrd: its segment of the liver is empty"):
        read_slicer(write_slicer_mask(tmp_path / "a.nrrd", tumors, {1: "Tumor", 2: "Liver"}))
    empty = read_slicer(write_slicer_mask(tmp_path / "a.nrrd", 0 * tumors, {1: "Tumor", 2: "Liver"}))
    assert not empty.array.any()


def test_what_slicer_saved_comes_onto_an_oblique_scan_with_other_axes(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    image = nib.Nifti1Image(make_label(), turn @ AFFINE).as_reoriented([[1, -1], [2, 1], [0, -1]])
    scan = Volume(np.asanyarray(image.dataobj), image.affine)
    mask = Volume(make_label(), turn @ AFFINE)
    found = read_slicer_mask("a.nrrd", {1: ("Liver",), 2: ("Tumor",)}, mask, scan)
    np.testing.assert_array_equal(found.array, scan.array)


@pytest.mark.parametrize("name", ["ct.seg.nrrd", "ct.NRRD"])
def test_a_case_is_made_of_what_slicer_saved(tmp_path, name):
    image = tmp_path / "ct.nii"
    nib.save(nib.Nifti1Image(make_image(), AFFINE), image)
    swapped = np.array([0, 2, 1], np.uint8)[make_label()][..., 15:]
    write_slicer_mask(tmp_path / "a.nrrd", swapped, {1: "tumor", 2: "liver"}, (0, 0, 15)).rename(tmp_path / name)
    report = add_case(tmp_path / "mine", image, tmp_path / name)
    assert (report.status, report.findings) == ("ok", ())
    np.testing.assert_array_equal(np.asanyarray(nib.load(report.case.label).dataobj), make_label())


def test_what_slicer_saved_on_another_scan_is_refused(tmp_path):
    for start, reason in (((0.5, 0, 0), "its voxels are not those of its image"), ((9, 0, 0), "reaches beyond its")):
        file = write_slicer_mask(tmp_path / "a.seg.nrrd", make_label(), {1: "Liver", 2: "Tumor"}, start)
        with pytest.raises(InputError, match=f"^{file}: {reason}"):
            read_slicer(file)


def test_a_sole_segment_of_slicer_is_the_livers_whatever_its_number(tmp_path):
    mask = read_slicer(
        write_slicer_mask(tmp_path / "a.nrrd", 3 * (make_label() > 0).astype(np.uint8), {3: "Segment_3"})
    )
    np.testing.assert_array_equal(mask.array, make_label() > 0)
    assert len(mask.warnings) == 1


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("Segment1_Layer", "1", "its segments overlap; save it without overlap"),
        ("Segment1_LabelValue", "1.0", "its Segment1_LabelValue, '1.0', is no number"),
    ],
)
def test_fields_that_cannot_be_taken_are_said_in_one_line(tmp_path, field, value, reason):
    file = write_slicer_mask(tmp_path / "a.nrrd", make_label(), {1: "Liver", 2: "Tumor"}, fields={field: value})
    with pytest.raises(InputError, match=f"^{file}: {reason}"):
        read_slicer_names(file)


def test_numbers_without_names_that_are_no_classes_are_refused_as_of_any_mask(tmp_path):
    nib.save(nib.Nifti1Image(make_image(), AFFINE), tmp_path / "ct.nii")
    file = write_slicer_mask(tmp_path / "a.nrrd", 3 * make_label(), {3: "Segment_3", 6: "Segment_6"})
    with pytest.raises(InputError, match="has label values other than 0, 1 and 2: 3, 6"):
        add_case(tmp_path / "mine", tmp_path / "ct.nii", file)


def test_nrrd_files_of_others_have_no_names(tmp_path):
    assert read_slicer_names(write_slicer_mask(tmp_path / "a.nrrd", make_label(), {})) == {}
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\nnothing")
    assert read_slicer_names(tmp_path / "b.nrrd") == {}
