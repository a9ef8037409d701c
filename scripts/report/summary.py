"""What do runs say in a few words and numbers?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.report.layout import Cell, Table, count, format_number, format_p
from scripts.report.read import Run
from scripts.report.statistics import FEWEST_PAIRS, compare, defined
from scripts.report.tables import costs

SETTINGS = {  # key of the config → its heading
    "target": "Target", "spacing": "Spacing, mm", "roi_size": "Crop, voxels", "batch_size": "Batch size",
    "learning_rate": "Learning rate", "seed": "Seed",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A number, what it is, and a line about it."""

    number: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Card:
    """One run at a glance: what came out, and lines about what it took."""

    name: str
    results: list[Result]
    details: list[str]


def list_names(runs: Sequence[Run]) -> str:
    """Return "A", "A and B", "A, B and C"."""
    *others, last = (run.name for run in runs)
    return f"{', '.join(others)} and {last}" if others else last


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return float(np.mean(values)) if values else math.nan


def _results_of(run: Run) -> list[Result]:
    """Return the Dice of each class on the test cases, or the last one of validation or training, if there are none."""
    if not run.cases:
        if not run.measured:
            return []
        words, curves = list(run.measured.items())[-1]
        label = f"Dice in {words}, epoch {int(curves['epoch'][-1])}; not tested yet"
        return [Result(format_number(float(curves["dice"][-1])), label)]
    results = []
    for class_name in run.classes:
        dice = defined(run.values(class_name, "dice"))
        hd95 = list(defined(run.values(class_name, "hd95_mm")).values())
        detail = ""
        if dice:
            worst = min(dice, key=lambda case: dice[case])
            median = format_number(float(np.median(list(dice.values()))))
            detail = f"median {median}, lowest {format_number(dice[worst])} ({worst})"
        if hd95:
            detail += f"; mean HD95 {format_number(mean(hd95), 1)} mm"
        label = f"mean Dice of {class_name}, {count(len(dice), 'test case')}"
        results.append(Result(format_number(mean(list(dice.values()))), label, detail))
    return results


def make_cards(runs: Sequence[Run]) -> list[Card]:
    """Return a card of each run."""
    units = (("parameters", 0, "parameters"), ("training_s", 1, "s of training per epoch"))
    return [
        Card(
            run.name,
            _results_of(run),
            [
                f"{format_number(cost[name], digits)} {unit}"
                for name, digits, unit in units
                if not math.isnan(cost[name])
            ],
        )
        for run, cost in zip(runs, costs(runs), strict=True)
    ]


def write_headline(runs: Sequence[Run]) -> list[str]:
    """Return in words what came out on the test cases: the first sentence is the main one."""
    evaluated = [run for run in runs if run.cases]
    if not evaluated:
        return ["No run has been evaluated on test cases yet; the curves show training and validation."]
    first = evaluated[0]
    sentences = []
    for class_name in first.classes:
        others = evaluated[1:]
        if not others:
            dice = list(defined(first.values(class_name, "dice")).values())
            average = format_number(mean(dice))
            cases = count(len(dice), "test case")
            sentences.append(f"{first.name} has a mean Dice of {average} for {class_name} in {cases}.")
        for other in others:
            words = compare_in_words(first, other, class_name)
            sentences += [" ".join(words)] if sentences else words  # the first is the page's main sentence
    sentences += [f"{run.name} has not been evaluated on test cases yet." for run in runs if not run.cases]
    for run in (run for run in evaluated if run.is_outdated):
        best = f" (epoch {run.facts['best_epoch']})" if run.facts.get("best_epoch") else ""
        sentences.append(
            f"Test cases of {run.name} were measured with other weights than its best{best}: evaluate again."
        )
    return sentences


