"""How good is a network on wide phantoms of which kind: by phase, view, slices, and size of liver and tumours?

python -m scripts.phantom.tabulate --evaluation_dir runs/pretrain/evaluation --output_file table.md
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from scripts.commands import run_command
from scripts.errors import InputError
from scripts.files import write_text
from scripts.headers import explain_unreadable

Row = dict[str, Any]
THICKNESS_MM, LIVER_ML, TUMOUR_MM = (1.5, 3.0, 5.0), (500.0, 1000.0, 2000.0), (10.0, 20.0, 30.0)  # where groups end
GROUPS: dict[str, Callable[[Row], str]] = {
    "all": lambda row: "",
    "phase": lambda row: row["phase"],
    "view": lambda row: row["view"],
    "kind of liver": lambda row: row["liver_kind"],
    "slices": lambda row: name_range(row["thickness_mm"], THICKNESS_MM, "mm"),
    "liver": lambda row: name_range(row["liver_ml"], LIVER_ML, "ml"),
}


def name_range(value: float, ends: tuple[float, ...], unit: str) -> str:
    """The group of ``value`` in words: under the first of ``ends``, between two of them, or the last and over."""
    index = int(np.searchsorted(ends, value, side="right"))
    if index == 0:
        return f"< {ends[0]:g} {unit}"
    return f"{ends[index - 1]:g}-{ends[index]:g} {unit}" if index < len(ends) else f">= {ends[-1]:g} {unit}"


def _read_rows(evaluation_dir: Path) -> list[Row]:
    """The rows of an evaluation's ``per_case.csv``, each with what was written of its phantom."""
    table = evaluation_dir / "per_case.csv"
    rows = []
    try:
        with open(table, encoding="utf-8", newline="") as file:
            measured = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{table}: {explain_unreadable(error)}") from error
    for row in measured:
        image = Path(row["image"])
        described = image.with_name(image.name.split(".")[0].replace("volume-", "phantom-") + ".json")
        try:
            rows.append({**row, **json.loads(described.read_text(encoding="utf-8"))})
        except (OSError, ValueError) as error:
            raise InputError(
                f"{described}: cannot be read ({error}); evaluate cases of scripts.phantom --variety wide"
            ) from error
    return rows


def _summarise(rows: list[Row]) -> Row:
    dice = np.array([float(row["dice"]) for row in rows])
    hd95 = np.array([float(row.get("hd95_mm") or "nan") for row in rows])
    volumes, true = (np.array([float(row[key]) for row in rows]) for key in ("volume_ml", "reference_volume_ml"))
    return {
        "cases": len(rows),
        "Dice": f"{dice.mean():.3f}",
        "5th percentile": f"{np.percentile(dice, 5):.3f}",
        "HD95 mm, median": f"{np.nanmedian(hd95):.1f}" if np.isfinite(hd95).any() else "-",
        "volume error, median": f"{np.median(np.abs(volumes / true - 1)):.1%}",
    }


def _tabulate_livers(rows: list[Row]) -> Iterator[Row]:
    for name, group_of in GROUPS.items():
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(group_of(row), []).append(row)
        for group, members in sorted(groups.items(), key=lambda item: _order(item[0])):
            yield {"by": name, "": group, **_summarise(members)}


def _order(group: str) -> tuple[float, str]:
    """Ranges by their numbers, words by the alphabet."""
    digits = group.strip("<>= ").split("-")[0].split(" ")[0]
    number = float(digits) if digits.replace(".", "").isdigit() else 0.0
    return (-1.0 if group.startswith("<") else number, group)


class Tumour(NamedTuple):
    """A tumour of a label, and how well it was found.

    Attributes:
        diameter_mm: of a sphere of its volume.
        found: a tenth of its voxels is.
        dice: of it and all found pieces that touch it.
    """

    diameter_mm: float
    found: bool
    dice: float


