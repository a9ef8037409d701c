"""How is a mask given back to the archive that a DICOM series came from? As a DICOM SEG object, made by highdicom.

Its segments are coded in SNOMED CT; every frame refers to the slice that it lies on and has that slice's position;
patient and study are the series' own. highdicom is imported only where it is needed: clients with packages of their
own, such as MONAI Label, use the rest without it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.colors import to_rgb
from monai.config import PathLike
from monai.utils import ImageMetaKey

from scripts.errors import InputError
from scripts.files import sha256, written_whole
from scripts.headers import output_name
from scripts.inference import ImageBatches
from scripts.preview import CLASS_COLORS
from scripts.scans import Slice, find_slices, import_highdicom, read_frames

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset

logger = logging.getLogger(__name__)

METADATA = Path(__file__).resolve().parents[1] / "configs/metadata.json"
SERIES_NUMBER_OFFSET = 1000  # above the scan's own series number, so that it is listed after the scans of its study
LIVER = ("10200004", "SCT", "Liver")
CODES = {  # class name → category and type of what is segmented, as DICOM's CID 7150 and 7151 have them
    "liver": (("123037004", "SCT", "Anatomical Structure"), LIVER),
    "tumor": (("49755003", "SCT", "Morphologically Abnormal Structure"), ("108369006", "SCT", "Neoplasm")),
}
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip
SEXES = ("M", "F", "O", "")  # that DICOM has, PS3.3 C.7.1.1


class Algorithm(NamedTuple):
    """What made a mask: the bundle's name, its version, its authors, and the SHA-256 sum of the weights."""

    name: str
    version: str
    authors: str
    weights: str


def read_algorithm(weights: PathLike) -> Algorithm:
    """Return this bundle with the ``weights`` in that file."""
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    return Algorithm(metadata["name"], metadata["version"], metadata["authors"], sha256(weights))


def describe_segments(class_names: Sequence[str], algorithm: Algorithm) -> list[SegmentDescription]:
    """Return a description of every class but the background, the first; of each the number is its class index."""
    highdicom = import_highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    made_by = highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name,
        version=algorithm.version,
        family=codes.cid7162.ArtificialIntelligence,
        source=algorithm.authors,
        parameters={"weights_sha256": algorithm.weights},
    )
    descriptions = []
    for number, name in enumerate(class_names[1:], start=1):
        category, kind = (Code(*code) for code in CODES[name])
        color = np.multiply(to_rgb(CLASS_COLORS[(number - 1) % len(CLASS_COLORS)]), 255).round().astype(int)
        descriptions.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=made_by,
                anatomic_regions=None if kind == Code(*LIVER) else [Code(*LIVER)],
                display_color=highdicom.color.CIELabColor.from_rgb(*color.tolist()),
            )
        )
    return descriptions


def read_headers(files: Sequence[PathLike]) -> list[Dataset]:
    """Return the headers of DICOM files; what DICOM lets be empty is empty where it is missing, or is no date or sex.

    Raises:
        InputError: if they have not the identifiers that a SEG refers to.
    """
    import_highdicom()
    from pydicom import dcmread
    from pydicom.valuerep import DA, TM

    headers = []
    for file in files:
        header = dcmread(file, stop_before_pixels=True, force=True)  # old files have no preamble
        header.decode()
        missing = [keyword for keyword in NEEDED if not header.get(keyword)]
        if missing:
            raise InputError(
                f"{file}: has no {', '.join(missing)}, which a DICOM SEG refers to; "
                f"export or anonymise the series with {'it' if len(missing) == 1 else 'them'}"
            )
        for keyword in MAY_BE_EMPTY:
            try:
                {"Date": DA, "Time": TM}.get(keyword[-4:], str)(header[keyword].value or "")
            except (KeyError, ValueError):
                setattr(header, keyword, None)
        if (header.PatientSex or "") not in SEXES:
            header.PatientSex = None
        headers.append(header)
    return headers


def level(headers: Sequence[Dataset], slices: Sequence[Slice]) -> None:
    """Give all ``headers`` the direction and spacing of the first and the true distance of ``slices``, in place.

    What they say of the distance can be false, and directions differ in their last digits; highdicom takes the one as
    it is, and refuses the other. Where the thickness is missing, it is the distance.
    """
    height_mm = (slices[-1].position_mm - slices[0].position_mm) @ slices[0].axes[:, 2]
    step_mm = float(f"{abs(height_mm) / max(len(slices) - 1, 1):.9g}")  # DICOM has room for 16 characters
    for header in headers:
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        header.PixelSpacing = headers[0].PixelSpacing
        header.SpacingBetweenSlices = step_mm
        header.SliceThickness = header.get("SliceThickness") or step_mm