def compare_in_words(first: Run, other: Run, class_name: str) -> list[str]:
    """Return what the Dice of one class in the cases that both runs have says about which is better."""
    ours, theirs = first.values(class_name, "dice"), other.values(class_name, "dice")
    common = [case for case in defined(ours) if case in defined(theirs)]
    if not common:
        return [f"{first.name} and {other.name} have no test case in common, so they cannot be compared."]
    result = compare(ours, theirs)
    better, worse = (first, other) if result.difference >= 0 else (other, first)
    high, low = (
        format_number(mean([run.values(class_name, "dice")[case] for case in common])) for run in (better, worse)
    )
    level = high == low
    same = f"in the same {count(len(common), 'test case').removeprefix('1 ')}"
    means = f"mean Dice {high} each {same}" if level else f"mean Dice {high} against {low} {same}"
    difference = f"The difference is {format_number(abs(result.difference))}"
    if not math.isnan(result.low):
        interval = (result.low, result.high) if result.difference >= 0 else (-result.high, -result.low)
        difference += f", 95 % interval {format_number(interval[0])} to {format_number(interval[1])}"
    ahead = {first.name: result.above, other.name: compare(theirs, ours).above}
    cases = count(len(common), "case")
    if level:
        difference += f"; {first.name} is ahead in {ahead[first.name]}, {other.name} in {ahead[other.name]} of {cases}"
    else:
        difference += f"; {better.name} is ahead in {ahead[better.name]} of {cases}"
    verdict = f"{better.name} is ahead of {worse.name} for {class_name}: {means}."
    if level:
        verdict = f"{first.name} and {other.name} are level for {class_name}: {means}."
    if math.isnan(result.p_value):
        return [verdict, f"{difference}. For a test of significance at least {FEWEST_PAIRS} cases are needed."]
    if not result.decided:
        verdict = f"These cases do not decide between {first.name} and {other.name} for {class_name}: {means}."
    elif not level:
        verdict = f"{better.name} segments {class_name} better than {worse.name}: {means}."
    return [verdict, f"{difference}; Wilcoxon signed-rank test p {_equals(format_p(result.p_value))}."]


def _equals(p_value: str) -> str:
    return p_value if p_value.startswith("<") else f"= {p_value}"


def dice_in_words(run: Run) -> str:
    """Return where a run's Dice stands: its last epoch in training, if measured there, and its best validation."""
    words = []
    if "training" in run.measured:
        epochs = int(run.training["epoch"].max())
        words = [f"in training {format_number(float(run.training['dice'][-1]))} in epoch {epochs}"]
    dice = run.validation.get("dice", np.array([]))
    if np.isnan(dice).all():
        words.append("not validated yet")
    else:
        best = int(np.nanargmax(dice))
        epoch = int(run.validation["epoch"][best])
        words.append(f"in validation at best {format_number(float(dice[best]))} in epoch {epoch}")
    return f"Dice {', '.join(words)}"


def lay_out_facts(runs: Sequence[Run]) -> Table:
    """How each run was made and how far it went; of what is known of no run there is no row."""

    def show(value: Any) -> str:
        if value is None or str(value).startswith(("$", "@", "%")):  # an expression says nothing here
            return ""
        return " × ".join(map(str, value)) if isinstance(value, list) else str(value)

    def describe(run: Run) -> dict[str, str]:
        planned = run.facts.get("max_epochs")
        versions = run.facts.get("versions", {})
        there = {"not validated yet": run.validation, "not evaluated": run.cases, "no run.json": run.facts}
        return {
            "Network": show(run.facts.get("network")),
            "Epochs": f"{int(run.training['epoch'].max())}" + (f" of {planned}" if planned is not None else ""),
            "Steps per epoch": show(run.facts.get("steps_per_epoch")),
            **{heading: show(run.settings.get(name)) for name, heading in SETTINGS.items()},
            "Device": show(run.facts.get("device")),
            "CPU threads": show(run.facts.get("threads")),
            "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "Missing": ", ".join(text for text, part in there.items() if not part),
        }

    described = [describe(run) for run in runs]
    rows = [
        (Cell(name), [Cell(facts[name] or "–") for facts in described])
        for name in described[0]
        if any(facts[name] for facts in described)
    ]
    return Table("The runs", [run.name for run in runs], rows)
