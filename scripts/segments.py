"""Which segments of a mask that a viewer saved are the liver's, which a tumour's, and where in the scan do they lie?

Asked of a DICOM SEG, as OHIF and archives have it, and of the NRRD files of 3D Slicer's segmentations (``.seg.nrrd``).
No voxel is resampled.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data.utils import orientation_ras_lps

from scripts.cases import Volume
from scripts.errors import InputError
from scripts.scans import SLICE_TOLERANCE, import_highdicom

LIVER_WORDS = {"liver", "hepatic", "hepar"}
TUMOR_WORDS = {
    "tumor", "tumors", "tumour", "tumours", "neoplasm", "neoplasms", "lesion", "lesions", "metastasis", "metastases",
    "met", "mets", "carcinoma", "cancer", "malignancy", "mass", "masses", "nodule", "nodules", "hcc", "hepatoma",
    "hepatocellular", "cholangiocarcinoma",
}  # fmt: skip
EMPTY_WORDS = {
    "segment", "segmentation", "mask", "label", "tissue", "organ", "whole", "primary", "secondary", "malignant", "of",
    "the", "manual", "corrected", "final",
}  # fmt: skip
LETTER_OR_NUMERAL = re.compile("[a-z]|[ivx]+")
LIVER, TUMOR, OTHER, UNCLEAR = 1, 2, 0, -1  # what a name says; the first two are classes
SLICER_FIELD = re.compile(r"(Segment\d+)_(?:ID|Name|LabelValue)")
MAX_LISTED = 5
STEP_TOLERANCE = 0.05  # of a voxel, of the step from one to the next


def find_class(*names: str) -> int | None:
    """Return what the first name with a meaning says: `LIVER`, `TUMOR`, `OTHER` or `UNCLEAR`; None if none has one.

    Unclear is what has words beside those of liver and tumour: "kidney tumor", "liver without tumor", "left liver".
    """
    for name in names:
        words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)} - EMPTY_WORDS
        words = {word for word in words if not LETTER_OR_NUMERAL.fullmatch(word)}
        if not words:
            continue
        if not words & (LIVER_WORDS | TUMOR_WORDS):
            return OTHER
        if words - LIVER_WORDS - TUMOR_WORDS:
            return UNCLEAR
        return TUMOR if words & TUMOR_WORDS else LIVER
    return None


def take_segments(file: PathLike, names: Mapping[int, Sequence[str]]) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the class of each segment that is taken, and warnings of what is not, or of a doubt.

    A sole segment without a name is the liver's: somebody gave it for a mask of it.

    Args:
        file: where they are from.
        names: of each segment, by its number: its label, the type of what it shows.

    Raises:
        InputError: if none is the liver's, or of one it is not clear what it is.
    """
    kinds = {number: find_class(*said) for number, said in names.items()}
    remedy = "name the liver liver, its tumours tumor, and leave out the others"
    if unclear := _listed(names[number][0] for number, kind in kinds.items() if kind == UNCLEAR):
        raise InputError(f"{file}: liver, its tumours, or neither? That is not clear of {unclear}; {remedy}")
    if list(kinds.values()) == [None]:
        (number,) = kinds
        doubt = f"its only segment, {names[number][0]}, is taken for the liver's"
        return {number: LIVER}, (doubt,) if number != 1 else ()
    if LIVER not in kinds.values():
        labels = _listed(said[0] for said in names.values()) or "none at all"
        raise InputError(f"{file}: has no segment named liver, but {labels}; {remedy}")
    others = _listed(names[number][0] for number, kind in kinds.items() if not kind)
    taken = {number: kind for number, kind in kinds.items() if kind}
    doubt = f"of its segments {others} not taken, by name neither liver nor its tumours: background, in the liver too"
    return taken, (doubt,) if others else ()


def _listed(labels: Iterable[str]) -> str:
    labels = list(labels)
    return ", ".join(labels[:MAX_LISTED]) + (", ..." if len(labels) > MAX_LISTED else "")


class _Canvas:
    """The grid of a scan, onto which segments of ``file`` are put by where they lie in mm."""

    def __init__(self, file: PathLike, scan: Volume):
        self.file = file
        self.affine = scan.affine
        self.to_voxels = np.linalg.inv(scan.affine)
        self.classes = np.zeros(scan.array.shape, np.uint8)

    def put(self, voxels: np.ndarray, affine: np.ndarray, kind: int) -> None:
        """Put ``kind`` where ``voxels`` (N, 3) of a grid with this ``affine`` to RAS are; a tumour stays.

        An axis along which all are 0, as that of a single frame, may have any step.
        """
        if not len(voxels):
            return
        to_own = self.to_voxels @ affine
        steps = np.abs(to_own[:3, :3])[:, voxels.any(0)]
        places = nib.affines.apply_affine(to_own, voxels)
        nearest = np.rint(places).astype(int)
        is_other = steps.size and np.abs(steps.max(0) - 1).max() > STEP_TOLERANCE
        if is_other or np.abs(places - nearest).max() > SLICE_TOLERANCE:
            raise InputError(
                f"{self.file}: its voxels are not those of its image; give the image that it was drawn on, or export "
                "it with that as reference"
            )
        if (nearest < 0).any() or (nearest >= self.classes.shape).any():
            raise InputError(f"{self.file}: reaches beyond its image; give the image that it was drawn on")
        index = tuple(nearest.T)
        self.classes[index] = np.maximum(self.classes[index], kind)

    def finish(self, warnings: tuple[str, ...]) -> Volume:
        """Return the mask. Raises `InputError` if it is of tumours alone."""
        if self.classes.any() and not (self.classes == LIVER).any():
            raise InputError(f"{self.file}: its segment of the liver is empty, that of tumours is not; draw the liver")
        return Volume(self.classes, self.affine, warnings)


