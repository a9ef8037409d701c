"""What does a scanner make of a patient: with which grid, noise and header?"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from scripts.errors import InputError
from scripts.knobs import check_whole, is_whole
from scripts.phantom.painting import paint
from scripts.phantom.patient import Patient, draw_patient
from scripts.phantom.scanner import acquire, draw_streaks, find_outside_of_circle
from scripts.phantom.wide import draw_wide_patient

MIN_SIZE_VOXELS = 32
FLIP_PROBABILITIES = (0.5, 0.5, 0.15)
SLAB_VOXELS = 4_000_000  # painted at a time
TO_RAS = np.diag([-1.0, 1.0, 1.0, 1.0])  # the body frame's x runs to the patient's left, that of RAS+ to the right


@dataclass(frozen=True)
class Phantom:
    """A CT, its label map and where they are.

    Attributes:
        image: int16 HU, (X, Y, Z), slices on the last axis.
        label: uint8, same shape: 0 background, 1 liver, 2 tumour (inside the liver only).
        affine: (4, 4) float64, voxel index to RAS millimetres.
        description: what was drawn: phase, tumours (of the patient; a scan may miss some), spacing_mm, orientation.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    description: dict


def check_grid(size: Sequence[int], spacing: Sequence[float] | None) -> None:
    """Raise `InputError` unless ``size`` is three voxel numbers that are large enough and ``spacing`` None or valid."""
    three = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 3
    if not three or not all(is_whole(n) and n >= MIN_SIZE_VOXELS for n in size):
        raise InputError(
            f"size: expected three whole numbers of at least {MIN_SIZE_VOXELS}, as in 128,128,64, received {size!r}"
        )
    if spacing is not None and (np.shape(spacing) != (3,) or not all(0 < step < np.inf for step in spacing)):
        raise InputError(f"spacing: expected three positive numbers of millimetres, received {spacing!r}")


def choose_spacing(patient: Patient, size: tuple[int, int, int]) -> tuple[float, float, float]:
    """A spacing in millimetres with which ``size`` voxels see the body as LiTS scans do."""
    trunk, scan = patient.trunk, patient.scan
    width = 2 * trunk.skin_mm[0] * patient.scale[0]
    depth = 2 * trunk.cavity_half_mm[1] + sum(trunk.muscle_mm[1:]) + sum(trunk.fat_mm[1:]) + 30
    in_plane = scan.field_of_view * max(width / size[0], depth * patient.scale[1] / size[1])
    along = float(np.clip(scan.length_mm / size[2], 0.7, 5.0))
    return (round(in_plane, 4), round(in_plane, 4), round(along, 2))


