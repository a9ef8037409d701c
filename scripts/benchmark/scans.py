"""On what is it measured: generated scans in which the liver is bright, so that a threshold finds it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from scripts.files import written_whole
from scripts.phantom import make_phantom

LIVER_HU, MAX_OTHER_HU = 180, 60
WINDOW_HU = 200  # as in the configs: [-200, 200] becomes [-1, 1]
THRESHOLD = (LIVER_HU + MAX_OTHER_HU) / 2 / WINDOW_HU
BODY_MM = 400.0


def paint_scan(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 HU and uint8 label, ``(X, Y, Z)``, of one made-up patient: liver at 180 HU, all else at most 60."""
    phantom = make_phantom(1, size, spacing, reorient=False)
    label = (phantom.label > 0).astype(np.uint8)
    image = np.minimum(phantom.image, MAX_OTHER_HU).astype(np.int16)
    image[label > 0] = LIVER_HU
    return image, label


def scan_files(folder: Path, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Path, Path]:
    """Return the files of a painted scan and of its label."""
    name = "x".join(map(str, size)) + "_" + "x".join(f"{step:g}" for step in spacing)
    return folder / f"volume-{name}.nii.gz", folder / f"segmentation-{name}.nii.gz"


def make_scan(folder: Path, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Path, Path]:
    """Return `scan_files`; they are written unless they are there."""
    paths = scan_files(folder, size, spacing)
    if not all(path.is_file() for path in paths):
        for path, voxels in zip(paths, paint_scan(size, spacing), strict=True):
            with written_whole(path) as temporary:
                nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), temporary)
    return paths


def crop_spacing(size: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return the mm of the voxels of which ``size`` hold the width of a body and half as much of its length."""
    return (BODY_MM / size[0], BODY_MM / size[1], BODY_MM / 2 / size[2])


def make_crop(folder: Path, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return image in [-1, 1] and label, float32 and int64 ``(1, 1, H, W, D)``, of a body that fills ``size``."""
    image, label = (np.asarray(nib.load(path).dataobj) for path in make_scan(folder, size, crop_spacing(size)))
    image = np.clip(image.astype(np.float32) / WINDOW_HU, -1, 1)
    return torch.from_numpy(image)[None, None], torch.from_numpy(label.astype(np.int64))[None, None]