def read_dicom_seg(file: PathLike, scan: Volume, series_uid: str = "") -> Volume:
    """Return the mask in a DICOM SEG on the grid of its scan: 0 background, 1 liver, 2 tumour.

    Args:
        file: a DICOM SEG, binary, fractional (a half or more is inside) or a label map.
        scan: what it is of.
        series_uid: of the scan; if the SEG refers to others alone, its warnings say so.

    Raises:
        InputError: if highdicom is not installed, the file is no DICOM SEG, has no liver, or lies on another grid.
    """
    highdicom = import_highdicom()
    canvas = _Canvas(file, scan)
    try:
        seg = highdicom.seg.segread(file)
        described = {number: seg.get_segment_description(number) for number in seg.segment_numbers if number}
        names = {k: (str(v.segment_label), str(v.segmented_property_type.meaning)) for k, v in described.items()}
        taken, warnings = take_segments(file, names)
        for index in range(int(seg.NumberOfFrames)):
            _put_frame(canvas, seg, index, taken)
        references = {item.SeriesInstanceUID for item in seg.get("ReferencedSeriesSequence", ())}
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever pydicom and highdicom find wrong
        raise InputError(
            f"{file}: cannot be read as a DICOM SEG ({type(error).__name__}: {' '.join(str(error).split())}); "
            "export it again, or as a NIfTI file"
        ) from error
    if series_uid and references and series_uid not in references:
        warnings += ("it refers to another series than that of its image",)
    return canvas.finish(warnings)


def _put_frame(canvas: _Canvas, seg: Any, index: int, taken: Mapping[int, int]) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    own = seg.PerFrameFunctionalGroupsSequence[index]

    def find(name: str) -> Any:
        return (own if name in own else shared)[name].value[0]

    to_lps = import_highdicom().spatial.PixelToReferenceTransformer(  # of columns and rows
        find("PlanePositionSequence").ImagePositionPatient,
        find("PlaneOrientationSequence").ImageOrientationPatient,
        find("PixelMeasuresSequence").PixelSpacing,
    )
    affine = orientation_ras_lps(to_lps.affine)
    numbers = set(taken)
    if seg.SegmentationType != "LABELMAP":
        numbers &= {find("SegmentIdentificationSequence").ReferencedSegmentNumber}
    if not numbers:
        return
    pixels = seg.get_stored_frame(index + 1)
    for number in numbers:
        if seg.SegmentationType == "LABELMAP":
            inside = pixels == number
        else:
            inside = pixels >= (seg.MaximumFractionalValue if seg.SegmentationType == "FRACTIONAL" else 1) / 2
        rows, columns = np.nonzero(inside)
        canvas.put(np.stack([columns, rows, np.zeros_like(rows)], 1), affine, taken[number])


def read_slicer_names(file: PathLike) -> dict[int, tuple[str]]:
    """Return the names of the segments in an NRRD file of 3D Slicer, by their numbers; none of a file of another's.

    Raises:
        InputError: if segments overlap, which Slicer saves as several volumes, or a number is none.
    """
    dictionary = _read_dictionary(file)
    segments = sorted({match[1] for match in map(SLICER_FIELD.fullmatch, dictionary) if match})
    if {dictionary.get(f"{segment}_Layer", "0") for segment in segments} - {"0"}:
        raise InputError(f"{file}: its segments overlap; save it without overlap, or export it as a labelmap")
    names = {}
    for segment in segments:
        value = dictionary.get(f"{segment}_LabelValue", "1")
        if not value.isdigit():
            raise InputError(f"{file}: its {segment}_LabelValue, {value!r}, is no number; save it again")
        names[int(value)] = (dictionary.get(f"{segment}_Name", segment),)
    return names


def read_slicer_mask(file: PathLike, names: Mapping[int, Sequence[str]], mask: Volume, scan: Volume) -> Volume:
    """Return what 3D Slicer saved on the grid of its scan, its classes by the names of its segments.

    Slicer numbers segments as they were made, and may cut off what is empty. If the names of several say nothing
    ("Segment_1"), as of a mask that was opened as such, their numbers are the classes.

    Args:
        file: an NRRD file.
        names: of its segments, as `read_slicer_names` finds them.
        mask: what `scripts.cases.read_volume` reads of it.
        scan: what it is of.

    Raises:
        InputError: if it has no liver, or lies on another grid.
    """
    warnings = ()
    if len(names) == 1 or any(find_class(*said) is not None for said in names.values()):
        taken, warnings = take_segments(file, names)
    elif np.isin(mask.array, (0, LIVER, TUMOR)).all():
        taken = {LIVER: LIVER, TUMOR: TUMOR}
        warnings = (f"its segments {_listed(said[0] for said in names.values())} have no names: 1 is liver, 2 tumour",)
    else:
        return mask  # whose values the check refuses
    canvas = _Canvas(file, scan)
    for number, kind in taken.items():
        for index in range(mask.array.shape[2]):  # a liver's voxels at once would be hundreds of megabytes
            plane = np.argwhere(mask.array[..., index] == number)
            canvas.put(np.insert(plane, 2, index, axis=1), mask.affine, kind)
    return canvas.finish(warnings)


def _read_dictionary(file: PathLike) -> dict[str, str]:
    io = itk.ImageIOFactory.CreateImageIO(str(file), itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        return {}
    io.SetFileName(str(file))
    try:
        io.ReadImageInformation()
    except RuntimeError:  # is said when it is read
        return {}
    dictionary = io.GetMetaDataDictionary()
    return {key: dictionary[key] for key in dictionary.GetKeys() if isinstance(dictionary[key], str)}
