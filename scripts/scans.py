"""How is one scan read? NIfTI by nibabel, all else by ITK; a DICOM series must be one even stack of slices.

GDCM finds and sorts the slices of a series. What ITK only warns of (a missing slice) or does not see (a damaged file, a
tilted gantry, a scout among the slices) is checked here, against the positions that it reads from each file.
"""

import logging
import math
import os
import struct
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import itk
import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import ImageReader, ITKReader, NibabelReader
from monai.utils import MetaKeys, ensure_tuple

from scripts.errors import InputError
from scripts.headers import IMAGE_SUFFIXES, NIFTI_SUFFIXES, check_gzip, check_size, check_voxels

if TYPE_CHECKING:
    import highdicom

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
DICOM_PREAMBLE_BYTES = 128
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")  # one of which old files without a preamble begin with
DICOM_META_BYTES = 1024  # of which the kind of object is one of the first
PHOTOMETRIC = "0028|0004"
MODALITY, IMAGE_TYPE, SERIES_UID = "0008|0060", "0008|0008", "0020|000e"
ENHANCED_CT_CLASSES = (b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.5.1.4.1.1.2.2")  # made so, and converted
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
FRAMES = "0028|0008"
SAME_PLACE_MM = 1e-3
SLICE_TOLERANCE = 0.2  # of a pixel or the distance of slices: positions are rounded; a missing slice is 0.5 at least


def is_dicom(path: Path) -> bool:
    """Return whether a file says that it is DICOM; without a preamble, also by its name."""
    if path.name.upper() == "DICOMDIR":  # the list of what is on a disc
        return False
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return False
    suffix = path.suffix.lower()
    try:
        with open(path, "rb") as file:
            start = file.read(DICOM_PREAMBLE_BYTES + 4)
    except PermissionError:  # is said when it is read
        return suffix in DICOM_SUFFIXES
    without_preamble = suffix in DICOM_SUFFIXES and start.startswith(FIRST_GROUPS)
    return start[DICOM_PREAMBLE_BYTES:] == b"DICM" or without_preamble


def _object_class(path: str) -> bytes:
    """Return the UID of the kind of object that a DICOM file holds, as its first bytes say; empty if they do not."""
    with open(path, "rb") as file:
        start = file.read(DICOM_META_BYTES)
    place = start.find(b"\x02\x00\x02\x00UI")
    if place < 0:
        return b""
    (length,) = struct.unpack_from("<H", start, place + 6)
    return start[place + 8 : place + 8 + length].rstrip(b"\0 ")


class Slice(NamedTuple):
    """What the header of one DICOM file says.

    ``axes`` (3, 3) are the unit vectors of a row, a column and their normal, as columns; ``position_mm`` (3,) is that
    of the first pixel, both in LPS. ``size`` and ``spacing_mm`` are those of columns and rows.
    """

    file: str
    size: tuple[int, int]
    spacing_mm: tuple[float, float]
    position_mm: np.ndarray
    axes: np.ndarray
    components: int
    frames: int
    tags: dict[str, str]

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return os.path.basename(self.file)

    @property
    def is_placed(self) -> bool:
        """Whether it has a place in the patient, and no colours."""
        return self.components == 1 and (bool(self.tags[POSITION]) or self.frames > 1)

    @property
    def is_scout(self) -> bool:
        """Whether it is a localizer, the overview on which the scan was planned."""
        return "LOCALIZER" in self.tags[IMAGE_TYPE].split("\\")


def read_slice(file: str) -> Slice:
    """Read the header of a DICOM file. Raises what ITK does if it is damaged or no image."""
    io = itk.GDCMImageIO.New()
    io.SetFileName(file)
    io.ReadImageInformation()
    dictionary = io.GetMetaDataDictionary()
    names = (MODALITY, IMAGE_TYPE, PHOTOMETRIC, SERIES_UID, POSITION, ORIENTATION, PIXEL_SPACING, FRAMES)
    tags = {name: dictionary[name].strip() if dictionary.HasKey(name) else "" for name in names}
    return Slice(
        file,
        (io.GetDimensions(0), io.GetDimensions(1)),
        (io.GetSpacing(0), io.GetSpacing(1)),
        np.array([io.GetOrigin(axis) for axis in range(3)]),
        np.array([io.GetDirection(axis) for axis in range(3)]).T,
        io.GetNumberOfComponents(),
        io.GetDimensions(2) if io.GetNumberOfDimensions() > 2 else 1,
        tags,
    )


def _find_series(folder: str) -> dict[str, list[str]]:
    """Return identifier → files, in the order of their slices, of the series in a folder, told apart as ITK does."""
    names = itk.GDCMSeriesFileNames.New()
    names.SetGlobalWarningDisplay(False)  # that there is none is said in our words
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(folder)
    return {series: list(names.GetFileNames(series)) for series in names.GetSeriesUIDs()}


def _choose_series(folder: str, found: dict[str, list[str]], chosen: str) -> list[str]:
    """Return the files of the series ``chosen``, or else of the only CT; scouts and other things are left out."""
    samples = {series: read_slice(files[len(files) // 2]) for series, files in found.items()}  # scouts lie at the ends
    listing = ", ".join(
        f"{series} ({len(found[series])} files of {sample.tags[MODALITY] or 'no modality'})"
        for series, sample in samples.items()
    )
    if chosen in found:
        return found[chosen]
    if chosen:
        matches = [series for series, sample in samples.items() if chosen == sample.tags[SERIES_UID]]
        if not matches:
            raise InputError(f"{folder}: has no DICOM series {chosen}; it has {listing}")
    else:
        matches = [series for series, sample in samples.items() if not sample.is_scout]
        matches = [series for series in matches if samples[series].tags[MODALITY] == "CT"] or matches
        # a screen of the dose, or a saved view, may call itself CT too
        placed = [series for series in matches if samples[series].is_placed]
        matches = placed if len(placed) == 1 else matches
    uids = {samples[series].tags[SERIES_UID] for series in matches}
    if len(matches) > 1 and len(uids) == 1 and any(uids):
        # ITK tells slices apart by the text of their thickness, or by their dates, too
        slices = [read_slice(file) for series in matches for file in found[series]]
        if chosen or _is_one_stack(folder, _sort_slices(slices)):
            return [image.file for image in slices]
    if len(matches) > 1:
        raise InputError(f"{folder}: holds {len(matches)} DICOM series; choose one by --series: {listing}")
    for series in found.keys() - set(matches):
        logger.info("%s: left out %s (%d files): not the CT", folder, series, len(found[series]))
    return found[matches[0]] if matches else []


def _sort_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Return slices, without localizers, by their positions along their normal.

    GDCM sorts them too, but by their numbers, often from head to feet, where a localizer lies beside one of them.
    """
    own = [image for image in slices if not image.is_scout]
    return sorted(own, key=lambda image: image.position_mm @ own[0].axes[:, 2])


def _check_slice(folder: str, image: Slice, first: Slice) -> None:
    if image.frames > 1:
        reason = f"{image.name} holds {image.frames} frames; convert it to one DICOM file per slice, or to NIfTI"
    elif image.components > 1:
        reason = f"{image.name} is in colours, not a CT; export the CT's slices"
    elif image.tags[PHOTOMETRIC] == "MONOCHROME1":  # ITK would turn the HU around, too
        reason = f"{image.name} is to be shown with white for the lowest HU (MONOCHROME1); export it as MONOCHROME2"
    elif not image.tags[POSITION]:
        reason = f"{image.name} has no position in the patient; export the original slices"
    elif not image.tags[ORIENTATION] or not image.tags[PIXEL_SPACING]:  # ITK would take supine, and 1 mm
        reason = f"{image.name} has no orientation or no pixel spacing; export the original slices"
    elif image.size != first.size or not np.allclose(image.spacing_mm, first.spacing_mm, rtol=1e-3):
        reason = f"{image.name} and {first.name} differ in size or pixel spacing; keep one of the kinds"
    elif not np.allclose(image.axes, first.axes, atol=1e-3):
        reason = f"{image.name} and {first.name} are planes of different directions; keep one of the kinds"
    else:
        return
    raise InputError(f"{folder}: {reason}")


def check_stack(folder: str, slices: Sequence[Slice]) -> bool:
    """Check that slices, in their order, are one stack without gaps, and return whether they are tilted.

    A tilted stack (of a tilted gantry) goes on at an angle to its slices' normal: its voxels are no cuboids.

    Raises:
        InputError: if a slice is unlike the others, or there twice, or missing.
    """
    first, last = slices[0], slices[-1]
    for image in slices:
        _check_slice(folder, image, first)
    if len(slices) < 2:
        return False
    positions_mm = np.array([image.position_mm for image in slices])
    heights_mm = positions_mm @ first.axes[:, 2]
    order = np.argsort(heights_mm, kind="stable")
    gaps_mm = np.diff(heights_mm[order])
    closest, widest = int(gaps_mm.argmin()), int(gaps_mm.argmax())

    def pair(gap: int) -> str:
        return f"{slices[order[gap]].name} and {slices[order[gap + 1]].name}"

    if gaps_mm[closest] < SAME_PLACE_MM:
        raise InputError(
            f"{folder}: {pair(closest)} lie in the same place; keep one of them, or of the phases or reconstructions "
            "that they are of"
        )
    usual_mm = gaps_mm[closest]
    if gaps_mm[widest] > (1 + 2 * SLICE_TOLERANCE) * usual_mm:
        raise InputError(
            f"{folder}: from {pair(widest)} it is {gaps_mm[widest]:.3g} mm, between other slices {usual_mm:.3g} mm: "
            "slices are missing, or their distance changes; export the whole series, or resample it to one distance"
        )
    step_mm = (last.position_mm - first.position_mm) / (len(slices) - 1)
    errors_mm = np.linalg.norm(positions_mm - (first.position_mm + np.arange(len(slices))[:, None] * step_mm), axis=1)
    if errors_mm.max() > SLICE_TOLERANCE * usual_mm:
        name = slices[int(errors_mm.argmax())].name
        reason = f"{name} is {errors_mm.max():.3g} mm off the line of the slices; export the series again"
        raise InputError(f"{folder}: {reason}")
    sideways_mm = np.linalg.norm((last.position_mm - first.position_mm) @ first.axes[:, :2])
    return bool(sideways_mm > SLICE_TOLERANCE * min(first.spacing_mm))


def _check_all_found(folder: str, found: dict[str, list[str]], files: Sequence[str]) -> None:
    """Raise if the folder holds a file of the same kind as ``files`` that GDCM has left out since it is damaged."""
    kinds = {_object_class(file) for file in files[:1]}
    known = {os.path.realpath(file) for group in found.values() for file in group}
    for path in sorted(Path(folder).iterdir()):
        if not path.is_file() or path.name.startswith(".") or os.path.realpath(path) in known or not is_dicom(path):
            continue
        if _object_class(str(path)) in kinds:
            raise InputError(f"{folder}: {path.name} cannot be read, it is damaged or incomplete; export it again")


def _is_one_stack(folder: str, slices: Sequence[Slice]) -> bool:
    try:
        check_stack(folder, slices)
    except InputError:
        return False
    return True


def find_slices(folder: PathLike, series: str = "") -> list[Slice]:
    """Return the slices of the CT in a folder of DICOM files, in their order; or one file of many frames.

    Args:
        folder: one series, beside which there may be localizers and what is no CT.
        series: which of several: an identifier, as the error that asks for it lists them, or a SeriesInstanceUID.

    Raises:
        InputError: if there are several and none is chosen, or there is none, or one is damaged.
    """
    folder = os.path.normpath(str(folder))
    found = _find_series(folder)
    files = _choose_series(folder, found, series)
    _check_all_found(folder, found, files)
    slices = _sort_slices(list(map(read_slice, files)))
    if not slices:
        raise InputError(
            f"{folder}: holds no slices of a scan that can be read, only localizers, other objects or damaged files; "
            "export its slices"
        )
    if len(slices) < len(files):
        logger.info("%s: left out %d localizers among the slices", folder, len(files) - len(slices))
    return slices


def import_highdicom() -> types.ModuleType:
    """Return highdicom. Raises `InputError` if it is not installed."""
    try:
        import highdicom
    except ImportError as error:
        raise InputError("highdicom is not installed; pip install -r requirements-dicom.txt") from error
    return highdicom


def read_frames(file: PathLike) -> "highdicom.Volume":
    """Return the frames of an enhanced DICOM file as an even stack of float32 HU ``(slice, row, column)``.

    By highdicom, which sorts them by their places and gives each the slope that is its own.

    Raises:
        InputError: if highdicom is not installed, or the frames are no even stack, or their compression is unknown.
    """
    highdicom = import_highdicom()
    try:
        return highdicom.imread(file).get_volume(dtype=np.float32)
    except Exception as error:  # whatever pydicom's decoders raise
        raise InputError(
            f"{file}: its frames cannot be read as one even stack of slices ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); convert it to one DICOM file per slice, or to NIfTI"
        ) from error


def read_dicom_series(folder: PathLike, series: str = "") -> Any:
    """Return the CT in a folder of DICOM files as an ITK image of float32 HU; its dictionary has the modality alone.

    Args:
        folder: one series, beside which there may be localizers and what is no CT.
        series: which of several: an identifier, as the error that asks for it lists them, or a SeriesInstanceUID.

    Raises:
        InputError: if there are several and none is chosen, or the slices are no even stack, or one is damaged.
    """
    folder = os.path.normpath(str(folder))
    slices = find_slices(folder, series)
    if len(slices) == 1 and slices[0].frames > 1 and _object_class(slices[0].file) in ENHANCED_CT_CLASSES:
        image = read_frames(slices[0].file).permute_spatial_axes([2, 1, 0]).to_itk()  # (X, Y, Z)
    else:
        image = _read_stack(folder, slices)
    dictionary = itk.MetaDataDictionary()
    dictionary[MODALITY] = slices[0].tags[MODALITY]
    image.SetMetaDataDictionary(dictionary)
    return image


def _read_stack(folder: str, slices: Sequence[Slice]) -> Any:
    """Return one file per slice as an ITK image. Raises `InputError` if they are no even stack, or not decoded."""
    tilted = check_stack(folder, slices)
    if tilted:
        logger.warning("%s: its slices are tilted; the mask has a sheared affine, which not every viewer shows", folder)
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(
        FileNames=[image.file for image in slices],
        ImageIO=itk.GDCMImageIO.New(),
        ForceOrthogonalDirection=not tilted,
    )
    try:
        reader.Update()
    except RuntimeError as error:
        raise InputError(
            f"{folder}: its pixels cannot be decoded; decompress it, for example by gdcmconv --raw, or export it again"
        ) from error
    image = reader.GetOutput()
    if not tilted:  # ITK takes the sign of SpacingBetweenSlices into it
        image.SetDirection(itk.matrix_from_array(slices[0].axes))
    return image


def check_file(path: str) -> None:
    """Raise unless an image file holds the voxels that its header promises, undamaged as far as checksums tell.

    Raises:
        ValueError, OSError, EOFError, zlib.error: if it does not.
    """
    open(path, "rb").close()  # nibabel takes a file that it may not read for one of an unknown format
    if path.lower().endswith(NIFTI_SUFFIXES):
        check_size(nib.load(path))
        if path.lower().endswith(".gz"):
            check_gzip(path)
        return
    io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise ValueError("not of a format that ITK knows")
    io.SetFileName(path)
    io.ReadImageInformation()
    check_voxels(path, io.GetImageSizeInBytes())


class ScanReader(ImageReader):
    """Reads NIfTI by nibabel and all else, DICOM series folders included, by ITK; never by one when the other fails.

    Args:
        series: which series to take from a DICOM folder of several; see `read_dicom_series`.
    """

    def __init__(self, series: str = ""):
        super().__init__()
        self.series = series
        self.nibabel_reader = NibabelReader(squeeze_non_spatial_dims=True)  # (X, Y, Z, 1) is one volume
        self.itk_reader = ITKReader()

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True: it takes what `scripts.inference.find_images` finds."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Return the image object of the library that reads ``data``, or the error that it raises."""
        path = str(ensure_tuple(data)[0])
        try:
            if os.path.isdir(path):
                return read_dicom_series(path, self.series)
            if path.lower().endswith(NIFTI_SUFFIXES):
                return nib.load(path)  # MONAI's would prefer a qform that is not set to an sform unlike the pixdim
            return self.itk_reader.read(data, **kwargs)
        except Exception as error:  # raised here, it would make MONAI try its other readers, which guess
            return error

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Return the voxels ``(X, Y, Z)`` and the metadata, affine to RAS mm included; raise what `read` returned."""
        if isinstance(img, Exception):
            raise img
        if not isinstance(img, nib.spatialimages.SpatialImage):
            array, metadata = self.itk_reader.get_data(img)
            if img.GetImageDimension() > 3 and math.prod(array.shape[3:]) == 1:
                array = array.reshape(array.shape[:3])
                metadata[MetaKeys.SPATIAL_SHAPE] = np.array(array.shape)
                metadata[MetaKeys.ORIGINAL_CHANNEL_DIM] = math.nan  # as MONAI's readers say none
            return array, metadata
        self.nibabel_reader.filenames = (img.get_filename(),)  # what its own `read` leaves for this
        return self.nibabel_reader.get_data(img)
