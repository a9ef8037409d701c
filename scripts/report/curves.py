"""The paper's figures 6 to 11, and the test cases of all runs side by side. Every figure reads in greyscale too."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from scripts.report.read import HEADINGS, PAPER_METRICS, Run
from scripts.report.statistics import defined, last_third_mean

PARTS = {  # colour, line, marker and hatch of each part: told apart without colour too
    "training": {"color": "#1b5e9b", "linestyle": "-", "marker": "", "hatch": ""},
    "validation": {"color": "#e07b00", "linestyle": "--", "marker": "o", "hatch": "//"},
}
RUN_COLORS = ("#1b5e9b", "#e07b00", "#2a8a57", "#8d3f8f", "#5c5c5c")  # one after the other, dark and light in turn
MARKERS = "osD^v"
GRID = {"color": "#dddddd", "linewidth": 0.8}


def _panels(sharex: bool = True) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    return figure, figure.subplots(2, 3, sharex=sharex)


def _parts(run: Run) -> list[tuple[str, dict[str, np.ndarray]]]:
    return [(part, curves) for part, curves in (("training", run.training), ("validation", run.validation)) if curves]


def _values(run: Run, metric: str) -> dict[str, np.ndarray]:
    return {part: curves[metric][~np.isnan(curves[metric])] for part, curves in _parts(run)}


def draw_curves(run: Run) -> Figure:
    """The six measures over epochs, training and validation (as Fig. 6 and 9)."""
    figure, panels = _panels()
    for axes, metric in zip(panels.flat, PAPER_METRICS, strict=True):
        for part, curves in _parts(run):
            style = {key: PARTS[part][key] for key in ("color", "linestyle", "marker")}
            axes.plot(curves["epoch"], curves[metric], label=part, markersize=4, linewidth=1.8, **style)
        axes.set_title(HEADINGS[metric])
        axes.grid(**GRID)
        axes.locator_params(axis="x", integer=True)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_boxes(run: Run) -> Figure:
    """Where each measure was over all epochs (as Fig. 7 and 10): median, quartiles, whiskers of 1.5 box lengths."""
    figure, panels = _panels(sharex=False)
    for axes, metric in zip(panels.flat, PAPER_METRICS, strict=True):
        values = _values(run, metric)
        boxes = axes.boxplot(
            list(values.values()), tick_labels=list(values), widths=0.55, patch_artist=True,
            medianprops={"color": "black", "linewidth": 2}, flierprops={"marker": ".", "markersize": 5},
        )  # fmt: skip
        for box, part in zip(boxes["boxes"], values, strict=True):
            box.set(facecolor=PARTS[part]["color"], alpha=0.75, hatch=PARTS[part]["hatch"])
        axes.set_title(HEADINGS[metric])
        axes.grid(axis="y", **GRID)
    return figure


def draw_bars(run: Run) -> Figure:
    """Training and validation, mean over the last third of the epochs (as Fig. 8 and 11)."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    parts = _parts(run)
    width = 0.8 / len(parts)
    lowest = 0.0
    for index, (part, curves) in enumerate(parts):
        means = [last_third_mean(curves, metric) for metric in PAPER_METRICS]
        positions = np.arange(len(means)) + (index - (len(parts) - 1) / 2) * width
        bars = axes.bar(
            positions, means, width * 0.94, label=part, color=PARTS[part]["color"], hatch=PARTS[part]["hatch"],
            edgecolor="white", linewidth=0,
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.3f", fontsize=9, padding=2)
        lowest = min([lowest, *(mean for mean in means if not np.isnan(mean))])
    axes.set_xticks(range(len(PAPER_METRICS)), [HEADINGS[metric] for metric in PAPER_METRICS])
    axes.set_ylim(1.1 * lowest, 1.08)
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_losses(runs: Sequence[Run]) -> Figure:
    """The training loss of all runs over epochs, on a logarithmic scale."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        if "loss" in run.training:
            color, marker = RUN_COLORS[index % len(RUN_COLORS)], MARKERS[index % len(MARKERS)]
            axes.plot(run.training["epoch"], run.training["loss"], color=color, marker=marker, label=run.name)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.locator_params(axis="x", integer=True)
    axes.grid(which="both", **GRID)
    axes.legend(frameon=False)
    return figure


def draw_cases(runs: Sequence[Run], class_name: str) -> Figure:
    """Dice of every test case: a column per case, a mark per run, sorted by the first run's."""
    dice = [defined(run.values(class_name, "dice")) for run in runs]
    cases = sorted({case for values in dice for case in values}, key=lambda case: (dice[0].get(case, -1.0), case))
    figure = Figure(figsize=(max(6.0, min(16.0, 0.5 * len(cases) + 3)), 4), layout="constrained")
    axes = figure.subplots()
    for position, case in enumerate(cases):
        of_case = [values[case] for values in dice if case in values]
        axes.plot([position] * 2, [min(of_case), max(of_case)], color="#bbbbbb", linewidth=1, zorder=1)
    for index, (run, values) in enumerate(zip(runs, dice, strict=True)):
        places = [position for position, case in enumerate(cases) if case in values]
        color, marker = RUN_COLORS[index % len(RUN_COLORS)], MARKERS[index % len(MARKERS)]
        axes.scatter(places, [values[cases[p]] for p in places], s=42, color=color, marker=marker, label=run.name)
    axes.set_xticks(range(len(cases)), cases, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylabel(f"Dice of {class_name}")
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, handletextpad=0.2)
    return figure
