"""The paper's figures 6 to 11, and the test cases of all runs side by side. Every figure reads in greyscale too.

They are as wide as a phone's screen shows legibly; two of them stand beside each other on a wider one.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from scripts.report.read import HEADINGS, PAPER_METRICS, Run
from scripts.report.statistics import defined, last_third_mean

PARTS = {  # colour, line, marker and hatch of each part: told apart without colour too
    "training": {"color": "#1b5e9b", "linestyle": "-", "marker": ".", "hatch": ""},
    "validation": {"color": "#e07b00", "linestyle": "--", "marker": "o", "hatch": "//"},
}
RUN_COLORS = ("#1b5e9b", "#e07b00", "#2a8a57", "#8d3f8f", "#5c5c5c")  # one after the other, dark and light in turn
MARKERS = "osD^v"
GRID = {"color": "#dddddd", "linewidth": 0.8}
WIDTH_INCHES = 5.4
MOST_MARKERS = 40  # of more epochs the lines alone are drawn
MOST_NAMES = 60  # of more cases the names are left out


def _panels(height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    return figure, figure.subplots(3, 2)


def _finish(axes: Axes, grid_axis: str = "both") -> None:
    axes.grid(axis=grid_axis, **GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(run: Run) -> Figure:
    """The six measures over epochs, training and validation (as Fig. 6 and 9)."""
    figure, panels = _panels(6.2)
    last_epoch = max(curves["epoch"].max() for curves in run.measured.values())
    for axes, metric in zip(panels.flat, PAPER_METRICS, strict=True):
        for part, curves in run.measured.items():
            style = {key: PARTS[part][key] for key in ("color", "linestyle", "marker")}
            if len(curves["epoch"]) > MOST_MARKERS:
                style["marker"] = ""
            axes.plot(curves["epoch"], curves[metric], label=part, markersize=4, linewidth=1.6, **style)
        axes.set_title(HEADINGS[metric], fontsize=11)
        axes.set_xlim(1 - 0.05 * last_epoch, 1.05 * last_epoch)  # of all panels alike, also where some are not defined
        axes.locator_params(axis="x", integer=True)
        _finish(axes)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_boxes(run: Run) -> Figure:
    """Where each measure was over all epochs (as Fig. 7 and 10): median, quartiles, whiskers of 1.5 box lengths."""
    figure, panels = _panels(4.6)
    for axes, metric in zip(panels.flat, PAPER_METRICS, strict=True):
        values = {part: curves[metric][~np.isnan(curves[metric])] for part, curves in run.measured.items()}
        boxes = axes.boxplot(
            list(values.values()), tick_labels=list(values), widths=0.6, patch_artist=True, orientation="horizontal",
            medianprops={"color": "black", "linewidth": 2}, flierprops={"marker": ".", "markersize": 5},
        )  # fmt: skip
        for box, part in zip(boxes["boxes"], values, strict=True):
            box.set(facecolor=PARTS[part]["color"], alpha=0.75, hatch=PARTS[part]["hatch"])
        axes.set_title(HEADINGS[metric], fontsize=11)
        axes.invert_yaxis()
        axes.locator_params(axis="x", nbins=4)
        _finish(axes, "x")
    for axes in panels[:, 1]:
        axes.set_yticklabels([])
    return figure


def draw_bars(run: Run) -> Figure:
    """Training and validation, mean over the last third of the epochs (as Fig. 8 and 11)."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    axes = figure.subplots()
    parts = run.measured
    height = 0.8 / len(parts)
    lowest = 0.0
    for index, (part, curves) in enumerate(parts.items()):
        means = [last_third_mean(curves, metric) for metric in PAPER_METRICS]
        positions = np.arange(len(means)) + (index - (len(parts) - 1) / 2) * height
        bars = axes.barh(
            positions, means, height * 0.94, label=part, color=PARTS[part]["color"], hatch=PARTS[part]["hatch"],
            edgecolor="white", linewidth=0,
        )  # fmt: skip
        axes.bar_label(bars, ["" if np.isnan(mean) else f"{mean:.3f}" for mean in means], fontsize=9, padding=3)
        lowest = min([lowest, *(mean for mean in means if not np.isnan(mean))])
    axes.set_yticks(range(len(PAPER_METRICS)), [HEADINGS[metric] for metric in PAPER_METRICS])
    axes.invert_yaxis()
    axes.set_xlim(1.2 * lowest, 1.12)
    _finish(axes, "x")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_losses(runs: Sequence[Run]) -> Figure:
    """The training loss of runs that have one, over epochs, on a logarithmic scale."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.2), layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        marker = MARKERS[index % len(MARKERS)] if len(run.training["epoch"]) <= MOST_MARKERS else ""
        style = {"color": RUN_COLORS[index % len(RUN_COLORS)], "linestyle": ("-", "--", ":", "-.")[index % 4]}
        axes.plot(run.training["epoch"], run.training["loss"], marker=marker, markersize=4, label=run.name, **style)
    axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")  # by default powers of ten are formulas
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.locator_params(axis="x", integer=True)
    _finish(axes)
    axes.legend(frameon=False)
    return figure


def draw_cases(runs: Sequence[Run], class_name: str) -> Figure:
    """Dice of every test case: a line per case, a mark per run, the first run's worst on top."""
    dice = [defined(run.values(class_name, "dice")) for run in runs]
    cases = sorted({case for values in dice for case in values}, key=lambda case: (dice[0].get(case, -1.0), case))
    named = len(cases) <= MOST_NAMES
    figure = Figure(figsize=(WIDTH_INCHES, 1.1 + len(cases) * (0.25 if named else 0.08)), layout="constrained")
    axes = figure.subplots()
    for position, case in enumerate(cases):
        of_case = [values[case] for values in dice if case in values]
        axes.plot([min(of_case), max(of_case)], [position] * 2, color="#bbbbbb", linewidth=1.5, zorder=1)
    for index, (run, values) in enumerate(zip(runs, dice, strict=True)):
        places = [position for position, case in enumerate(cases) if case in values]
        color, marker = RUN_COLORS[index % len(RUN_COLORS)], MARKERS[index % len(MARKERS)]
        size = 42 if named else 14
        axes.scatter([values[cases[p]] for p in places], places, s=size, color=color, marker=marker, label=run.name)
    axes.set_yticks(range(len(cases)), cases) if named else axes.set_yticks([])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel(f"Dice of {class_name}")
    _finish(axes, "x")
    figure.legend(loc="outside upper center", ncols=min(len(runs), 3), frameon=False, handletextpad=0.2)
    return figure
