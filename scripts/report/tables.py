"""The paper's tables 3 to 6, and those of the test cases, as they are written to CSV: rows of words and numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.report.read import HEADINGS, METRICS, Run
from scripts.report.statistics import compare, defined, last_third_mean

Row = dict[str, Any]


def converged(runs: Sequence[Run]) -> list[Row]:
    """Tables 3 and 4: every measure of training and validation, mean over the last third of the epochs."""
    return [
        {"run": run.name, "cases": part} | {metric: last_third_mean(curves, metric) for metric in METRICS}
        for run in runs
        for part, curves in run.measured.items()
    ]


def differences(runs: Sequence[Run]) -> list[Row]:
    """Table 5: the first run minus each other, in percentage points, mean over the last third of the epochs."""
    first = runs[0]
    return [
        {"difference": f"{first.name} - {other.name}", "cases": part}
        | {
            metric: 100 * (last_third_mean(curves, metric) - last_third_mean(other.measured[part], metric))
            for metric in METRICS
        }
        for other in runs[1:]
        for part, curves in first.measured.items()
        if part in other.measured
    ]


def costs(runs: Sequence[Run]) -> list[Row]:
    """Table 6: seconds per epoch (median), parameters, size of the checkpoint; NaN where the run does not say."""

    def median(run: Run, part: str) -> float:
        curves = getattr(run, part)
        return float(np.nanmedian(curves["seconds"])) if curves else math.nan

    def fact(run: Run, name: str) -> float:
        value = run.facts.get(name)
        return math.nan if value is None else value

    rows = []
    for run in runs:
        seconds = [median(run, "training"), median(run, "validation"), fact(run, "checkpoint_seconds")]
        rows.append(
            {
                "run": run.name,
                "training_s": seconds[0],
                "validation_s": seconds[1],
                "output_s": seconds[2],
                "total_s": seconds[0] + seconds[1] * _share_validated(run) + seconds[2],
                "parameters": fact(run, "parameters"),
                "checkpoint_mb": fact(run, "checkpoint_mb"),
                "peak_memory_mb": fact(run, "peak_memory_mb"),
            }
        )
    return rows


def _share_validated(run: Run) -> float:
    """Return the share of the epochs after which there was a validation."""
    trained, validated = (len(curves.get("epoch", ())) for curves in (run.training, run.validation))
    return validated / trained if trained else math.nan


def of_test_cases(runs: Sequence[Run]) -> list[Row]:
    """Mean and SD of every measure over the test cases, for each run and class."""
    rows = []
    for run in runs:
        for class_name in run.classes:
            row: Row = {"run": run.name, "class": class_name, "cases": len(run.values(class_name, "dice"))}
            for metric in HEADINGS:
                values = list(defined(run.values(class_name, metric)).values())
                row[metric] = float(np.mean(values)) if values else math.nan
                row[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            rows.append(row)
    return rows


def significance(runs: Sequence[Run]) -> list[Row]:
    """The first run against each other on the test cases that both have: see `scripts.report.statistics.compare`."""
    rows = []
    for other in runs[1:]:
        for class_name in (name for name in runs[0].classes if name in other.classes):
            for metric in HEADINGS:
                result = compare(runs[0].values(class_name, metric), other.values(class_name, metric))
                rows.append(
                    {
                        "comparison": f"{runs[0].name} - {other.name}",
                        "class": class_name,
                        "measure": metric,
                        "cases": result.cases,
                        "difference": result.difference,
                        "low_95": result.low,
                        "high_95": result.high,
                        "p_wilcoxon": result.p_value,
                        "cases_above": result.above,
                    }
                )
    return rows


def per_case(runs: Sequence[Run]) -> list[Row]:
    """A row per test case and class: Dice and HD95 of each run, the true volume and the error of each run's."""
    places = list(dict.fromkeys((row["case"], row["class"]) for run in runs for row in run.cases))
    rows = []
    for case, class_name in places:
        row: Row = {"case": case, "class": class_name}
        for heading, metric in (("dice", "dice"), ("hd95_mm", "hd95_mm"), ("volume_ml", "volume_ml")):
            for run in runs:
                row[f"{run.name}: {heading}"] = run.values(class_name, metric).get(case, math.nan)
        references = [run.values(class_name, "reference_volume_ml").get(case, math.nan) for run in runs]
        row["true_volume_ml"] = next((volume for volume in references if not math.isnan(volume)), math.nan)
        rows.append(row)
    return rows
