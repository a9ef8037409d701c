"""What is each part worth? Trains variants on the same cases with the same budget and puts them into one table.

    python -m scripts.ablation --dataset_dir data/phantoms --output_dir runs/ablation --seeds 0,1

Variants and the settings that they share are in ``configs/ablation.json``. Each variant and seed is a training and an
evaluation of its own, in processes of their own; what is finished is not done again.
"""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from scripts.cases import PAPER_MIN_SLICES, absolute, read_json
from scripts.commands import run_command
from scripts.data import get_datalist
from scripts.errors import InputError
from scripts.files import write_table, write_text, written_whole
from scripts.knobs import check_whole
from scripts.report.page import slug

ROOT = Path(__file__).resolve().parents[1]
# column → what of a run it is; each is a mean over the test cases that have it
CASE_METRICS = {"dice_liver": ("liver", "dice"), "dice_tumor": ("tumor", "dice"), "hd95_liver_mm": ("liver", "hd95_mm")}
FACTS = ("parameters", "seconds_per_step", "peak_memory_mb")
HEADINGS = {
    "variant": "variant",
    "runs": "runs",
    "dice_liver": "Dice liver",
    "change": "change of Dice liver, 95 % interval",
    "dice_tumor": "Dice tumour",
    "hd95_liver_mm": "HD95 liver, mm",
    "parameters": "parameters",
    "seconds_per_step": "seconds per step",
    "peak_memory_mb": "peak memory, MB",
}


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed.

    Attributes:
        variant: its name.
        seed: of the order of the cases, crops and initial weights.
        folder: where its results are.
        overlay: config keys and values, laid over ``train.json``.
    """

    variant: str
    seed: int
    folder: Path
    overlay: Mapping[str, Any]


def read_plan(config_file: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the settings that all variants share, and name → settings of each variant.

    Raises:
        InputError: if the file is not such a plan, or sets a key that ``train.json`` does not have.
    """
    try:
        plan = json.loads(Path(config_file).read_text(encoding="utf-8"))
        settings, variants = dict(plan["settings"]), {name: dict(keys) for name, keys in plan["variants"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{config_file}: not a plan of an ablation ({error!r}); give a JSON file with 'settings' and 'variants'"
        ) from error
    known = json.loads((ROOT / "configs/train.json").read_text(encoding="utf-8"))
    for name, keys in {"settings": settings, **variants}.items():
        keys.pop("_desc_", None)
        for key in keys:
            if key.split("::")[0] not in known:
                raise InputError(f"{config_file}: {name} sets {key!r}, a key that configs/train.json does not have")
    return settings, variants


def choose_variants(variants: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the names of the variants to run, in the plan's order; all if none is given."""
    unknown = [name for name in names if name not in variants]
    if unknown:
        raise InputError(f"--variants: no variant {unknown[0]!r}; there are {', '.join(variants)}")
    return [name for name in variants if not names or name in names]


def is_finished(run: Run) -> bool:
    """Return whether the run was evaluated before.

    Raises:
        InputError: if the folder holds a run with other settings.
    """
    file = run.folder / "overlay.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != run.overlay:
        raise InputError(f"{file}: was run with other settings; remove the folder or give another --output_dir")
    return (run.folder / "evaluation/summary.csv").is_file()


def execute(run: Run) -> bool:
    """Train and evaluate in processes of their own, with their output in ``log.txt``; return whether both succeeded."""
    overlay_file = run.folder / "overlay.json"
    write_text(overlay_file, json.dumps(run.overlay, indent=2) + "\n")
    with open(run.folder / "log.txt", "w", encoding="utf-8") as log:
        for key, overlays in (("training", []), ("evaluating", ["configs/evaluate.json"])):
            configs = ["configs/train.json", *overlays, str(overlay_file)]
            command = [sys.executable, "-m", "monai.bundle", "run", key, "--config_file", str(configs)]
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
                return False
    return True


def read_cases(run: Run) -> dict[tuple[str, str], dict[str, float]]:
    """Return (class, case) → measures of the run's test cases."""
    with open(run.folder / "evaluation/per_case.csv", newline="", encoding="utf-8") as file:
        return {
            (row["class"], row["case"]): {name: float(row[name] or "nan") for name in ("dice", "hd95_mm")}
            for row in csv.DictReader(file)
        }


def mean_of_cases(run: Run, class_name: str, metric: str) -> float:
    """Return the mean over the cases that have the measure; NaN if none has."""
    values = [measures[metric] for (name, _), measures in read_cases(run).items() if name == class_name]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def change_of_dice(runs: Sequence[Run], reference: Sequence[Run]) -> tuple[float, float]:
    """Return the mean change of the liver's Dice against the reference, and half the width of its 95 % interval.

    Cases are paired, each averaged over the seeds; the interval is that of the mean over cases (Student's t). It holds
    what the choice of cases leaves open, and with few seeds little of what the seed does.
    """

    def per_case(of_runs: Sequence[Run]) -> dict[str, float]:
        dice: dict[str, list[float]] = {}
        for run in of_runs:
            for (class_name, case), measures in read_cases(run).items():
                if class_name == "liver":
                    dice.setdefault(case, []).append(measures["dice"])
        return {case: float(np.mean(values)) for case, values in dice.items()}

    ours, theirs = per_case(runs), per_case(reference)
    changes = [ours[case] - theirs[case] for case in ours if not math.isnan(ours[case] - theirs[case])]
    half_width = stats.t.ppf(0.975, len(changes) - 1) * stats.sem(changes) if len(changes) > 1 else math.nan
    return float(np.mean(changes)), float(half_width)


def tabulate(runs: Sequence[Run], reference: str) -> list[dict[str, Any]]:
    """Return a row per variant of the finished runs: mean and SD over seeds of every measure, for `write_table`."""
    finished = [run for run in runs if (run.folder / "evaluation/summary.csv").is_file()]
    seeds_of_reference = {run.seed: run for run in finished if run.variant == reference}
    rows = []
    for variant in dict.fromkeys(run.variant for run in finished):
        of_variant = [run for run in finished if run.variant == variant]
        row: dict[str, Any] = {"variant": variant, "runs": len(of_variant)}
        facts = [json.loads((run.folder / "run.json").read_text(encoding="utf-8")) for run in of_variant]
        measured = {column: [mean_of_cases(run, *what) for run in of_variant] for column, what in CASE_METRICS.items()}
        measured |= {name: [math.nan if f[name] is None else f[name] for f in facts] for name in FACTS}
        for column, values in measured.items():
            row[column] = float(np.mean(values))
            row[f"{column}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        paired = [run for run in of_variant if run.seed in seeds_of_reference]
        row["dice_liver_change"] = row["dice_liver_change_95"] = math.nan
        if paired and variant != reference:
            against = [seeds_of_reference[run.seed] for run in paired]
            row["dice_liver_change"], row["dice_liver_change_95"] = change_of_dice(paired, against)
        rows.append(row)
    return rows


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown: mean ± SD, the best of each measure in bold."""
    best = {
        column: (max if column.startswith("dice") else min)(
            (row[column] for row in rows if not math.isnan(row[column])), default=math.nan
        )
        for column in (*CASE_METRICS, *FACTS)
    }
    digits = {"dice_liver": 3, "dice_tumor": 3, "hd95_liver_mm": 1, "seconds_per_step": 3}

    def cell(row: Mapping[str, Any], column: str) -> str:
        if column == "change":
            change, half_width = row["dice_liver_change"], row["dice_liver_change_95"]
            interval = "" if math.isnan(half_width) else f" ± {half_width:.3f}"  # of one case there is none
            return "" if math.isnan(change) else f"{change:+.3f}{interval}"
        if column not in best:
            return str(row[column])
        places, spread = digits.get(column, 0), row[f"{column}_sd"]
        text = "-" if math.isnan(row[column]) else f"{row[column]:,.{places}f}"
        text = f"**{text}**" if row[column] == best[column] else text
        has_spread = column not in ("parameters", "peak_memory_mb") and not math.isnan(spread)
        return f"{text} ± {spread:.{places}f}" if has_spread else text

    lines = [list(HEADINGS.values()), ["---"] * len(HEADINGS)]
    lines += [[cell(row, column) for column in HEADINGS] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw_dice(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a picture: the liver's Dice of each variant, a dot for each seed and a line at their mean.

    A variant that is far below the median has its number at the border, so that the others can be told apart.
    """
    figure = Figure(figsize=(8, 0.34 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    lowest = np.nanmedian([row["dice_liver"] for row in rows]) - 0.15
    for position, row in enumerate(rows):
        if row["dice_liver"] < lowest:
            axes.annotate(
                f"← {row['dice_liver']:.3f}", (0.01, position), xycoords=("axes fraction", "data"), va="center"
            )
            continue
        of_variant = [run for run in runs if run.variant == row["variant"] and (run.folder / "run.json").is_file()]
        dice = [mean_of_cases(run, "liver", "dice") for run in of_variant if is_finished(run)]
        axes.plot(dice, [position] * len(dice), "o", color="#1f5fa8", markersize=6, alpha=0.8)
        axes.plot([row["dice_liver"]], [position], "|", color="black", markersize=14, markeredgewidth=2)
    if rows[0]["variant"] == runs[0].variant:  # else what others are compared to is not finished
        axes.axvline(rows[0]["dice_liver"], color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_xlabel("Dice of the liver, mean over test cases: a dot per seed, a bar at their mean")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def write_results(runs: Sequence[Run], output_dir: Path) -> str:
    """Write ``ablation.csv``, ``.md``, ``.png`` and ``.svg`` of what is finished; return the Markdown table."""
    rows = tabulate(runs, runs[0].variant)
    if not rows:
        return ""
    write_table(output_dir / "ablation.csv", rows)
    markdown = format_markdown(rows)
    write_text(output_dir / "ablation.md", markdown)
    for suffix in ("png", "svg"):
        draw_dice(runs, rows, output_dir / f"ablation.{suffix}")
    return markdown


def run_ablation(
    dataset_dir: str,
    output_dir: str,
    variants: Sequence[str] = (),
    seeds: int | Sequence[int] = (0, 1),
    config_file: str = str(ROOT / "configs/ablation.json"),
    execute: Callable[[Run], bool] = execute,
) -> bool:
    """Train, evaluate and tabulate variants; return whether all of them succeeded.

    Args:
        dataset_dir: cases, as for training.
        output_dir: of the table; each run has a folder in it.
        variants: names from the config file, all by default; others are compared to the first in the file's order.
        seeds: one or several.
        config_file: the plan.
        execute: what trains and evaluates a run.
    """
    settings, known = read_plan(config_file)
    names = choose_variants(known, variants)
    seeds = list(dict.fromkeys(seeds if isinstance(seeds, Sequence) and not isinstance(seeds, str) else [seeds]))
    for seed in seeds:
        check_whole("seeds", seed, 0)
    root = Path(output_dir).absolute()
    cases = root / "cases.json"  # one split for all seeds
    shared = settings | {"dataset_dir": str(cases)}
    runs = []
    for seed in seeds:
        for name in names:
            folder = root / slug(name) / f"seed-{seed}"
            own = {"seed": seed, "output_dir": str(folder), "ckpt_path": str(folder / "model.pt")}
            runs.append(Run(name, seed, folder, shared | own | known[name]))
    if cases.is_file() and read_json(cases).get("dataset_dir") != str(absolute(dataset_dir)):
        raise InputError(f"{cases}: is of runs on other data than {dataset_dir}; give another --output_dir")
    waiting = [run for run in runs if not is_finished(run)]
    if waiting:
        # the split stays when seeds are added
        seed = read_json(cases)["seed"] if cases.is_file() else min(seeds)
        get_datalist(dataset_dir, cases, seed, settings.get("min_slices", PAPER_MIN_SLICES))
    failed = []
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="ablation", unit="run", disable=None) as progress:
        for run in waiting:
            progress.set_postfix_str(f"{run.variant}, seed {run.seed}")
            if not execute(run):
                failed.append(run)
                progress.write(f"{run.variant}, seed {run.seed}: failed, see {run.folder / 'log.txt'}", file=sys.stderr)
            write_results(runs, root)
            progress.update()
    print(write_results(runs, root))
    return not failed


def main() -> None:
    """Run from the command line; the exit status is 1 if a variant failed."""
    sys.exit(0 if run_command(_command) else 1)


def _command(
    dataset_dir: str,
    output_dir: str = "runs/ablation",
    variants: str | Sequence[str] = (),
    seeds: int | Sequence[int] = (0, 1),
    config_file: str = str(ROOT / "configs/ablation.json"),
) -> bool:
    """Train variants of the network on the same cases and compare them in one table.

    Args:
        dataset_dir: cases, as for training.
        output_dir: of the table; each run has a folder in it.
        variants: names from the config file, separated by commas; all by default.
        seeds: separated by commas.
        config_file: the plan: settings and variants.
    """
    names = variants.split(",") if isinstance(variants, str) else variants
    return run_ablation(dataset_dir, output_dir, [name.strip() for name in names], seeds, config_file)


if __name__ == "__main__":
    main()
