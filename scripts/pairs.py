"""How does somebody's own scan, of any format that is read here, with its mask become a case to train on?"""

import os
import re
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
from scripts.inference import CheckedLoadImaged
from scripts.scans import ScanReader

INT16 = np.iinfo(np.int16)


def add_case(
    dataset_dir: str | os.PathLike, image: str | os.PathLike, label: str | os.PathLike, series: str = ""
) -> CaseReport:
    """Write a scan and its mask to ``dataset_dir`` as ``volume-N.nii.gz`` and ``segmentation-N.nii.gz``.

    N is the number after the highest that is there, from 0 on. The image keeps its grid, the mask is turned to it.

    Args:
        dataset_dir: a folder of such pairs, made if it is not there.
        image: a folder of a DICOM series, or a NIfTI, NRRD or MetaImage file, in HU.
        label: a file of a mask on the image's grid: 0 background, 1 liver, 2 tumour.
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
        raise InputError(f"{label}: is a folder; give a file of the mask, such as a NIfTI file")
    scan = read_scan(image, series)
    try:
        mask = read_volume(str(label))
    except ValueError as error:
        raise InputError(f"{label}: {error}") from error
    report = check_volumes(source, scan, mask, min_slices=0)
    for finding in report.findings:
        if finding.severity == "error":
            raise InputError(f"{finding.file}: {finding.reason}")
    number = 1 + max((int(match[2]) for match in _find_names(folder)), default=-1)
    pair = [folder / f"{kind}-{number}.nii.gz" for kind in ("volume", "segmentation")]
    classes = turn_to_match(mask, scan).array.astype(np.uint8)
    for path, voxels in zip(reversed(pair), (classes, _as_stored(scan.array)), strict=True):
        with written_whole(path) as temporary:
            nib.save(nib.Nifti1Image(voxels, scan.affine), temporary)
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
    try:
        return read_volume(str(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _as_stored(image: np.ndarray) -> np.ndarray:
    """Return an image as int16, if it has such numbers alone, else as float32."""
    fits = INT16.min <= image.min() and image.max() <= INT16.max and bool((image == np.round(image)).all())
    return image.astype(np.int16 if fits else np.float32)


def _find_names(folder: Path) -> list[re.Match]:
    names = (name for _, _, files in os.walk(folder, followlinks=True) for name in files)
    return [match for match in map(LITS_NAME.fullmatch, names) if match]