def _find_axes(patient: Patient, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> list[np.ndarray]:
    """Scanner coordinates of the voxel centres: the body in the middle, the liver in the slab or cut by its end."""
    trunk = patient.trunk
    (_, front, back), (_, fat_front, fat_back) = trunk.muscle_mm, trunk.fat_mm
    length, liver_length = spacing[2] * (size[2] - 1), 165.0 * patient.scale[2]
    middle_z = -0.5 * liver_length + patient.scan.height * abs(length - liver_length) * 0.95
    middle_z += patient.scan.cut * 0.5 * min(length, liver_length)
    middle_y = patient.scale[1] * ((front + fat_front - back - fat_back) / 2 - 8)
    middle = np.add(patient.shift_mm, (0.0, middle_y, middle_z))
    return [m + d * (np.arange(n) - (n - 1) / 2) for m, d, n in zip(middle, spacing, size, strict=True)]


def add_noise(
    image: np.ndarray, patient: Patient, spacing: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Blur by the scanner's point spread and the slice thickness, add correlated noise with streaks from side to side.

    Args:
        image: float32 HU, (X, Y, Z); changed in place.
        patient: whose scan settings are used.
        spacing: millimetres.
        rng: of the noise.

    Returns:
        ``image``.
    """
    scan = patient.scan
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    for axis in range(3):
        blur = scan.blur_slices if axis == 2 else scan.blur_mm / spacing[axis]
        grain = 0.4 if axis == 2 else max(0.45, scan.grain_mm / spacing[axis])
        ndimage.gaussian_filter1d(image, blur, axis=axis, output=image, mode="nearest", truncate=3)
        ndimage.gaussian_filter1d(noise, grain, axis=axis, output=noise, truncate=3)
    streaks = draw_streaks(image.shape, rng)
    noise *= scan.noise_hu / noise.std()
    image += noise
    streaks *= scan.noise_hu * scan.streaks
    image += streaks
    return image


def make_phantom(
    seed: int,
    size: tuple[int, int, int] = (128, 128, 64),
    spacing: tuple[float, float, float] | None = None,
    reorient: bool = True,
) -> Phantom:
    """Draw the patient of ``seed`` and scan them.

    Args:
        seed: of everything, not negative; the patient depends on nothing else, the noise also on the grid.
        size: voxels along the left-right, back-front and foot-head axis.
        spacing: millimetres along the same axes; None draws one that suits the body.
        reorient: flip axes at random, as LiTS headers do, the affine with them; False keeps RAS+.

    Returns:
        The phantom.

    Raises:
        InputError: ``seed`` is negative, ``size`` is below 32 along some axis, or ``spacing`` is not positive.
    """
    check_whole("seed", seed, 0)
    check_grid(size, spacing)
    patient_seed, flip_seed, noise_seed = np.random.SeedSequence(seed).spawn(3)
    patient = draw_patient(np.random.default_rng(patient_seed))
    spacing = tuple(map(float, spacing)) if spacing is not None else choose_spacing(patient, size)
    axes = _find_axes(patient, size, spacing)

    image, label = np.empty(size, np.float32), np.empty(size, np.uint8)
    thick = max(1, SLAB_VOXELS // (size[0] * size[1]))
    for start in range(0, size[2], thick):
        stop = start + thick
        image[..., start:stop], label[..., start:stop] = paint(
            patient, (axes[0], axes[1], axes[2][start:stop]), spacing[0]
        )
    image = add_noise(image, patient, spacing, np.random.default_rng(noise_seed))
    image = np.clip(np.rint(image), -1024, 3071).astype(np.int16)

    flips = np.random.default_rng(flip_seed).random(3) < FLIP_PROBABILITIES if reorient else None
    description = {"phase": patient.phase, "tumours": len(patient.tumours)}
    return _finish(image, label, axes, spacing, flips, description)


def draw_patient_of_seed(seed: int) -> Patient:
    """The patient whom `make_wide_phantom` scans."""
    return draw_wide_patient(np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0]))


def make_wide_phantom(seed: int, spacing: Sequence[float] = (2.0, 2.0, 2.0), reorient: bool = True) -> Phantom:
    """Draw the patient of ``seed`` with all the variety there is, and scan them; the size follows from the patient.

    Args:
        seed: of everything, not negative.
        spacing: millimetres along the left-right, back-front and foot-head axis.
        reorient: flip axes at random, as LiTS headers do, the affine with them; False keeps RAS+.

    Returns:
        The phantom; its description says in addition what is special, and what of the liver and its tumours is seen.

    Raises:
        InputError: ``seed`` is negative or ``spacing`` is not positive.
    """
    check_whole("seed", seed, 0)
    check_grid((MIN_SIZE_VOXELS,) * 3, spacing)
    patient = draw_patient_of_seed(seed)
    flip_seed, noise_seed = np.random.SeedSequence(seed).spawn(3)[1:]
    scan, spacing = patient.scan, tuple(map(float, spacing))
    axes = _find_wide_axes(patient, spacing)
    image, label = paint(patient, axes, spacing[0] * 0.8)
    image = acquire(image, scan, spacing, np.random.default_rng(noise_seed))
    image = image * scan.gain + scan.offset_hu + (scan.gain - 1) * 1000
    if scan.circle_hu is not None:
        outside = find_outside_of_circle(image.shape, spacing)
        image[outside], label[outside] = scan.circle_hu, 0
    image = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    flips = np.random.default_rng(flip_seed).random(3) < FLIP_PROBABILITIES if reorient else None
    description = {
        "phase": patient.phase,
        "view": scan.view,
        "liver_kind": patient.findings.liver_kind,
        "liver_hu": round(patient.hu["liver"], 1),
        "thickness_mm": round(scan.thickness_mm, 2),
        "noise_hu": round(scan.noise_hu, 1),
        **_measure(label, spacing),
    }
    return _finish(image, label, axes, spacing, flips, description)


def _find_wide_axes(patient: Patient, spacing: tuple[float, float, float]) -> list[np.ndarray]:
    """Scanner coordinates of the voxel centres over the part of the body that is scanned."""
    scan, trunk = patient.scan, patient.trunk
    side, front, back = trunk.skin_mm
    width = 2 * side * max(1.0, trunk.hips) * scan.field_of_view[0]
    depth = (front + back + 20) * scan.field_of_view[1]
    middle = ((scan.off_centre_mm[0]), (front - back) / 2 + scan.off_centre_mm[1], (scan.low_mm + scan.high_mm) / 2)
    length = np.array([width, depth, scan.high_mm - scan.low_mm]) * patient.scale
    centre = np.array(middle) * patient.scale + patient.shift_mm
    counts = np.maximum(MIN_SIZE_VOXELS, np.rint(length / spacing).astype(int))
    return [m + d * (np.arange(n) - (n - 1) / 2) for m, d, n in zip(centre, spacing, counts, strict=True)]


def _measure(label: np.ndarray, spacing: tuple[float, float, float]) -> dict:
    """Millilitres of the liver with its tumours, and of each tumour that is seen with its diameter as a sphere."""
    voxel_ml = float(np.prod(spacing)) / 1000
    boxes = ndimage.find_objects((label > 0).astype(np.uint8))
    inside = label[boxes[0]] if boxes else label[:0]
    pieces = ndimage.label(inside == 2)[0]
    volumes = np.sort(np.bincount(pieces.ravel())[1:])[::-1] * voxel_ml if inside.size else np.zeros(0)
    return {
        "liver_ml": round(float((inside > 0).sum()) * voxel_ml, 2),
        "tumour_ml": [round(float(ml), 3) for ml in volumes],
        "tumour_mm": [round(float(np.cbrt(6000 * ml / np.pi)), 1) for ml in volumes],
    }


def _finish(
    image: np.ndarray,
    label: np.ndarray,
    axes: list[np.ndarray],
    spacing: tuple[float, float, float],
    flips: np.ndarray | None,
    description: dict,
) -> Phantom:
    """A phantom whose axes are flipped where ``flips`` says so, or to RAS+ if it is None."""
    affine = TO_RAS @ np.diag([*spacing, 1.0])
    affine[:3, 3] = TO_RAS[:3, :3] @ [axis[0] for axis in axes]
    flips = np.diag(TO_RAS)[:3] < 0 if flips is None else flips
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (image.shape[axis] - 1)
        affine[:3, axis] *= -1
    flipped = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    return Phantom(
        image=np.ascontiguousarray(image[flipped]),
        label=np.ascontiguousarray(label[flipped]),
        affine=affine,
        description={**description, "spacing_mm": spacing, "orientation": "".join(nib.aff2axcodes(affine))},
    )