def find_tumours(label: np.ndarray, pred: np.ndarray, voxel_mm3: float) -> tuple[list[Tumour], int]:
    """Take the tumours of a label apart (connected voxels, also over corners), and measure each.

    Args:
        label: boolean (X, Y, Z), where tumours are.
        pred: boolean of the same shape, where they were found.
        voxel_mm3: of a voxel.

    Returns:
        The tumours, and the number of found pieces that touch none.
    """
    (pieces, count), (found, found_count) = (ndimage.label(mask, np.ones((3, 3, 3))) for mask in (label, pred))
    sizes, found_sizes = np.bincount(pieces.ravel()), np.bincount(found.ravel())
    both = label & pred
    touching, shared = np.unique(np.stack([pieces[both], found[both]]), axis=1, return_counts=True)
    tumours = []
    for piece in range(1, count + 1):
        mine = touching[0] == piece
        hit, taken = int(shared[mine].sum()), int(found_sizes[touching[1][mine]].sum())
        size = int(sizes[piece])
        diameter = float(np.cbrt(6 * size * voxel_mm3 / np.pi))
        tumours.append(Tumour(diameter, hit >= 0.1 * size, 2 * hit / (size + taken)))
    return tumours, found_count - len(np.unique(touching[1]))


def _tabulate_tumours(rows: list[Row], tumour_class: int) -> Iterator[list[Row]]:
    """A table of the tumours by size, and one of the scans that have some."""
    groups: dict[str, list[Tumour]] = {}
    without_counterpart = []
    for row in rows:
        masks = []
        for file in (row["label"], row["prediction"]):
            try:
                nifti = nib.as_closest_canonical(nib.load(file))
                masks.append(np.asanyarray(nifti.dataobj))
            except Exception as error:  # whatever a broken file makes nibabel run into
                raise InputError(f"{file}: {explain_unreadable(error)}") from error
        voxel_mm3 = float(np.prod(nifti.header.get_zooms()[:3]))
        tumours, false_pieces = find_tumours(masks[0] == 2, masks[1] == tumour_class, voxel_mm3)
        without_counterpart.append(false_pieces)
        for tumour in tumours:
            groups.setdefault(name_range(tumour.diameter_mm, TUMOUR_MM, "mm"), []).append(tumour)
    yield [
        {
            "tumours of": group,
            "number": len(tumours),
            "found": sum(tumour.found for tumour in tumours),
            "recall": f"{np.mean([tumour.found for tumour in tumours]):.2f}",
            "Dice": f"{np.mean([tumour.dice for tumour in tumours]):.2f}",
        }
        for group, tumours in sorted(groups.items(), key=lambda item: _order(item[0]))
    ]
    dice = [float(row["dice"]) for row in rows if row["tumour_ml"]]
    yield [
        {
            "scans with tumours": len(dice),
            "Dice of all their tumour": f"{np.mean(dice):.3f}",
            "median": f"{np.median(dice):.3f}",
            "false pieces in a scan, mean of all": f"{np.mean(without_counterpart):.1f}",
        }
    ]


def _format(rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return [*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows), ""]


def tabulate(evaluation_dir: str | os.PathLike, output_file: str | os.PathLike | None = None) -> str:
    """Return tables of an evaluation on wide phantoms as Markdown, and write them if ``output_file`` is given.

    Args:
        evaluation_dir: where ``configs/evaluate.json`` wrote ``per_case.csv``; the cases' ``phantom-N.json`` are beside
            their images.
        output_file: Markdown.

    Returns:
        Scans with a liver in groups; the millilitres that were found where there is none; if tumours were sought and
        predictions saved, which share of them was found and with what Dice, by size.

    Raises:
        InputError: a file is missing or unreadable, or there is no case.
    """
    rows = _read_rows(Path(evaluation_dir))
    livers = [row for row in rows if row["class"] == "liver"]
    seen = [row for row in livers if float(row["reference_volume_ml"]) > 0]
    false_ml = [float(row["volume_ml"]) for row in livers if float(row["reference_volume_ml"]) == 0]
    lines = []
    if seen:
        lines += _format(_tabulate_livers(seen))
    if false_ml:
        lines += _format(
            [
                {
                    "scans without liver": len(false_ml),
                    "under 20 ml of false liver": sum(ml < 20 for ml in false_ml),
                    "mean ml": f"{np.mean(false_ml):.1f}",
                    "most ml": f"{max(false_ml):.1f}",
                }
            ]
        )
    tumours = [row for row in rows if row["class"] == "tumor" and row["label"] and row["prediction"]]
    if tumours and any(row["tumour_ml"] for row in tumours):
        for table in _tabulate_tumours(tumours, tumour_class=2 if livers else 1):
            lines += _format(table)
    if not lines:
        raise InputError(f"{evaluation_dir}: has no case of the liver or its tumours; evaluate with --target liver")
    text = "\n".join(lines)
    if output_file is not None:
        write_text(output_file, text)
    return text


def main() -> None:
    """Run the command line."""
    run_command(tabulate)


if __name__ == "__main__":
    main()
