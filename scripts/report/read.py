"""What do the files of a run folder say?"""

import csv
import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data import TARGETS
from scripts.errors import InputError

PAPER_METRICS = ("dice", "accuracy", "precision", "specificity", "iou", "mcc")  # Sec. 4.3, in its order
METRICS = (*PAPER_METRICS, "sensitivity", "npv")
CASE_METRICS = (*METRICS, "hd95_mm", "assd_mm", "volume_ml", "reference_volume_ml")
CASE_FILES = ("image", "label", "prediction")
HEADINGS = {
    "dice": "Dice",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "specificity": "Specificity",
    "iou": "IoU",
    "mcc": "MCC",
    "sensitivity": "Sensitivity",
    "npv": "NPV",
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
}
PER_CASE = "evaluation/per_case.csv"
EVALUATION = "evaluation/manifest.json"
REMEDY = "copy it again from the run, or leave this run out of --runs"

Curves = dict[str, np.ndarray]  # column → its value in each row


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what is not there (yet) is empty.

    Attributes:
        name: as shown.
        folder: where it is.
        training: ``training.csv``, a value per epoch.
        validation: ``validation.csv``, a value per validated epoch.
        facts: ``run.json``.
        manifest: ``manifest.json``, of its last start.
        cases: rows of ``evaluation/per_case.csv``, numbers as floats.
        evaluation: ``evaluation/manifest.json``.
    """

    name: str
    folder: Path
    training: Curves
    validation: Curves
    facts: dict[str, Any]
    manifest: dict[str, Any]
    cases: list[dict[str, Any]]
    evaluation: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The config's values, those that its expressions came to among them."""
        return (self.manifest.get("config") or {}) | (self.manifest.get("values") or {})

    @property
    def measured(self) -> dict[str, Curves]:
        """The curves that have measures, of "training", unless it kept its loss alone, and of "validation"."""
        parts = {"training": self.training, "validation": self.validation}
        return {part: curves for part, curves in parts.items() if "dice" in curves}

    @property
    def is_outdated(self) -> bool:
        """Whether its test cases were measured with other weights than its best, as far as sums, else times, say."""
        measured, best = (self.evaluation.get("weights") or {}).get("sha256"), self.facts.get("weights_sha256")
        if measured and best:
            return measured != best
        evaluated, trained = self.evaluation.get("started"), self.manifest.get("started")
        return bool(evaluated and trained) and datetime.fromisoformat(evaluated) < datetime.fromisoformat(trained)

    @property
    def targets(self) -> list[str]:
        """What it finds, as far as its files say: classes evaluated, set, or told apart by its curves."""
        return self._targets_and_file()[0]

    @property
    def targets_file(self) -> Path:
        """The file that says what it finds."""
        return self.folder / self._targets_and_file()[1]

    def _targets_and_file(self) -> tuple[list[str], str]:
        if self.cases:
            return self.classes, PER_CASE
        if self.settings.get("target") in TARGETS:
            return list(TARGETS[self.settings["target"]].class_names[1:]), "manifest.json"
        return [name[len("dice_") :] for name in self.training if name.startswith("dice_")], "training.csv"

    @property
    def classes(self) -> list[str]:
        """Foreground classes that were evaluated, in their order."""
        return list(dict.fromkeys(row["class"] for row in self.cases))

    def values(self, class_name: str, metric: str) -> dict[str, float]:
        """Return case → measure of one class."""
        return {row["case"]: row[metric] for row in self.cases if row["class"] == class_name}


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV.

    Raises:
        InputError: if it has no rows, has a row of another length, or a last line without an end.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = file.readlines()
        rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV ({error}); {REMEDY}") from error
    if len(rows) < 2:
        raise InputError(f"{path}: has no rows; wait for the first epoch, or leave this run out of --runs")
    header = rows[0]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(f"{path}: line {number} has {len(row)} of {len(header)} values, it is cut off; {REMEDY}")
    if not lines[-1].endswith(("\n", "\r")):  # its last number may be half of one
        raise InputError(f"{path}: its last line has no end, it is cut off; {REMEDY}")
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def _require_columns(path: Path, columns: Collection[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}, so it is of another kind or version; {REMEDY}")


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError as error:
        raise InputError(f"{path}: line {line}, {column}: {text!r} is not a number; {REMEDY}") from error


def read_curves(path: Path) -> Curves:
    """Return the columns of ``training.csv`` or ``validation.csv``; undefined values are NaN.

    There may be a loss in the place of the measures.

    Raises:
        InputError: if the file is damaged or of another kind.
    """
    rows = _read_rows(path)
    measures = ("loss",) if "loss" in rows[0] and not set(METRICS) & set(rows[0]) else METRICS
    _require_columns(path, rows[0], ("epoch", "seconds", *measures))
    return {
        column: np.array([_number(path, line, column, row[column]) for line, row in enumerate(rows, start=2)])
        for column in rows[0]
    }


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``per_case.csv``: words for the case, its class and its files, numbers for the rest.

    Raises:
        InputError: if the file is damaged or of another kind.
    """
    words = ("case", "class", *CASE_FILES)
    rows = _read_rows(path)
    _require_columns(path, rows[0], ("case", "class", *CASE_METRICS))
    return [
        {
            column: text if column in words else _number(path, line, column, text)
            for column, text in ({name: "" for name in CASE_FILES} | row).items()
        }
        for line, row in enumerate(rows, start=2)
    ]


def read_facts(path: Path) -> dict[str, Any]:
    """Return what is in a JSON file of facts: ``run.json``, ``manifest.json``.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {**facts}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); {REMEDY}") from error


