"""Which cases are there, and is each of them fit for use?

Reads a LiTS folder or an MSD ``Task03_Liver`` folder as downloaded, or a MONAI datalist JSON, and checks every case.
"""

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from scripts.errors import InputError
from scripts.headers import (
    IMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    check_gzip,
    check_size,
    explain_unreadable,
    find_voxel_ml,
    output_name,
)

SECTIONS = ("training", "validation", "test")
PAPER_MIN_SLICES = 48

LITS_NAME = re.compile(r"(volume|segmentation)-(\d+)\.nii(\.gz)?")
LITS_CASE = re.compile(r"(?:volume-|liver_)(\d+)")  # MSD kept the numbers of LiTS
IRCADB_CASES = range(28, 48)  # 3D-IRCADb scans, released in LiTS without their spacing
SHIFTED_LABEL_CASES = (54,)

IN_PLANE_SPACING_MM = (0.2, 10.0)
SLICE_SPACING_MM = (0.2, 15.0)
IN_PLANE_EXTENT_MM, SLICE_EXTENT_MM = 1200.0, 2500.0  # no scanner sees more
RIGHT_ANGLE_TOLERANCE = 0.01  # cosine, about half a degree
AIR_HU = -200.0  # every CT has voxels below this: air, lung, or the padding around the field of view
SOFT_TISSUE_HU = (-100.0, 200.0)
MIN_SOFT_TISSUE_FRACTION = 0.01  # of all voxels
DENSE_HU = 800.0  # bone's hardest and metal; soft tissue that had 1024 added
MAX_DENSE_FRACTION = 0.1  # of all voxels
WRAPPED_HU = 2**16 - 1100  # where -1024 HU and a little more are as unsigned 16-bit integers
MAX_LABEL = 255
MAX_LABELS = 128  # TotalSegmentator has 117
LIVER_MEDIAN_HU = (-50.0, 300.0)
MIN_LIVER_FRACTION, MAX_LIVER_FRACTION = 0.001, 0.5  # of all voxels
MAX_AIR_IN_LIVER = 0.05  # of the label
GRID_TOLERANCE = 0.05  # of a voxel: above a header's rounding, far below what a label would show


def absolute(path: str | os.PathLike) -> Path:
    """Return ``path`` from the root, without ``~`` and ``..``."""
    return Path(os.path.abspath(os.path.expanduser(str(path))))


def natural_key(name: str) -> list[str | int]:
    """Return a key that sorts volume-2 before volume-10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``. Raises `InputError` if it cannot be read or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold a JSON object with a 'training' list")
    return content


class Case(NamedTuple):
    """One scan and its label; ``section`` is set where the user's own datalist says where the case belongs."""

    name: str
    image: str
    label: str
    section: str | None = None


class Finding(NamedTuple):
    """What is remarkable about one file; ``severity`` is "error" (unusable), "dropped" (left out) or "warning"."""

    severity: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.severity}: {os.path.basename(self.file)}: {self.reason}"


def _list_lits_cases(root: Path) -> tuple[list[Case], list[Finding]]:
    found: dict[str, dict[int, Path]] = {"volume": {}, "segmentation": {}}
    findings = []
    for folder, _, files in sorted(os.walk(root, followlinks=True)):
        for match in filter(None, map(LITS_NAME.fullmatch, sorted(files))):
            kind, number, path = match[1], int(match[2]), Path(folder, match[0])
            if number in found[kind]:
                reason = f"{kind} {number} is also {found[kind][number]}; remove one of the two"
                findings.append(Finding("error", str(path), reason))
            else:
                found[kind][number] = path
    volumes, segmentations = found["volume"], found["segmentation"]
    if not volumes and not segmentations:
        reason = (
            "no cases found; looked for volume-N.nii[.gz] with segmentation-N.nii[.gz] in it and its "
            "subfolders (LiTS) and for dataset.json (MSD Task03_Liver); for a datalist of another name, give its path"
        )
        findings.append(Finding("error", str(root), reason))
    for kind, numbers, partners in (("segmentation", volumes, segmentations), ("volume", segmentations, volumes)):
        for number in sorted(numbers.keys() - partners.keys()):
            reason = f"has no {kind}-{number}.nii[.gz]; add it, or remove this file"
            findings.append(Finding("error", str(numbers[number]), reason))
    pairs = sorted(volumes.keys() & segmentations.keys())
    return [Case(f"volume-{n}", str(volumes[n]), str(segmentations[n])) for n in pairs], findings


