"""Write the report of runs: ``python -m scripts.report --runs runs/mpunet runs/unet --output_dir report/``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from tqdm import tqdm

from scripts.errors import InputError, report_input_errors
from scripts.report import curves, tables
from scripts.report.cases import choose_cases, draw_case, load_case
from scripts.report.page import (
    TRUE_NAMES,
    Section,
    describe_runs,
    make_table,
    save_figure,
    write_csv,
    write_headline,
    write_page,
)
from scripts.report.read import Run, name_runs, read_run
from scripts.report.statistics import FEWEST_PAIRS


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def show_curves(runs: Sequence[Run], output_dir: Path) -> Section:
    """Figures 6 to 11 and the losses."""
    section = Section("Training and validation")
    kinds = (
        ("curves", curves.draw_curves, "the six measures over epochs (as the paper's Fig. 6 and 9)"),
        ("boxes", curves.draw_boxes, "their range over all epochs (as Fig. 7 and 10)"),
        ("bars", curves.draw_bars, "their mean over the last third of the epochs (as Fig. 8 and 11)"),
    )
    for run in runs:
        for kind, draw, caption in kinds:
            name = f"{kind}-{_slug(run.name)}"
            section.figures.append(save_figure(draw(run), output_dir, name, f"{run.name}: {caption}."))
    caption = "Training loss of all runs; losses of different deep supervision are not comparable."
    section.figures.append(save_figure(curves.draw_losses(runs), output_dir, "loss", caption))
    return section


def show_tables(runs: Sequence[Run], output_dir: Path) -> Section:
    """Tables 3 to 6."""
    section = Section("The paper's tables")
    for name, rows, caption, digits, note in (
        ("converged", tables.converged(runs), "Means of the last third of epochs (as Tables 3 and 4)", 4, TRUE_NAMES),
        ("differences", tables.differences(runs), "Their differences in percentage points (as Table 5)", 2, ""),
        ("costs", tables.costs(runs), "Seconds per epoch, size and memory (as Table 6)", 2,
         "Median seconds of an epoch's steps, of a validation, and of writing the checkpoint (weights and optimizer)."),
    ):  # fmt: skip
        write_csv(output_dir, name, rows)
        if rows:
            section.tables.append(make_table(rows, caption, digits, note))
    return section


def show_test(runs: Sequence[Run], output_dir: Path) -> Section:
    """Test cases: means, differences with their significance, all of them."""
    section = Section("Test cases")
    section.text += [f"{run.name} has not been evaluated on test cases." for run in runs if not run.cases]
    evaluated = [run for run in runs if run.cases]
    if not evaluated:
        return section
    significance = tables.significance(evaluated)
    note = (
        "Mean difference over the cases that both runs have, its 95 % bootstrap interval (cases drawn with "
        f"replacement), and the two-sided Wilcoxon signed-rank test, which needs at least {FEWEST_PAIRS} cases. "
        "Several measures are tested: one p below 0.05 among many is no proof."
    )
    for name, rows, caption, text in (
        (
            "test",
            tables.of_test_cases(evaluated),
            "Mean ± SD, whole volumes in their own grids",
            TRUE_NAMES,
        ),
        ("significance", significance, "Run against run, case by case", note),
        ("per_case", tables.per_case(evaluated), "Every case", ""),
    ):
        write_csv(output_dir, name, rows)
        if rows:
            section.tables.append(make_table(rows, caption, note=text))
    for class_name in evaluated[0].classes:
        figure = curves.draw_cases([run for run in evaluated if class_name in run.classes], class_name)
        section.figures.append(
            save_figure(figure, output_dir, f"cases-{_slug(class_name)}", f"Dice of {class_name} in every test case.")
        )
    return section


def show_cases(runs: Sequence[Run], output_dir: Path) -> Section:
    """Best, median and worst case of the first evaluated run (Sec. 5.2)."""
    section = Section("Best, median and worst case")
    evaluated = [run for run in runs if run.cases]
    if not evaluated:
        return section
    class_name = evaluated[0].classes[0]
    chosen = choose_cases(evaluated[0], class_name)
    for kind, name in tqdm(chosen.items(), desc="pictures of cases", unit="case", disable=None):
        loaded = [(run, load_case(run, name)) for run in evaluated]
        shown = [(run, case) for run, case in loaded if case is not None]
        if not shown:
            section.text.append(f"The {kind} case, {name}, has no picture: its image, label or mask is not there.")
            continue
        figure = draw_case([run for run, _ in shown], [case for _, case in shown], class_name, name)
        caption = (
            f"{kind.capitalize()} case of {evaluated[0].name}, {name}: the axial plane with most of the truth, the "
            "errors there, and the predicted surface seen from the front."
        )
        section.figures.append(save_figure(figure, output_dir, f"case-{kind}", caption, photo=True))
    return section


def write_report(folders: Sequence[str], output_dir: str, names: Sequence[str] | None = None) -> Path:
    """Write ``index.html``, and all its tables as CSV and figures as PNG and SVG; return the page.

    Args:
        folders: run folders; the first is what others are compared to.
        output_dir: where all is written.
        names: of the runs; their folders' by default.

    Raises:
        InputError: if a folder holds no run, or a damaged one; if there are not as many names as runs.
    """
    if names and len(names) != len(folders):
        raise InputError(f"--names: {len(names)} names for {len(folders)} runs; give one each")
    unique = name_runs(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names or unique, strict=True)]
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    parts = tqdm((show_test, show_cases, show_tables, show_curves), desc="report", unit="part", disable=None)
    with rc_context({"text.parse_math": False}):  # names of runs and cases are no formulas
        sections = [show(runs, output) for show in parts]
    sections.append(Section("How it was made", text=describe_runs(runs)))
    shown = [section for section in sections if section.text or section.tables or section.figures]
    write_page(output / "index.html", " and ".join(run.name for run in runs), write_headline(runs), shown)
    return output / "index.html"


def main() -> None:
    """Run from the command line."""
    report_input_errors()
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report", description="Report of training and evaluation runs."
    )
    parser.add_argument("--runs", nargs="+", required=True, help="run folders: the --output_dir of trainings")
    parser.add_argument("--output_dir", required=True, help="folder for the page, its tables and pictures")
    parser.add_argument("--names", nargs="+", help="names of the runs, instead of their folders'")
    arguments = parser.parse_args()
    print(write_report(arguments.runs, arguments.output_dir, arguments.names))


if __name__ == "__main__":
    main()