def read_run(folder: str | os.PathLike, name: str) -> Run:
    """Return what is in a run folder; all but ``training.csv`` may be missing: the run may still be going.

    Raises:
        InputError: if it is no run folder, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the --output_dir of a training")
    training = folder / "training.csv"
    if not training.is_file():
        raise InputError(f"{training}: no such file; give the --output_dir of a training, after its first epoch")
    parts = ("validation.csv", "run.json", "manifest.json", PER_CASE, EVALUATION)
    validation, facts, manifest, cases, evaluation = (folder / part for part in parts)
    return Run(
        name=name,
        folder=folder,
        training=read_curves(training),
        validation=read_curves(validation) if validation.is_file() else {},
        facts=read_facts(facts) if facts.is_file() else {},
        manifest=read_facts(manifest) if manifest.is_file() else {},
        cases=read_cases(cases) if cases.is_file() else [],
        evaluation=read_facts(evaluation) if evaluation.is_file() else {},
    )


def name_runs(folders: Sequence[str | os.PathLike], names: Sequence[str] | None = None) -> list[str]:
    """Return a name for each folder: the given one, or its own with as many of those above it as tell them apart.

    Raises:
        InputError: if a folder is given twice, or if there are not as many names, all different, as folders.
    """
    paths = [Path(folder).resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"{folder}: is given twice in --runs; give each run once")
    if names:
        if len(names) != len(folders):
            raise InputError(f"--names: {len(names)} names for {len(folders)} runs; give one each")
        twice = [name for name in names if list(names).count(name) > 1]
        if twice:
            raise InputError(f"--names: {twice[0]!r} is given twice; give each run a name of its own")
        return list(names)
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that were trained to find different things, or measured on different data under the same names.

    Raises:
        InputError: naming the file that differs from those of the first run.
    """
    first, *others = runs
    for other in others:
        if first.targets != other.targets and first.targets and other.targets:
            raise InputError(
                f"{other.targets_file}: is of {' and '.join(other.targets)}, but {first.targets_file} of "
                f"{' and '.join(first.targets)}: the runs find different things; make a report of each"
            )
    evaluated = [run for run in runs if run.cases]
    for other in evaluated[1:]:
        for class_name in other.classes:
            ours, theirs = (run.values(class_name, "reference_volume_ml") for run in (evaluated[0], other))
            for case in ours.keys() & theirs.keys():
                if not math.isclose(ours[case], theirs[case], rel_tol=0.001, abs_tol=0.01):
                    raise InputError(
                        f"{other.folder / PER_CASE}: its {case} has {theirs[case]:.1f} ml of {class_name} and that of "
                        f"{evaluated[0].folder} {ours[case]:.1f} ml: they are different scans; make a report of each"
                    )
