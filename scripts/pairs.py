"""How does somebody's own scan, of any format that is read here, with its mask become a case to train on?"""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.cases import (
    LITS_NAME,
    Case,
    CaseReport,
    Finding,
    Volume,
    absolute,
    check_volumes,
    read_volume,
    turn_to_match,
)
from scripts.errors import InputError
from scripts.files import written_whole
from scripts.headers import NRRD_SUFFIXES
from scripts.inference import CheckedLoadImaged
from scripts.scans import SERIES_UID, ScanReader, find_slices, is_dicom
from scripts.segments import read_dicom_seg, read_slicer_mask, read_slicer_names

INT16 = np.iinfo(np.int16)


def add_case(
    dataset_dir: str | os.PathLike, image: str | os.PathLike, label: str | os.PathLike, series: str = ""
) -> CaseReport:
    """Write a scan and its mask to ``dataset_dir`` as ``volume-N.nii.gz`` and ``segmentation-N.nii.gz``.

    N is the number after the highest that is there, from 0 on. The image keeps its grid, the mask is turned to it.

    Args:
        dataset_dir: a folder of such pairs, made if it is not there.
        image: a folder of a DICOM series, or a NIfTI, NRRD or MetaImage file, in HU.
        label: a file of a mask on the image's grid: 0 background, 1 liver, 2 tumour; a DICOM SEG, or an NRRD file
            of 3D Slicer's segmentations, by the names of its segments, see `scripts.segments`.
        series: which of several in a folder; see `scripts.scans.read_dicom_series`.

    Returns:
        What the check of the pair found, with the files written.

    Raises:
        InputError: if one cannot be read, they are no pair to train on, or ``dataset_dir`` has a list of its cases.
    """
    folder = absolute(dataset_dir)
    if (folder / "dataset.json").exists():
        raise InputError(f"{folder}: has a dataset.json, which lists its cases; give another folder, or add to that")
    source = Case(os.path.basename(os.path.normpath(image)), str(image), str(label))
    for path in (image, label):
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file or folder")
    if os.path.isdir(label):
        raise InputError(f"{label}: is a folder; give a file of the mask, such as a NIfTI file or a DICOM SEG")
    scan = read_scan(image, series)
    mask = _read_mask(label, scan, image, series)
    report = check_volumes(source, scan, mask, min_slices=0)
    for finding in report.findings:
        if finding.severity == "error":
            raise InputError(f"{finding.file}: {finding.reason}")
    found = _find_files(folder)
    for file in (file for file, kind, _ in found if kind == "volume"):
        if _is_same(file, scan):
            raise InputError(
                f"{image}: is there already, as {file}; to give it another mask, remove it and its mask first"
            )
    number = 1 + max((number for _, _, number in found), default=-1)
    pair = [folder / f"{kind}-{number}.nii.gz" for kind in ("volume", "segmentation")]
    classes = turn_to_match(mask, scan).array.astype(np.uint8)
    try:
        for path, voxels in zip(pair, (_as_stored(scan.array), classes), strict=True):
            with written_whole(path) as temporary:
                nib.save(nib.Nifti1Image(voxels, scan.affine), temporary)
    except BaseException:  # both, or none: one without the other stops every training
        for path in pair:
            path.unlink(missing_ok=True)
        raise
    of_headers = [
        Finding("warning", file, reason)
        for file, volume in ((source.image, scan), (source.label, mask))
        for reason in volume.warnings
    ]
    return report._replace(case=Case(f"volume-{number}", *map(str, pair)), findings=(*of_headers, *report.findings))


def read_scan(path: str | os.PathLike, series: str = "") -> Volume:
    """Read the scan of a DICOM series or a file. Raises `InputError` if it cannot be, or is no volume."""
    if os.path.isdir(path):
        image = CheckedLoadImaged("image", check_hu=False, reader=ScanReader(series))({"image": str(path)})["image"]
        return Volume(image.numpy(), image.affine.numpy())
    return _read_file(path)


def _read_file(path: str | os.PathLike) -> Volume:
    try:
        return read_volume(str(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _as_stored(image: np.ndarray) -> np.ndarray:
    """Return an image as int16, if it has such numbers alone, else as float32."""
    fits = INT16.min <= image.min() and image.max() <= INT16.max and bool((image == np.round(image)).all())
    return image.astype(np.int16 if fits else np.float32)


def _find_files(folder: Path) -> list[tuple[Path, str, int]]:
    """Return each file that has a name of a case, its kind and its number."""
    files = [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in sorted(names)]
    matches = ((file, LITS_NAME.fullmatch(file.name)) for file in files)
    return [(file, match[1], int(match[2])) for file, match in matches if match]


def _is_same(file: Path, scan: Volume) -> bool:
    """Return whether a file that is there has the voxels of ``scan``, in any order of axes; a damaged one has not."""
    try:
        if sorted(nib.load(file).shape) != sorted(scan.array.shape):  # of the header alone
            return False
        return np.array_equal(turn_to_match(read_volume(str(file)), scan).array, scan.array)
    except Exception:  # whatever nibabel runs into, which the check of the data says
        return False


def _read_mask(label: str | os.PathLike, scan: Volume, image: str | os.PathLike, series: str) -> Volume:
    if is_dicom(Path(label)):
        uid = find_slices(image, series)[0].tags[SERIES_UID] if os.path.isdir(image) else ""
        return read_dicom_seg(label, scan, uid)
    names = read_slicer_names(label) if str(label).lower().endswith(NRRD_SUFFIXES) else {}
    mask = _read_file(label)
    return read_slicer_mask(label, names, mask, scan) if names else mask
