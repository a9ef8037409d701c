"""How do the tables stand on the page? Measures run down and runs across, so that a narrow screen holds them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby
from operator import itemgetter

import numpy as np

from scripts.report.read import HEADINGS, METRICS, Run
from scripts.report.tables import Row

LOWER_IS_BETTER = ("hd95_mm", "assd_mm")
PAPER_NAMES = {"sensitivity": "the paper's “precision”", "npv": "the paper's “specificity”"}
TRUE_NAMES = (
    "Measures have their true names. What the paper prints as “precision” is sensitivity, TP / (TP + FN), and its "
    "“specificity” is the negative predictive value (NPV), TN / (TN + FN): its release exchanged false positives and "
    "false negatives."
)
DIGITS = {"hd95_mm": 1, "assd_mm": 2}
COSTS = {  # column → heading, digits
    "training_s": ("Training, s per epoch", 1),
    "validation_s": ("Validation, s", 1),
    "output_s": ("Output, s", 2),
    "total_s": ("Total, s per epoch", 1),
    "parameters": ("Parameters", 0),
    "checkpoint_mb": ("Checkpoint, MB", 1),
    "peak_memory_mb": ("Peak memory, MB", 0),
}


@dataclass(frozen=True)
class Cell:
    """What stands in a table: a text, and smaller below it a detail. The best of a row is bold."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass
class Table:
    """A table of the page.

    Attributes:
        caption: above it.
        header: of all columns but the first.
        rows: a heading and as many cells as the header has.
        groups: above the header, (title, columns); none: no such row.
        note: below it.
        folded: whether it is shown only when clicked.
    """

    caption: str
    header: list[str]
    rows: list[tuple[Cell, list[Cell]]]
    groups: list[tuple[str, int]] = field(default_factory=list)
    note: str = ""
    folded: bool = False

    @property
    def starts(self) -> set[int]:
        """The columns with which a group starts."""
        return set(accumulate([0, *(span for _, span in self.groups)])) if self.groups else set()


def format_number(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a number with thousands marked and a true minus; a dash if it is not defined."""
    rounded = round(value, digits) + 0.0  # not -0
    return "–" if math.isnan(value) else f"{rounded:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def count(number: int | str, noun: str) -> str:
    """Return "1 test case", "3 test cases"."""
    return f"{number} {noun}{'' if str(number) == '1' else 's'}"


def format_p(value: float) -> str:
    """Return a p-value."""
    return "< 0.001" if value < 0.001 else format_number(value)


def _unless_nan(words: str, digits: int, *values: float) -> str:
    """Return the words with the numbers in their places; nothing if these are not defined."""
    return "" if any(map(math.isnan, values)) else words.format(*(format_number(value, digits) for value in values))


def _heading(measure: str) -> Cell:
    return Cell(HEADINGS[measure], PAPER_NAMES.get(measure, "lower is better" if measure in LOWER_IS_BETTER else ""))


def _best(values: Sequence[float], lower_is_better: bool) -> list[bool]:
    """Return which of several values is the best; none if they are all alike."""
    defined = [value for value in values if not math.isnan(value)]
    if len(set(defined)) < 2:
        return [False] * len(values)
    best = min(defined) if lower_is_better else max(defined)
    return [value == best for value in values]


def lay_out_test(class_name: str, means: Sequence[Row], comparisons: Sequence[Row]) -> Table:
    """Means and SD of each run, and the differences of the first to each other run with interval and p.

    Args:
        class_name: which rows of both are shown.
        means: of `scripts.report.tables.of_test_cases`.
        comparisons: of `scripts.report.tables.significance`.
    """
    means = [row for row in means if row["class"] == class_name]
    pairs = {(row["comparison"], row["measure"]): row for row in comparisons if row["class"] == class_name}
    names = list(dict.fromkeys(comparison for comparison, _ in pairs))
    rows = []
    for measure in HEADINGS:
        digits = DIGITS.get(measure, 3)
        best = _best([row[measure] for row in means], measure in LOWER_IS_BETTER)
        cells = [
            Cell(format_number(row[measure], digits), _unless_nan("± {}", digits, row[f"{measure}_sd"]), is_best)
            for row, is_best in zip(means, best, strict=True)
        ]
        for name in names:
            row = pairs[name, measure]
            interval = _unless_nan("{} to {}", digits, row["low_95"], row["high_95"])
            cells.append(Cell(format_number(row["difference"], digits, sign=True), interval))
            cells.append(Cell(format_p(row["p_wilcoxon"])))
        rows.append((_heading(measure), cells))
    spread = any(not math.isnan(row["dice_sd"]) for row in means)
    groups = [("mean ± SD" if spread else "value", len(means)), *((name.replace(" - ", " − "), 2) for name in names)]
    cases = " or ".join(map(str, sorted({row["cases"] for row in means})))
    caption = f"{class_name.capitalize()}, {count(cases, 'test case')}, whole volumes in their own grids"
    return Table(caption, [row["run"] for row in means] + ["difference", "p"] * len(names), rows, groups)


def lay_out_cases(class_name: str, runs: Sequence[Run], cases: Sequence[Row], folded: bool) -> Table:
    """Every case, worst first (with nothing to find last): Dice and HD95 of each run, true volume and each run's.

    Args:
        class_name: which rows are shown.
        runs: those that were evaluated.
        cases: of `scripts.report.tables.per_case`.
        folded: whether it is shown only when clicked.
    """
    names = [run.name for run in runs]
    rows = []
    for row in sorted(cases, key=lambda row: np.nan_to_num(row[f"{names[0]}: dice"], nan=2.0)):
        if row["class"] != class_name:
            continue
        dice = [row[f"{name}: dice"] for name in names]
        cells = [Cell(format_number(value), best=best) for value, best in zip(dice, _best(dice, False), strict=True)]
        cells += [Cell(format_number(row[f"{name}: hd95_mm"], 1)) for name in names]
        cells += [
            Cell(format_number(volume, 0))
            for volume in (row["true_volume_ml"], *(row[f"{name}: volume_ml"] for name in names))
        ]
        rows.append((Cell(row["case"]), cells))
    groups = [("Dice", len(names)), ("HD95, mm", len(names)), ("Volume, ml", len(names) + 1)]
    caption = f"Every test case, {class_name}, worst first"
    return Table(caption, [*names, *names, "truth", *names], rows, groups, folded=folded)


def lay_out_converged(means: Sequence[Row], differences: Sequence[Row]) -> Table:
    """Tables 3, 4 and 5: means of the last third of epochs of each run, and their differences in percentage points."""
    columns = [(row["run"], row, partial(format_number, digits=4)) for row in means]
    in_points = partial(format_number, digits=2, sign=True)
    columns += [(row["difference"].replace(" - ", " − "), row, in_points) for row in differences]
    rows = [(_heading(metric), [Cell(show(row[metric])) for _, row, show in columns]) for metric in METRICS]
    groups = [(title, len(list(group))) for title, group in groupby(columns, key=itemgetter(0))]
    return Table("Mean over the last third of the epochs", [row["cases"] for _, row, _ in columns], rows, groups)


def lay_out_costs(costs: Sequence[Row]) -> Table:
    """Table 6: what an epoch and the network cost."""
    rows = [
        (Cell(heading), [Cell(format_number(row[column], digits)) for row in costs])
        for column, (heading, digits) in COSTS.items()
    ]
    return Table("What it costs", [row["run"] for row in costs], rows)
