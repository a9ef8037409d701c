"""Write the report of runs: ``python -m scripts.report --runs runs/mpunet runs/unet --output_dir report/``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from tqdm import tqdm

from scripts.errors import InputError, report_input_errors
from scripts.report import curves, tables
from scripts.report.cases import PANELS, axial_plane, choose_cases, load_case, volumes_of_errors_ml
from scripts.report.layout import (
    TRUE_NAMES,
    format_number,
    lay_out_cases,
    lay_out_converged,
    lay_out_costs,
    lay_out_test,
)
from scripts.report.page import Gallery, Section, save_figure, slug, write_csv, write_page
from scripts.report.read import Run, check_comparable, name_runs, read_run
from scripts.report.statistics import FEWEST_PAIRS
from scripts.report.summary import dice_in_words, lay_out_facts, list_names, make_cards, write_headline

MOST_OPEN_CASES = 12  # of more, the table of all cases is folded
WITHOUT_DISTANCE = "A case of which one mask is empty has no distances and is left out of their means."
HOW_COMPARED = (
    "Difference: its mean over the cases that both runs have, and below that its 95 % bootstrap interval (cases drawn "
    f"with replacement). p: two-sided Wilcoxon signed-rank test, from {FEWEST_PAIRS} cases on. The test that counts is "
    "that of Dice; among so many others some p are below 0.05 by chance."
)
PANEL_WORDS = {
    "outlines": "axial CT with the outlines of truth and prediction",
    "errors": "the same plane with what is wrongly included and what is missed",
    "surface": "predicted surface from the front, coloured by its distance to the true one",
}


def show_test(runs: Sequence[Run], output_dir: Path) -> Section:
    """Test cases: each of them, means, and differences with their significance."""
    section = Section("Test cases")
    evaluated = [run for run in runs if run.cases]
    if not evaluated:
        return section
    means, differences, cases = (
        tables.of_test_cases(evaluated),
        tables.significance(evaluated),
        tables.per_case(evaluated),
    )
    for name, rows in (("test", means), ("significance", differences), ("per_case", cases)):
        write_csv(output_dir, name, rows)
    for class_name in evaluated[0].classes:
        figure = curves.draw_cases(evaluated, class_name)
        alt = f"Chart of the Dice of {class_name} in every test case, a row per case, a mark per run."
        picture = save_figure(figure, output_dir, f"cases-{slug(class_name)}", alt)
        table = lay_out_test(class_name, means, differences)
        if class_name == evaluated[0].classes[0]:
            table.note = f"{TRUE_NAMES} {WITHOUT_DISTANCE} {HOW_COMPARED if differences else ''}"
        caption = f"Dice of {class_name}: a row per test case, that of the lowest Dice of {evaluated[0].name} on top."
        section.blocks.append(Gallery([picture], table.caption, caption=caption, table=table))
        folded = len(evaluated[0].values(class_name, "dice")) > MOST_OPEN_CASES
        section.blocks.append(lay_out_cases(class_name, evaluated, cases, folded))
    return section


def show_cases(runs: Sequence[Run], output_dir: Path) -> Section:
    """Best, median and worst case of the first evaluated run (Sec. 5.2), of each class."""
    section = Section("Best, median and worst")
    evaluated = [run for run in runs if run.cases]
    if not evaluated:
        return section
    first = evaluated[0]
    chosen = [(name, kind, case) for name in first.classes for kind, case in choose_cases(first, name).items()]
    for class_name, kind, case_name in tqdm(chosen, desc="pictures of cases", unit="case", disable=None):
        title = f"{kind.capitalize()} case of {first.name}, {class_name}: {case_name}"
        shown = [(run, case) for run in evaluated if (case := load_case(run, case_name, class_name)) is not None]
        if not shown:
            section.text.append(f"{title}, has no picture: its image, label or mask is not there.")
            continue
        plane = axial_plane(shown[0][1])
        for index, (run, case) in enumerate(shown):
            dice = format_number(run.values(class_name, "dice")[case_name])
            excess_ml, missed_ml = (format_number(volume, 0) for volume in volumes_of_errors_ml(case))
            result = f"{run.name}: Dice {dice}, {excess_ml} ml wrongly included, {missed_ml} ml missed"
            name = f"case-{slug(class_name)}-{kind}-{slug(run.name)}"
            pictures = [
                save_figure(
                    draw(case, plane),
                    output_dir,
                    f"{name}-{panel}",
                    f"{case_name}, {result}: {PANEL_WORDS[panel]}.",
                    scan=True,
                )
                for panel, draw in PANELS.items()
            ]
            section.blocks.append(Gallery(pictures, "" if index else title, result, scans=True))
    if section.blocks:
        section.text.insert(
            0,
            f"Cases ranked by the Dice of {first.name}. First picture: the axial plane with most of the truth, seen "
            "from the feet, with both outlines. Second: the errors in that plane. Third: the predicted surface from "
            "the front, bright where it lies on the true one, dark where it is far off, and the true silhouette.",
        )
    return section


def show_curves(runs: Sequence[Run], output_dir: Path) -> Section:
    """Figures 6 to 11 and the losses."""
    section = Section("Training and validation")
    if len(runs[0].targets) > 1 and any(run.measured for run in runs):
        section.text.append(f"All measures here are means over {' and '.join(runs[0].targets)}.")
    kinds = (
        ("curves", curves.draw_curves, "Six measures over the epochs", "The paper's Figures 6 and 9."),
        (
            "boxes",
            curves.draw_boxes,
            "Their range over all epochs",
            "The paper's Figures 7 and 10: median, quartiles, whiskers of at most 1.5 times their distance, and the "
            "epochs beyond.",
        ),
        ("bars", curves.draw_bars, "Their mean over the last third of the epochs", "The paper's Figures 8 and 11."),
    )
    for kind, draw, title, caption in kinds:
        pictures = [
            save_figure(
                draw(run),
                output_dir,
                f"{kind}-{slug(run.name)}",
                f"{title}, {run.name}: {dice_in_words(run)}.",
                run.name,
            )
            for run in runs
            if run.measured
        ]
        if pictures:
            section.blocks.append(Gallery(pictures, title, caption=caption))
    with_loss = [run for run in runs if "loss" in run.training]
    if with_loss:
        alt = "Training loss of each run over the epochs."
        picture = save_figure(curves.draw_losses(with_loss), output_dir, "loss", alt)
        caption = "Losses of networks with and without deep supervision are not comparable."
        section.blocks.append(Gallery([picture], "Training loss", caption=caption))
    return section


def show_tables(runs: Sequence[Run], output_dir: Path) -> Section:
    """Tables 3 to 6, and what the runs are."""
    section = Section("Numbers of the training")
    means, differences, costs = tables.converged(runs), tables.differences(runs), tables.costs(runs)
    for name, rows in (("converged", means), ("differences", differences), ("costs", costs)):
        write_csv(output_dir, name, rows)
    converged = lay_out_converged(means, differences)
    converged.note = (
        f"The paper's Tables 3, 4 and 5; differences are percentage points. {TRUE_NAMES} Its measures are those of "
        "soft probabilities slab by slab; these are of masks: of crops in training, of whole volumes in validation."
    )
    cost = lay_out_costs(costs)
    cost.note = (
        "The paper's Table 6. Medians over the epochs of the seconds of an epoch's steps and of a validation; output "
        "is the writing of the checkpoint, which holds the weights and the optimizer's state."
    )
    section.blocks += [*([converged] if means else []), cost, lay_out_facts(runs)]
    return section


def write_report(folders: Sequence[str], output_dir: str, names: Sequence[str] | None = None) -> Path:
    """Write ``index.html``, and all its tables as CSV and figures as PNG and SVG; return the page.

    Args:
        folders: run folders; the first is what others are compared to.
        output_dir: where all is written.
        names: of the runs; their folders' by default.

    Raises:
        InputError: if a folder holds no run, or a damaged one; if runs cannot be compared, being of other targets or
            other data; if there are not as many different names as runs; if ``output_dir`` is a file or an evaluation.
    """
    runs = [read_run(folder, name) for folder, name in zip(folders, name_runs(folders, names), strict=True)]
    check_comparable(runs)
    if len({slug(run.name) for run in runs}) < len(runs):
        raise InputError("--names: two of them give the same file names; let them differ in letters or digits")
    output = Path(output_dir)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder as --output_dir")
    is_of_run = any(output.resolve().parent == Path(folder).resolve() for folder in folders)
    if is_of_run and (output / "per_case.csv").exists():
        raise InputError(f"{output}: has an evaluation's tables, some of the same names; give another --output_dir")
    parts = (show_test, show_cases, show_curves, show_tables)
    with rc_context({"text.parse_math": False}):  # names of runs and cases are no formulas
        sections = [show(runs, output) for show in tqdm(parts, desc="report", unit="part", disable=None)]
    shown = [section for section in sections if section.text or section.blocks]
    write_page(output / "index.html", list_names(runs), write_headline(runs), make_cards(runs), shown)
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