@contextmanager
def _explained(folder: PathLike) -> Iterator[None]:
    """Raise `InputError` for whatever pydicom or highdicom find wrong in the headers of a series."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{folder}: no DICOM SEG can be made of it ({type(error).__name__}: {' '.join(str(error).split())}); "
            "export the series again"
        ) from error


def make_segmentation(
    folder: PathLike, mask: np.ndarray, class_names: Sequence[str], algorithm: Algorithm, series: str = ""
) -> Segmentation:
    """Return a mask of the scan that `scripts.scans.read_dicom_series` reads from ``folder``, as a DICOM SEG.

    Frame by frame it goes onto the slices in the order in which they were read: no position is computed, so none can be
    wrong. Frames without a voxel of a segment are left out, unless there are no others.

    Args:
        folder: of the DICOM series.
        mask: class indices ``(X, Y, Z)``, columns, rows and slices as read.
        class_names: of all classes, background first.
        algorithm: what made the mask.
        series: which of several; see `scripts.scans.read_dicom_series`.

    Raises:
        InputError: if highdicom is not installed, an identifier is missing in the series, or it refuses their headers.
        ValueError: if the mask is not of the scan's shape.
    """
    highdicom = import_highdicom()
    segments = describe_segments(class_names, algorithm)
    slices = find_slices(folder, series)
    pixels = np.ascontiguousarray(mask.transpose(2, 1, 0).astype(np.uint8))  # (Z, Y, X): frames, rows, columns
    if slices[0].frames == 1 and len(pixels) != len(slices):
        raise ValueError(f"expected a mask of {len(slices)} slices, received {len(pixels)}")
    with _explained(folder):
        headers = read_headers([image.file for image in slices])
        if slices[0].frames > 1:
            pixels = read_frames(slices[0].file).with_array(pixels)  # highdicom finds which frame each slice is
        else:
            level(headers, slices)
        segmentation = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=pixels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER_OFFSET + int(headers[0].get("SeriesNumber") or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=algorithm.authors,
            manufacturer_model_name=algorithm.name,
            software_versions=algorithm.version,
            device_serial_number=algorithm.weights,
            series_description=f"{algorithm.name}: {', '.join(class_names[1:])}",
            content_description="For research only",
            content_label="SEGMENTATION",
            specific_character_set="ISO_IR 192",  # UTF-8, whatever the scan has its names in
        )
    segmentation.ContentCreatorName = None  # no person; but DICOM has it there, if empty
    return segmentation


class DicomSegWriter:
    """After each DICOM series of an inference, writes its mask as ``NAME_seg.dcm`` beside the NIfTI one.

    Where that cannot be, it is said as of an image that cannot be read, and the others go on.

    Args:
        batches: of the evaluator, to whose failures its own are added.
        class_names: of all classes, background first.
        weights: the file that the network's weights are from.
        series: which series of a folder of several; see `scripts.scans.read_dicom_series`.

    Raises:
        InputError: if highdicom is not installed.
    """

    def __init__(self, batches: ImageBatches, class_names: Sequence[str], weights: PathLike, series: str = ""):
        import_highdicom()
        self.batches = batches
        self.class_names = tuple(class_names)
        self.weights = weights
        self.series = series

    def attach(self, engine: Engine) -> None:
        """Write at every image of the evaluator ``engine``."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self) -> None:
        """Take the sum of the weights."""
        self.algorithm = read_algorithm(self.weights)

    def __call__(self, engine: Engine) -> None:
        """Write the masks of this iteration."""
        from pydicom.config import disable_value_validation

        for output in engine.state.output:
            mask = output["pred"]
            source = str(mask.meta[ImageMetaKey.FILENAME_OR_OBJ])
            if not os.path.isdir(source):
                logger.warning("%s: is no DICOM series, so there is no DICOM SEG of it", source)
                continue
            written = Path(mask.meta["saved_to"])
            path = written.with_name(f"{output_name(written)}.dcm")
            try:
                # what the scan's own header has is passed on as it is: pydicom would refuse it, or print it
                with disable_value_validation(), written_whole(path) as temporary:
                    classes = torch.as_tensor(mask)[0].cpu().numpy()
                    segmentation = make_segmentation(source, classes, self.class_names, self.algorithm, self.series)
                    segmentation.save_as(temporary)
            except InputError as error:
                reason = f"{error}; of {source} there is the NIfTI mask alone"
                logger.error("%s", reason)
                self.batches.failures.append({"image": source, "mask": str(written), "reason": reason})
            else:
                logger.info("%s: -> %s", source, path)
