"""How does it all become one page that a person wants to read?"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from scripts.files import written_whole
from scripts.handlers import write_table
from scripts.report.read import HEADINGS, Run
from scripts.report.statistics import FEWEST_PAIRS, compare
from scripts.report.tables import Row

TRUE_NAMES = (
    "Columns have their true names. What the paper prints as “precision” is sensitivity, TP / (TP + FN), and its "
    "“specificity” is the negative predictive value (NPV), TN / (TN + FN): its release exchanged false positives and "
    "false negatives. It also measured soft probabilities slab by slab; here they are masks: of crops in training, of "
    "whole volumes in validation and test."
)
DIGITS = {"hd95_mm": 1, "assd_mm": 2, "parameters": 0, "checkpoint_mb": 1, "peak_memory_mb": 0, "p_wilcoxon": 3}
TITLES = {
    "training_s": "training, s", "validation_s": "validation, s", "output_s": "output, s", "total_s": "total, s",
    "checkpoint_mb": "checkpoint, MB", "peak_memory_mb": "peak memory, MB",
    "low_95": "95 % from", "high_95": "to", "p_wilcoxon": "p (Wilcoxon)",
}  # fmt: skip


@dataclass
class Table:
    """A table of the page: cells are text."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    words: int  # columns at the left that are words
    note: str = ""


@dataclass
class Picture:
    """A picture of the page."""

    source: str
    caption: str


@dataclass
class Section:
    """A part of the page under a heading."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)


def format_number(value: float, digits: int = 3) -> str:
    """Return a number with thousands marked; a dash if it is not defined."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _title(column: str) -> str:
    run, _, measure = column.rpartition(": ")
    words = TITLES.get(measure) or HEADINGS.get(measure) or measure.replace("_ml", ", ml").replace("_", " ")
    return f"{run}: {words}" if run else words


def _cell(row: Row, column: str, digits: int) -> str:
    value = row[column]
    if isinstance(value, str):
        return HEADINGS.get(value, value)
    if isinstance(value, int):
        return f"{value:,}"
    name = column.rpartition(": ")[2]
    if name == "p_wilcoxon" and value < 0.001:
        return "< 0.001"
    digits = DIGITS.get(name, 0 if name.endswith("_ml") else digits)
    text = format_number(value, digits)
    spread = row.get(f"{column}_sd", math.nan)
    return text if math.isnan(spread) else f"{text} ± {format_number(spread, digits)}"


def make_table(rows: Sequence[Row], caption: str, digits: int = 3, note: str = "") -> Table:
    """Make a table of rows of one kind; a column ``x_sd`` joins ``x``."""
    columns = [column for column in rows[0] if not column.endswith("_sd")]
    words = sum(isinstance(rows[0][column], str) for column in columns)
    cells = [[_cell(row, column, digits) for column in columns] for row in rows]
    return Table(caption, [_title(column) for column in columns], cells, words, note)


def save_figure(figure: Figure, output_dir: Path, name: str, caption: str, photo: bool = False) -> Picture:
    """Write a figure as PNG, and as SVG unless it shows scans; return it for the page.

    Scans are written with 256 colours: a third of the size, and no difference to be seen.
    """
    background = figure.get_facecolor()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, facecolor=background)
    if photo:
        reduced = io.BytesIO()
        Image.open(png).convert("RGB").quantize(256).save(reduced, format="png", optimize=True)
        png = reduced
    with written_whole(output_dir / f"{name}.png") as temporary:
        temporary.write_bytes(png.getvalue())
    if not photo:
        with written_whole(output_dir / f"{name}.svg") as temporary, rc_context({"svg.hashsalt": name}):
            figure.savefig(temporary, format="svg", facecolor=background, metadata={"Date": None})
    return Picture(f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}", caption)


def write_headline(runs: Sequence[Run]) -> list[str]:
    """Return in words what came out: of each run, and of the first against each other."""
    evaluated = [run for run in runs if run.cases]
    if not evaluated:
        return ["No run has been evaluated on test cases yet; the curves show training and validation."]
    sentences = []
    first, class_name = evaluated[0], evaluated[0].classes[0]
    for run in evaluated:
        if class_name in run.classes:
            dice = [value for value in run.values(class_name, "dice").values() if not math.isnan(value)]
            mean = sum(dice) / len(dice) if dice else math.nan
            sentences.append(f"{run.name}: mean Dice of {class_name} {format_number(mean)} on {len(dice)} test cases.")
    for other in evaluated[1:]:
        result = compare(first.values(class_name, "dice"), other.values(class_name, "dice"))
        if not result.cases:
            sentences.append(f"{first.name} and {other.name} have no test case in common, so they cannot be compared.")
            continue
        better, worse = (first, other) if result.difference >= 0 else (other, first)
        verdict = f"{better.name} is ahead of {worse.name} by {format_number(abs(result.difference))} Dice"
        low, high = sorted((abs(result.low), abs(result.high)))
        if result.low * result.high > 0:
            verdict += f" (95 % interval {format_number(low)} to {format_number(high)})"
        else:
            verdict += ", but these cases do not decide it: the 95 % interval holds 0"
        test = f"p = {format_number(result.p_value)}"
        if math.isnan(result.p_value):
            test = f"at least {FEWEST_PAIRS} cases are needed"
        sentences.append(f"Case by case, {verdict}. Wilcoxon signed-rank test on {result.cases} cases: {test}.")
    return sentences


def describe_runs(runs: Sequence[Run]) -> list[str]:
    """Return, of each run, how far it went and on what."""
    lines = []
    for run in runs:
        epochs = int(run.training["epoch"].max())
        of = f" of {run.facts['max_epochs']}" if "max_epochs" in run.facts else ""
        where = f"{run.facts.get('network', 'network')} on {run.facts.get('device', 'an unknown device')}"
        versions = ", ".join(f"{name} {version}" for name, version in run.facts.get("versions", {}).items())
        parts = {"not validated yet": run.validation, "not evaluated": run.cases, "without run.json": run.facts}
        missing = [text for text, there in parts.items() if not there]
        facts = [f"{run.name}: {where}", f"{epochs}{of} epochs", *([versions] if versions else []), *missing]
        lines.append("; ".join(facts) + ".")
    return lines


def write_page(path: Path, title: str, headline: Sequence[str], sections: Sequence[Section]) -> None:
    """Write one HTML file that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html.j2").render(title=title, headline=headline, sections=sections)
    with written_whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def write_csv(output_dir: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table's rows as they are, if there are any."""
    if rows:
        write_table(output_dir / f"{name}.csv", rows)