def shared_folder(images: Sequence[str]) -> str:
    """Return the folder by the path from which images are told apart; "" if their files' names suffice."""
    names = {output_name(image) for image in images}
    return "" if len(names) == len(images) else os.path.commonpath([os.path.dirname(image) for image in images])


def name_images(images: Sequence[str]) -> list[str]:
    """Name images by their files, or, where files of several folders share a name, by their paths."""
    folder = shared_folder(images)
    if not folder:
        return [output_name(image) for image in images]
    return [Path(os.path.relpath(image, folder)).as_posix() for image in images]


def _list_datalist_cases(datalist_file: Path) -> tuple[list[Case], list[Finding]]:
    datalist = read_json(datalist_file)
    sections = {section: datalist.get(section) or [] for section in SECTIONS}
    if not all(isinstance(items, list) for items in sections.values()) or not sections["training"]:
        raise InputError(f"{datalist_file}: has no 'training' list; give a MONAI datalist or MSD's dataset.json")
    sections["test"] = [item for item in sections["test"] if isinstance(item, dict) and item.get("label")]
    if sections["test"] and not sections["validation"]:
        raise InputError(f"{datalist_file}: has labelled 'test' cases but no 'validation'; add it, or take 'test' out")

    pairs: dict[str, tuple[str, str | None]] = {}
    findings = []
    for section, items in sections.items():
        for index, item in enumerate(items):
            files = [item.get(key) if isinstance(item, dict) else None for key in ("image", "label")]
            if not all(isinstance(file, str) and file for file in files):
                reason = f"{section}[{index}] must give one path each as 'image' and 'label'"
                findings.append(Finding("error", str(datalist_file), reason))
                continue
            image, label = (os.path.abspath(datalist_file.parent / file) for file in files)
            if image in pairs:
                reason = f"{section}[{index}] lists {image} a second time; remove one of the two"
                findings.append(Finding("error", str(datalist_file), reason))
            elif not os.path.basename(image).startswith("._"):  # what macOS leaves in archives
                pairs[image] = (label, section if sections["validation"] else None)
    if not pairs and not findings:
        findings.append(Finding("error", str(datalist_file), "lists no cases"))
    outputs: dict[str, str] = {}
    for image in pairs:
        other = outputs.setdefault(os.path.join(os.path.dirname(image), output_name(image)), image)
        if other != image:
            reason = f"its mask would have the same name as that of {os.path.basename(other)}; rename one of them"
            findings.append(Finding("error", image, reason))
    cases = [Case(name, image, *pairs[image]) for image, name in zip(pairs, name_images(list(pairs)), strict=True)]
    return sorted(cases, key=lambda case: natural_key(case.name)), findings


def list_cases(dataset_dir: str | os.PathLike) -> tuple[list[Case], list[Finding]]:
    """List the cases of a LiTS folder, an MSD ``Task03_Liver`` folder or a MONAI datalist JSON, without opening them.

    Args:
        dataset_dir: a folder with a ``dataset.json`` (MSD's, or any MONAI datalist), or with ``volume-N.nii[.gz]`` and
            ``segmentation-N.nii[.gz]`` anywhere below it, or a datalist JSON itself. A datalist with a ``validation``
            list keeps its own split. Unlabelled ``test`` items (MSD's) are not cases.

    Returns:
        Cases with absolute paths, sorted by name and number, and what is wrong with the list: a file lacks its partner,
        or is there twice, or nothing is there.

    Raises:
        InputError: there is no such folder or file, or it is no datalist.
    """
    root = absolute(dataset_dir)
    if not root.exists():
        raise InputError(f"{root}: does not exist; give an existing folder or datalist JSON as --dataset_dir")
    if root.is_file():
        return _list_datalist_cases(root)
    if (root / "dataset.json").is_file():
        return _list_datalist_cases(root / "dataset.json")
    return _list_lits_cases(root)


