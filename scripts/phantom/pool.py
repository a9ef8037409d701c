"""Write phantoms to train, validate and test on: ``python -m scripts.phantom.pool --output_dir D``."""

import json
import os
from pathlib import Path

from scripts.commands import run_command
from scripts.data import SECTIONS
from scripts.errors import InputError
from scripts.files import write_text
from scripts.knobs import check_whole
from scripts.phantom.write import write_phantoms

FIRST_SEEDS = {"training": 0, "validation": 1001, "test": 2}  # of seed 0, from which others are counted
RARE_LIVER_KINDS = ("small", "right", "left")


def write_pool(
    output_dir: str | os.PathLike,
    training: int = 320,
    validation: int = 12,
    test: int = 48,
    rare: int = 0,
    seed: int = 0,
    variety: str = "wide",
    spacing_mm: float = 2.5,
    processes: int = 1,
) -> Path:
    """Write phantoms into a folder of each section, see `write_phantoms`, and ``dataset.json``, which lists them.

    Args:
        output_dir: the folder to give to a training as dataset_dir.
        training: how many patients to train on.
        validation: to choose weights by.
        test: to measure them by.
        rare: how many more to train on, whose liver is of `RARE_LIVER_KINDS`; with variety "wide" alone.
        seed: the same seed gives the same patients; not those of another section, though of seed S + 2 the patients to
            train on are those that seed S tests with, and of S + 1001 those that it validates with.
        variety: "wide" or "usual".
        spacing_mm: of the voxels along every axis.
        processes: how many work at the same time; the files are the same.

    Returns:
        The path of ``dataset.json``.

    Raises:
        InputError: an argument is out of range, or ``output_dir`` is a file.
    """
    sections = dict(zip(SECTIONS, (training, validation, test), strict=True))
    for section, cases in sections.items():
        check_whole(section, cases, 1)
    check_whole("rare", rare, 0)
    if rare and variety != "wide":
        raise InputError(f"rare: there are such livers in variety 'wide' alone, received {rare} and {variety!r}")
    folder = Path(output_dir)
    datalist = {}
    options = {"spacing": (spacing_mm,) * 3, "variety": variety, "processes": processes}
    for section, cases in sections.items():
        pairs = write_phantoms(folder / section, cases, FIRST_SEEDS[section] + seed, **options)
        if rare and section == "training":
            options_of_rare = options | {"first": cases, "liver_kinds": RARE_LIVER_KINDS}
            pairs += write_phantoms(folder / section, rare, FIRST_SEEDS[section] + seed, **options_of_rare)
        datalist[section] = [
            {"image": image.relative_to(folder).as_posix(), "label": label.relative_to(folder).as_posix()}
            for image, label in pairs
        ]
    write_text(folder / "dataset.json", json.dumps(datalist, indent=2) + "\n")
    return folder / "dataset.json"


if __name__ == "__main__":
    run_command(write_pool)
