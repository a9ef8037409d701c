"""How do phantoms become files that are named as those of LiTS?"""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from scripts.errors import InputError
from scripts.files import written_whole
from scripts.phantom.scan import check_grid, check_whole, make_phantom


def write_phantoms(
    output_dir: str | os.PathLike,
    cases: int = 20,
    seed: int = 0,
    size: tuple[int, int, int] = (128, 128, 64),
    spacing: tuple[float, float, float] | None = None,
) -> list[tuple[Path, Path]]:
    """Write ``volume-N.nii.gz`` and ``segmentation-N.nii.gz`` for N = 0 ... ``cases`` - 1, as LiTS names them.

    Case N depends on ``seed`` and N only. A file appears under its name when it is complete.

    Args:
        output_dir: folder, made if it is missing; files of the same names are replaced.
        cases: how many patients.
        seed: not negative.
        size: as for `make_phantom`.
        spacing: as for `make_phantom`.

    Returns:
        The (volume, segmentation) paths.

    Raises:
        InputError: an argument is out of range, or ``output_dir`` is a file.
    """
    check_whole("cases", cases, 1)
    check_whole("seed", seed, 0)
    check_grid(size, spacing)
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; output_dir has to be a folder")
    paths = []
    for case in tqdm(range(cases), desc="phantoms", unit="case"):
        case_seed = int(np.random.SeedSequence([seed, case]).generate_state(1, np.uint64)[0])
        phantom = make_phantom(case_seed, size, spacing)
        pair = folder / f"volume-{case}.nii.gz", folder / f"segmentation-{case}.nii.gz"
        for path, voxels in zip(pair, (phantom.image, phantom.label), strict=True):
            _save_nifti(path, voxels, phantom.affine)
        paths.append(pair)
    return paths


def _save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    nifti = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    with written_whole(path) as temporary:
        nib.save(nifti, temporary)
