"""How do phantoms become files that are named as those of LiTS?"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from scripts.errors import InputError
from scripts.files import write_text, written_whole
from scripts.knobs import check_whole
from scripts.phantom.scan import check_grid, draw_patient_of_seed, make_phantom, make_wide_phantom
from scripts.phantom.wide import LIVER_KINDS

VARIETIES = ("usual", "wide")
MARK = b"scripts.phantom"  # in the header of each file, of version 0.16.0 on: others are not replaced


def write_phantoms(
    output_dir: str | os.PathLike,
    cases: int = 20,
    seed: int = 0,
    size: tuple[int, int, int] = (128, 128, 64),
    spacing: tuple[float, float, float] | None = None,
    variety: str = "usual",
    processes: int = 1,
    first: int = 0,
    liver_kinds: Collection[str] | None = None,
) -> list[tuple[Path, Path]]:
    """Write ``volume-N.nii.gz`` and ``segmentation-N.nii.gz`` for N = 0 ... ``cases`` - 1, as LiTS names them.

    Case N depends on ``seed`` and N only. A file appears under its name when it is complete. With ``variety`` "wide"
    there is also ``phantom-N.json``, the phantom's description.

    Args:
        output_dir: folder, made if it is missing; phantoms of the same names are replaced.
        cases: how many patients.
        seed: not negative.
        size: as for `make_phantom`; without effect on wide ones.
        spacing: as for `make_phantom`, or for `make_wide_phantom`, for which None is 2 mm.
        variety: "usual" or "wide".
        processes: how many work at the same time.
        first: the first N.
        liver_kinds: write ``cases`` wide ones that have such a liver, and leave out any other N; None takes all.

    Returns:
        The (volume, segmentation) paths.

    Raises:
        InputError: an argument is out of range, or ``output_dir`` is a file, or has a case of that name that is none of
            these.
    """
    check_whole("cases", cases, 1)
    check_whole("seed", seed, 0)
    check_whole("first", first, 0)
    check_whole("processes", processes, 1)
    check_grid(size, spacing)
    if variety not in VARIETIES:
        raise InputError(f"variety: expected one of {', '.join(VARIETIES)}, received {variety!r}")
    numbers = count(first)
    if liver_kinds is not None:
        if variety != "wide" or not set(liver_kinds) <= set(LIVER_KINDS):
            raise InputError(f"liver_kinds: wide phantoms have {', '.join(LIVER_KINDS)}, received {liver_kinds!r}")
        numbers = filter(lambda number: _draw_liver_kind(seed, number) in liver_kinds, numbers)
    numbers = islice(numbers, cases)
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; output_dir has to be a folder")
    write = partial(_write_case, folder, seed, size, spacing, variety)
    with tqdm(total=cases, desc="phantoms", unit="case") as bar:
        paths = []
        for pair in map(write, numbers) if processes == 1 else _map_in_processes(write, numbers, processes):
            paths.append(pair)
            bar.update()
    return paths


def find_case_seed(seed: int, case: int) -> int:
    """The seed of the phantom of case number ``case``."""
    return int(np.random.SeedSequence([seed, case]).generate_state(1, np.uint64)[0])


def _draw_liver_kind(seed: int, case: int) -> str:
    return draw_patient_of_seed(find_case_seed(seed, case)).findings.liver_kind


def _map_in_processes(
    write: Callable[[int], tuple[Path, Path]], numbers: Iterable[int], processes: int
) -> Iterator[tuple[Path, Path]]:
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        yield from executor.map(write, numbers)


def _write_case(
    folder: Path,
    seed: int,
    size: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
    variety: str,
    case: int,
) -> tuple[Path, Path]:
    pair = folder / f"volume-{case}.nii.gz", folder / f"segmentation-{case}.nii.gz"
    for path in pair:
        if path.exists() and not _is_phantom(path):
            raise InputError(f"{path}: is there, and was not made by scripts.phantom; give another --output_dir")
    case_seed = find_case_seed(seed, case)
    if variety == "wide":
        phantom = make_wide_phantom(case_seed, spacing or (2.0, 2.0, 2.0))
        write_text(folder / f"phantom-{case}.json", json.dumps({"seed": case_seed, **phantom.description}) + "\n")
    else:
        phantom = make_phantom(case_seed, size, spacing)
    for path, voxels in zip(pair, (phantom.image, phantom.label), strict=True):
        _save_nifti(path, voxels, phantom.affine)
    return pair


def _is_phantom(path: Path) -> bool:
    try:
        return nib.load(path).header["descrip"].tobytes().startswith(MARK)
    except Exception:  # whatever a file that is no NIfTI makes nibabel run into
        return False


def _save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    nifti = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = MARK
    with written_whole(path) as temporary:
        nib.save(nifti, temporary)