def find_cases(dataset_dir: str | os.PathLike) -> list[Case]:
    """Return the cases that `list_cases` lists.

    Raises:
        InputError: as `list_cases` does, and if anything is wrong with the list.
    """
    cases, findings = list_cases(dataset_dir)
    if findings:
        others = f" (and {len(findings) - 1} more: python -m scripts.data check lists them)" if findings[1:] else ""
        raise InputError(f"{findings[0].file}: {findings[0].reason}{others}")
    return cases


class CaseReport(NamedTuple):
    """What checking one case has shown; what could not be measured is None or NaN.

    ``slices`` counts along the axis closest to head-foot, ``spacing_mm`` follows the array's axes, ``liver_ml``
    includes ``tumor_ml``, and ``fingerprint`` is the same of images of the same voxels.
    """

    case: Case
    findings: tuple[Finding, ...]
    slices: int | None = None
    spacing_mm: tuple[float, ...] = (math.nan,) * 3
    liver_ml: float = math.nan
    tumor_ml: float = math.nan
    fingerprint: str | None = None

    @property
    def status(self) -> str:
        """One of "bad", "dropped" and "ok"."""
        severities = {finding.severity for finding in self.findings}
        return "bad" if "error" in severities else "dropped" if "dropped" in severities else "ok"


class Volume(NamedTuple):
    """One file's voxels (H, W, D), integers or float32, their (4, 4) RAS affine, and what is odd about the header."""

    array: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()


def _measure_shift_mm(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far apart two affines place a voxel of a (H, W, D) grid at most; 0 where rounding explains it."""
    corners = list(itertools.product(*[(0, size - 1) for size in shape]))  # no voxel is further off than one of them
    shift_mm = np.linalg.norm(nib.affines.apply_affine(affine - other, corners), axis=1).max()
    return float(shift_mm) if shift_mm > GRID_TOLERANCE * nib.affines.voxel_sizes(affine).min() else 0.0


def _read_nifti(file: str) -> Volume:
    nifti = nib.load(file, mmap=False)  # a mapped file that shrinks would end the program
    check_size(nifti)
    proxy, dtype = nifti.dataobj, nifti.get_data_dtype()
    # A CT is hundreds of megabytes: integers stay as stored, and nothing becomes float64.
    keep = dtype.kind not in "iuf" or (dtype.kind in "iu" and (proxy.slope, proxy.inter) == (1, 0))
    array = np.asanyarray(proxy) if keep else np.asanyarray(proxy, dtype=np.float32)
    if math.prod(array.shape[3:]) == 1:  # (X, Y, Z, 1) is one volume
        array = array.reshape(array.shape[:3])
    if file.lower().endswith(".gz"):
        check_gzip(file)
    header, warnings = nifti.header, []
    forms = [affine for affine, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    if not forms:
        warnings.append("its header says no orientation (neither sform nor qform is set)")
    elif len(forms) == 2 and array.ndim == 3 and (shift_mm := _measure_shift_mm(*forms, array.shape)):
        warnings.append(f"its sform and qform disagree by up to {shift_mm:.3g} mm; the sform is used")
    return Volume(array, nifti.affine, tuple(warnings))


def read_volume(file: str) -> Volume:
    """Read one 3D file, NIfTI by nibabel and others by MONAI; raise `ValueError` with the reason if it is unusable."""
    if not os.path.exists(file):
        raise ValueError("does not exist; restore it or take it off the list")
    if os.path.isdir(file):
        raise ValueError("is a folder; python -m scripts.data add makes a case of a DICOM series and its mask")
    if not file.lower().endswith(IMAGE_SUFFIXES):  # MONAI would read others too, and NumPy's by executing them
        raise ValueError(f"cannot be read, its format is none of {', '.join(IMAGE_SUFFIXES)}; convert it")
    try:
        open(file, "rb").close()  # nibabel takes a file that it may not read for one of an unknown format
        if file.lower().endswith(NIFTI_SUFFIXES):
            volume = _read_nifti(file)
        else:
            from monai.transforms import LoadImage  # takes seconds to import, and data as downloaded never need it

            from scripts.scans import ScanReader, check_file

            check_file(file)
            image = LoadImage(reader=ScanReader(), image_only=True)(file)
            volume = Volume(image.numpy(), image.affine.numpy())
    except Exception as error:  # the readers raise whatever a broken file makes them run into
        raise ValueError(explain_unreadable(error)) from error
    array, affine = volume.array, volume.affine
    if array.dtype.kind not in "biuf":
        raise ValueError(f"has voxels of type {array.dtype}; save it with one real number per voxel")
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"has shape {array.shape}; it must be one 3D volume")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError("has a singular affine, so no spacing or orientation; repair its header")
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):  # NaN and infinity both reach one of the two
        raise ValueError("has voxels that are NaN or infinite; replace them")
    return volume


def _find_slice_axis(affine: np.ndarray) -> int:
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def find_grid_errors(affine: np.ndarray, shape: Sequence[int]) -> Iterable[str]:
    """Yield why a (H, W, D) grid cannot be a CT's, in words that follow a file's name, if there is a reason."""
    slice_axis = _find_slice_axis(affine)
    for axis, value_mm in enumerate(nib.affines.voxel_sizes(affine)):
        is_slice = axis == slice_axis
        low_mm, high_mm = SLICE_SPACING_MM if is_slice else IN_PLANE_SPACING_MM
        where = "between slices" if is_slice else "in plane"
        extent_mm, limit_mm = value_mm * shape[axis], SLICE_EXTENT_MM if is_slice else IN_PLANE_EXTENT_MM
        if not low_mm <= round(value_mm, 5) <= high_mm:
            yield f"its spacing {where} is {value_mm:g} mm, not {low_mm:g} to {high_mm:g} mm; repair its header"
        elif extent_mm > limit_mm:
            yield f"it measures {extent_mm:.4g} mm {where}, more than {limit_mm:g} mm; repair its header"


def is_sheared(affine: np.ndarray) -> bool:
    """Return whether the axes of a grid are not at right angles to each other."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > RIGHT_ANGLE_TOLERANCE)


def is_label_map(image: np.ndarray) -> bool:
    """Return whether voxels are labels, not a scan's: few small whole numbers, 0 among them and others."""
    if image.min() != 0 or not 0 < image.max() <= MAX_LABEL:
        return False
    values = np.unique(image)
    return values.size <= MAX_LABELS and bool((values == np.round(values)).all())


def find_hu_errors(image: np.ndarray) -> Iterable[str]:
    """Yield why voxels cannot be a CT in Hounsfield units, in words that follow a file's name, if there is a reason."""
    low_hu, high_hu = SOFT_TISSUE_HU
    minimum, maximum = float(image.min()), float(image.max())
    if minimum == maximum:
        yield f"every voxel is {minimum:g}; it holds no scan: export it again"
    elif minimum >= AIR_HU:
        cause = "HU + 1024, windowed, or not CT: convert it to HU"
        if WRAPPED_HU <= maximum < 2**16:
            cause = "HU below 0 that were saved as unsigned 16-bit integers: subtract 65536 from those over 32767"
        yield f"no voxel is under {AIR_HU:g} HU (they are {minimum:g} to {maximum:g}); it looks like {cause}"
    elif (dense := np.count_nonzero(image > DENSE_HU) / image.size) > MAX_DENSE_FRACTION:
        yield f"{dense:.0%} of the voxels are over {DENSE_HU:g} HU; it looks like HU + 1024: convert it to HU"
    elif np.count_nonzero((image >= low_hu) & (image <= high_hu)) / image.size < MIN_SOFT_TISSUE_FRACTION:
        yield f"hardly any voxel is soft tissue ({low_hu:g} to {high_hu:g} HU); convert it to HU"


def turn_to_match(label: Volume, image: Volume) -> Volume:
    """Return ``label`` with its axes in the order and direction of its image's; every voxel stays where it is."""
    turn = nib.io_orientation(np.linalg.inv(image.affine) @ label.affine)  # from the label's voxels to the image's
    affine = label.affine @ nib.orientations.inv_ornt_aff(turn, label.array.shape)
    return label._replace(array=nib.apply_orientation(label.array, turn), affine=affine)


def _find_match_errors(image: Volume, label: Volume) -> Iterable[str]:
    shape, label_shape = image.array.shape, label.array.shape
    if shape != label_shape:
        yield f"has shape {label_shape} along its image's axes, not {shape}; they must share one grid"
    elif shift_mm := _measure_shift_mm(image.affine, label.affine, shape):
        yield (
            f"its affine differs from its image's by up to {shift_mm:.3g} mm; resample it to the image's grid, or, "
            "if the voxels do correspond, copy the image's header to it"
        )


def _find_label_errors(label: np.ndarray, known_voxels: int) -> Iterable[str]:
    if known_voxels < label.size:
        others = np.setdiff1d(label, (0, 1, 2))
        listed = ", ".join(f"{value:g}" for value in others[:5]) + (", ..." if len(others) > 5 else "")
        yield f"has label values other than 0, 1 and 2: {listed}; map them to these"


def _find_label_misfits(image: np.ndarray, label: np.ndarray) -> Iterable[tuple[str, str]]:
    """Yield severity and reason where a label does not fit its image."""
    liver_hu = image[label > 0]
    if liver_hu.size == 0:
        yield "warning", "is empty: no liver and no tumour"
        return
    fraction, median_hu = liver_hu.size / label.size, float(np.median(liver_hu))
    if fraction > MAX_LIVER_FRACTION:
        yield "error", f"the liver fills {fraction:.2%} of the volume: the label may be inverted; draw it again"
    elif fraction < MIN_LIVER_FRACTION:
        yield "warning", f"the liver fills {fraction:.2%} of the volume"
    if not LIVER_MEDIAN_HU[0] <= median_hu <= LIVER_MEDIAN_HU[1]:
        reason = f"the median under the label is {median_hu:g} HU, which is not liver"
        severity = "warning" if fraction < MIN_LIVER_FRACTION else "error"  # of a few voxels it says little
        yield severity, f"{reason}: the label may be shifted, flipped or another scan's; put it right"
    elif (air := np.count_nonzero(liver_hu < AIR_HU) / liver_hu.size) > MAX_AIR_IN_LIVER:
        yield "warning", f"{air:.0%} of the label is air (under {AIR_HU:g} HU): it may be shifted; look at it"


def _find_lits_traps(case: Case, affine: np.ndarray, spacing_mm: np.ndarray) -> Iterable[Finding]:
    match = LITS_CASE.fullmatch(case.name)
    number = int(match[1]) if match else None
    if np.allclose(np.abs(affine), np.eye(4)):  # of MetaImage and NRRD it has two signs
        yield Finding("warning", case.image, "identity affine: its orientation and millimetres are likely not true")
    if number in IRCADB_CASES and np.allclose(spacing_mm, 1):
        reason = "a 3D-IRCADb scan whose spacing was reset to 1 mm: its millimetres and millilitres are not true"
        yield Finding("warning", case.image, reason)
    if number in SHIFTED_LABEL_CASES:
        yield Finding("warning", case.label, "LiTS's label of this case has been reported as shifted; look at it")
    if is_sheared(affine):
        reason = "its axes are not at right angles (a tilted gantry?): distances measured in it are not exact"
        yield Finding("warning", case.image, reason)


def _fingerprint(array: np.ndarray) -> str:
    """Return a sum of the voxels, whole HU, whatever type of numbers the file has them in."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for plane in array.T:  # nibabel's arrays are transposed
        digest.update(np.ascontiguousarray(np.nan_to_num(plane).round().clip(-(2**31), 2**31 - 1).astype(np.int64)))
    return digest.hexdigest()


def find_repeated(reports: Sequence[CaseReport]) -> list[CaseReport]:
    """Return the reports, with a finding for each image whose voxels are those of an earlier one.

    It is an error where the two are, or by a split could come to be, in different sections: what is trained on would be
    tested on. Within one section of the user's own datalist it is a warning.
    """
    first: dict[str, CaseReport] = {}
    results = []
    for report in reports:
        twin = first.setdefault(report.fingerprint, report) if report.fingerprint else report
        if twin is not report:
            together = report.case.section is not None and report.case.section == twin.case.section
            where = f" of {twin.case.section}" if twin.case.section else ""
            reason = f"is the same scan as {twin.case.image}{where}; remove one of the two"
            finding = Finding("warning" if together else "error", report.case.image, reason)
            report = report._replace(findings=(*report.findings, finding))
        results.append(report)
    return results


def check_case(case: Case, min_slices: int = PAPER_MIN_SLICES) -> CaseReport:
    """Read one case and report everything that makes it unusable, too short, or doubtful.

    Args:
        case: the case; its files need not exist.
        min_slices: a case with fewer slices is reported as dropped (the paper drops those under 48).

    Returns:
        The report; nothing is raised for a bad file.
    """
    findings: list[Finding] = []
    volumes: list[Volume] = []
    for file in (case.image, case.label):
        try:
            volumes.append(read_volume(file))
            findings += [Finding("warning", file, reason) for reason in volumes[-1].warnings]
        except ValueError as error:
            findings.append(Finding("error", file, str(error)))
    if len(volumes) < 2:
        return CaseReport(case, tuple(findings))
    report = check_volumes(case, *volumes, min_slices)
    return report._replace(findings=(*findings, *report.findings))


def check_volumes(case: Case, image: Volume, stored_label: Volume, min_slices: int) -> CaseReport:
    """Report of a case, whose files hold these volumes, what `check_case` does, but for what reading them shows."""
    findings: list[Finding] = []

    def add(severity: str, file: str, reasons: Iterable[str]) -> None:
        findings.extend(Finding(severity, file, reason) for reason in dict.fromkeys(reasons))  # said once of two axes

    label = turn_to_match(stored_label, image)
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    slices = image.array.shape[_find_slice_axis(image.affine)]
    counts = [int(np.count_nonzero(label.array == value)) for value in (0, 1, 2)]
    voxel_ml = find_voxel_ml(label.affine)

    add("error", case.image, find_grid_errors(image.affine, image.array.shape))
    add("error", case.image, find_hu_errors(image.array))
    add("error", case.label, _find_match_errors(image, label))
    add("error", case.label, _find_label_errors(label.array, sum(counts)))
    if not any(finding.severity == "error" for finding in findings):
        if not np.array_equal(stored_label.affine, label.affine):
            reason = "is stored with other axes than its image; the same grid, so it is turned to match"
            add("warning", case.label, [reason])
        for severity, reason in _find_label_misfits(image.array, label.array):
            add(severity, case.label, [reason])
    findings += _find_lits_traps(case, image.affine, spacing_mm)
    if slices < min_slices:
        add("dropped", case.image, [f"{slices} slices, fewer than {min_slices}"])
    liver_ml, tumor_ml = (counts[1] + counts[2]) * voxel_ml, counts[2] * voxel_ml
    measures = (slices, tuple(map(float, spacing_mm)), liver_ml, tumor_ml, _fingerprint(image.array))
    return CaseReport(case, tuple(findings), *measures)
