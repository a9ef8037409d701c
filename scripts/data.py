"""What is segmented, and which cases train, validate and test?

Splits the cases that are fit for use by seed; writes a MONAI datalist and a table beside it that a person can read::

    python -m scripts.data check --dataset_dir /data/LiTS
    python -m scripts.data make --dataset_dir /data/LiTS --output_file datalist.json

Adds scans of your own, DICOM series too, to a folder of cases::

    python -m scripts.data add --dataset_dir mine --image patient/series --label patient/liver.nii.gz
"""

import copy
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
from tqdm.contrib.concurrent import thread_map

from scripts.cases import (
    PAPER_MIN_SLICES,
    SECTIONS,
    Case,
    CaseReport,
    Finding,
    absolute,
    check_case,
    find_cases,
    find_repeated,
    list_cases,
    natural_key,
    read_json,
    shared_folder,
)
from scripts.commands import run_command
from scripts.errors import InputError
from scripts.files import write_text
from scripts.knobs import check_whole, is_true

logger = logging.getLogger(__name__)

PAPER_SIZES = (88, 22, 20)  # of training, validation and test, of 130 cases
DATALIST_FORMAT = {"format": "mpunet_datalist", "version": 1}
SEVERITIES = ("error", "dropped", "warning")
WORKERS = 4  # cases read at once; each takes about three times the size of its uncompressed files


class Target(NamedTuple):
    """What to find: the classes, and the class index of each LiTS label (0 background, 1 liver, 2 tumour)."""

    class_names: tuple[str, ...]
    class_of_label: tuple[int, int, int]


TARGETS = {
    "liver": Target(("background", "liver"), (0, 1, 1)),  # the paper's: the liver with its tumours
    "tumor": Target(("background", "tumor"), (0, 0, 1)),
    "liver_and_tumor": Target(("background", "liver", "tumor"), (0, 1, 2)),
}


def _find_target(target: str) -> Target:
    if target not in TARGETS:
        raise InputError(f"target: {target!r} is unknown; give one of {', '.join(TARGETS)}")
    return TARGETS[target]


def class_names(target: str) -> tuple[str, ...]:
    """Return the class names of ``target``, background first. Raises `InputError` for an unknown target."""
    return _find_target(target).class_names


def target_labels(target: str) -> list[int]:
    """Return the class index of the LiTS labels 0, 1 and 2. Raises `InputError` for an unknown target."""
    return list(_find_target(target).class_of_label)


def describe_classes(metadata: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a bundle's metadata with its network's output described by the class names, background first."""
    described = copy.deepcopy(dict(metadata))
    channels = {str(index): name for index, name in enumerate(names)}
    described["network_data_format"]["outputs"]["pred"] |= {"num_channels": len(names), "channel_def": channels}
    return described


def split_cases(names: Iterable[str], seed: int) -> tuple[list[str], list[str], list[str]]:
    """Split names into training, validation and test by seed, whatever their order.

    Sizes are in the paper's proportion by largest remainder (130 names: its 88, 22 and 20); each section gets at least
    one, of two names training and validation do, and of one training. A name's place in the draw is a hash of it and
    the seed, so the split is the same with every version of Python and NumPy.

    Args:
        names: distinct case names.
        seed: the draw.

    Returns:
        Three lists, each sorted by name and number.

    Raises:
        ValueError: names repeat.
    """
    names = list(names)
    if len(set(names)) < len(names):
        raise ValueError(f"expected distinct names, received {len(names)} of which {len(set(names))} differ")
    quotas = [len(names) * size / sum(PAPER_SIZES) for size in PAPER_SIZES]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(3), key=lambda section: sizes[section] - quotas[section])
    for section in by_remainder[: len(names) - sum(sizes)]:
        sizes[section] += 1
    for section in range(1, min(3, len(names))):
        if sizes[section] == 0:  # of two to four names
            sizes[0] -= 1
            sizes[section] = 1
    drawn = iter(sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()))
    training, validation, test = (sorted(itertools.islice(drawn, size), key=natural_key) for size in sizes)
    return training, validation, test


def _describe_case(report: CaseReport, section: str | None) -> dict[str, Any]:
    """Return one row of the table; JSON has no NaN, so what was not measured is None."""
    measured = report.slices is not None
    return {
        "name": report.case.name,
        "section": section,
        "status": report.status,
        "slices": report.slices,
        "spacing_mm": [round(value, 6) for value in report.spacing_mm] if measured else None,
        "liver_ml": round(report.liver_ml, 3) if measured else None,
        "tumor_ml": round(report.tumor_ml, 3) if measured else None,
        "findings": [str(finding) for finding in report.findings],
    }


def _summarise(rows: list[dict[str, Any]], by_section: bool = True) -> str:
    places = [(by_section and row["section"]) or row["status"] for row in rows]
    counts = [f"{places.count(place)} {place}" for place in (*SECTIONS, "ok", "dropped", "bad") if place in places]
    return f"{len(rows)} case{'' if len(rows) == 1 else 's'}: {', '.join(counts)}"


def _format_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows of one kind as the lines of a Markdown table with aligned columns."""
    lines = [list(rows[0])]
    lines += [["-" if cell is None else str(cell).replace("|", r"\|") for cell in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]


def _format_table(root: Path, rows: list[dict[str, Any]]) -> str:
    """Return all cases as a Markdown table under a summary."""
    cells = []
    for row in rows:
        spacing = " x ".join(f"{value:.3g}" for value in row["spacing_mm"] or ())
        cells.append({**row, "spacing_mm": spacing or None, "findings": "; ".join(row["findings"])})
    return "\n".join(["# Cases", "", f"{root}: {_summarise(rows)}", "", *_format_rows(cells), ""])


def _check_cases(cases: list[Case], min_slices: int, workers: int = WORKERS) -> list[CaseReport]:
    check_whole("min_slices", min_slices, 0)
    check_one = partial(check_case, min_slices=min_slices)
    return find_repeated(thread_map(check_one, cases, max_workers=workers, desc="checking", unit="case", disable=None))


def _assign_sections(reports: list[CaseReport], seed: int) -> dict[str, str]:
    """Return the section of each usable case by name: the one its datalist gave it, or else the split's."""
    usable = [report.case for report in reports if report.status == "ok"]
    if any(case.section for case in usable):
        return {case.name: case.section for case in usable}
    split = split_cases([case.name for case in usable], seed)
    return {name: section for section, names in zip(SECTIONS, split, strict=True) for name in names}


def _raise_for_bad_cases(reports: list[CaseReport], advice: str) -> None:
    errors = [finding for report in reports for finding in report.findings if finding.severity == "error"]
    if errors:
        bad = sum(report.status == "bad" for report in reports)
        first = f"{errors[0].file}: {errors[0].reason}"
        raise InputError(f"{bad} of {len(reports)} cases cannot be used, first {first}; {advice}")


def _explain_none(reports: list[CaseReport]) -> str:
    """Return why no case is left, in the words of the first that was left out."""
    dropped = next((f for report in reports for f in report.findings if f.severity == "dropped"), None)
    return f"; the first has {dropped.reason}: --min_slices 1 keeps such" if dropped else ""


def make_datalist(
    dataset_dir: str | os.PathLike,
    output_file: str | os.PathLike,
    seed: int = 0,
    min_slices: int = PAPER_MIN_SLICES,
    skip_bad_cases: bool = False,
) -> dict[str, Any]:
    """Find, check and split the cases of ``dataset_dir``; write the datalist, and a table of all cases beside it.

    Args:
        dataset_dir: see `find_cases`.
        output_file: the datalist to write, ``*.json``; the table takes the same name with ``.md``.
        seed: the split; without effect on a datalist that has its own.
        min_slices: cases with fewer slices are left out, and listed as dropped.
        skip_bad_cases: leave bad cases out, listed as bad, instead of refusing.

    Returns:
        The datalist as written: "training", "validation" and "test" with items ``{"image": path, "label": path}``, then
        "dataset_dir", "seed", "min_slices" and "cases", one row per case found.

    Raises:
        InputError: a case is bad (only the table is then written), none is left, or nothing can be written there.
    """
    root, output_file = absolute(dataset_dir), absolute(output_file)
    if output_file.suffix != ".json":
        raise InputError(f"{output_file}: a datalist's name must end in .json")
    table_file = output_file.with_suffix(".md")
    reports = _check_cases(find_cases(root), min_slices)
    sections = _assign_sections(reports, seed)
    rows = [_describe_case(report, sections.get(report.case.name)) for report in reports]
    write_text(table_file, _format_table(root, rows))
    if not skip_bad_cases:
        remedy = "fix or remove the file, or leave bad cases out with --skip_bad_cases true"
        _raise_for_bad_cases(reports, f"see {table_file}; {remedy}")
    if not sections:
        raise InputError(f"{root}: no case is left ({_summarise(rows)}){_explain_none(reports)}; see {table_file}")
    datalist: dict[str, Any] = {section: [] for section in SECTIONS}
    for case in (report.case for report in reports if report.case.name in sections):
        datalist[sections[case.name]].append({"image": case.image, "label": case.label})
    datalist |= {**DATALIST_FORMAT, "dataset_dir": str(root), "seed": seed, "min_slices": min_slices, "cases": rows}
    write_text(output_file, json.dumps(datalist, indent=2, allow_nan=False) + "\n")
    return datalist


def get_datalist(
    dataset_dir: str | os.PathLike,
    datalist_file: str | os.PathLike,
    seed: int = 0,
    min_slices: int = PAPER_MIN_SLICES,
    skip_bad_cases: bool = False,
) -> dict[str, Any]:
    """Return the datalist in ``datalist_file``, which is made first if it does not exist; see `make_datalist`.

    Cases that came to ``dataset_dir`` after the datalist was made do not join it; their number is logged. Of several
    processes the first makes it.

    Raises:
        InputError: the file was made from other data or with another setting, or a file that it lists is gone.
    """
    datalist_file = absolute(datalist_file)
    with idist.one_rank_first():
        if not datalist_file.exists():
            datalist = make_datalist(dataset_dir, datalist_file, seed, min_slices, skip_bad_cases)
            logger.info("%s: %s", datalist_file, _summarise(datalist["cases"]))
            _warn_of_left_out(datalist)
            return datalist
    datalist = read_json(datalist_file)
    if any(datalist.get(key) != value for key, value in DATALIST_FORMAT.items()):
        raise InputError(
            f"{datalist_file}: was not made by this bundle; delete it or give another --datalist_file (a datalist of "
            "your own goes to --dataset_dir)"
        )
    asked = {"dataset_dir": str(absolute(dataset_dir)), "seed": seed, "min_slices": min_slices}
    for key, value in asked.items():
        if datalist.get(key) != value:
            raise InputError(
                f"{datalist_file}: was made with {key} {datalist.get(key)}, not {value}; give --{key} "
                f"{datalist.get(key)}, or for another training another --output_dir (and --ckpt_path)"
            )
    for item in itertools.chain.from_iterable(datalist[section] for section in SECTIONS):
        for file in item.values():
            if not os.path.exists(file):
                raise InputError(f"{file}: is gone, but {datalist_file} lists it; restore it or delete the datalist")
    cases, listed = find_cases(dataset_dir), {row["name"]: row["section"] for row in datalist["cases"]}
    for case in cases:
        if case.section and listed.get(case.name) not in (case.section, None):
            raise InputError(
                f"{datalist_file}: has {case.name} for {listed[case.name]}, {dataset_dir} for {case.section} by now; "
                "delete the former, or give another --datalist_file"
            )
        used = listed.get(case.name) is not None
        if used and {"image": case.image, "label": case.label} not in datalist[listed[case.name]]:
            raise InputError(
                f"{datalist_file}: has another image or label of {case.name} than {dataset_dir} has by now; delete the "
                "former, or give another --datalist_file"
            )
    _warn_of_left_out(datalist)
    gone = listed.keys() - {case.name for case in cases}
    if gone:
        text = "%s has %d cases that %s lacks by now; delete it to leave them out"
        logger.warning(text, datalist_file, len(gone), dataset_dir)
    added = {case.name for case in cases} - listed.keys()
    if added:
        logger.warning("%s lacks %d newer cases; delete it to have them included", datalist_file, len(added))
    return datalist


def _warn_of_left_out(datalist: Mapping[str, Any]) -> None:
    left_out = [row for row in datalist["cases"] if row["section"] is None]
    if left_out:
        first = ": ".join([left_out[0]["name"], *left_out[0]["findings"][:1]])
        short = any(row["status"] == "dropped" for row in left_out)
        hint = ", in a new --output_dir --min_slices 1 keeps short ones" if short else ""
        logger.warning("left out %d of %d cases (%s)%s", len(left_out), len(datalist["cases"]), first, hint)


def get_cases(datalist: dict[str, Any], section: str) -> list[dict[str, str]]:
    """Return a section's items ``{"image": path, "label": path}``. Raises `InputError` if it has none."""
    if not datalist.get(section):
        source = datalist.get("dataset_dir", "the datalist")
        hint = "; --section validation measures those" if section == "test" and datalist.get("validation") else ""
        raise InputError(f"{source}: has no cases for {section}; give a datalist that has some{hint}")
    return datalist[section]


def predictions_root(cases: Sequence[Mapping[str, str]]) -> str:
    """Return the folder that MONAI's SaveImage takes to keep subfolders: only where images share a name, else ""."""
    return shared_folder([case["image"] for case in cases])


def make(
    dataset_dir: str,
    output_file: str,
    seed: int = 0,
    min_slices: int = PAPER_MIN_SLICES,
    skip_bad_cases: bool | str = False,
) -> None:
    """Check and split the cases of DATASET_DIR; write the datalist OUTPUT_FILE (.json) and a table (.md) beside it."""
    datalist = make_datalist(dataset_dir, output_file, seed, min_slices, is_true(skip_bad_cases))
    path = absolute(output_file)
    print(f"{_summarise(datalist['cases'])}; datalist: {path}; table: {path.with_suffix('.md')}")


def check_dataset(
    dataset_dir: str | os.PathLike, min_slices: int = PAPER_MIN_SLICES, workers: int = WORKERS
) -> dict[str, Any]:
    """Check the cases of ``dataset_dir`` and the list of them, and report all that is wrong.

    Args:
        dataset_dir: see `list_cases`.
        min_slices: a case with fewer is reported as dropped.
        workers: cases read at once; each takes about three times the size of its uncompressed files.

    Returns:
        "dataset_dir", "counts" (severity → number of findings), "findings" (rows of severity, case, file and reason,
        errors first; what is wrong with the list has no case) and "cases" (one row each).

    Raises:
        InputError: there is no such folder or file, or it is no datalist.
    """
    root = absolute(dataset_dir)
    cases, of_list = list_cases(root)
    check_whole("workers", workers, 1)
    reports = _check_cases(cases, min_slices, workers)
    findings: list[tuple[str | None, Finding]] = [(None, finding) for finding in of_list]
    findings += [(report.case.name, finding) for report in reports for finding in report.findings]
    rows = [
        {"severity": severity, "case": case, "file": finding.file, "reason": finding.reason}
        for severity in SEVERITIES
        for case, finding in findings
        if finding.severity == severity
    ]
    return {
        "dataset_dir": str(root),
        "counts": {severity: sum(row["severity"] == severity for row in rows) for severity in SEVERITIES},
        "findings": rows,
        "cases": [
            {**_describe_case(report, report.case.section), "image": report.case.image, "label": report.case.label}
            for report in reports
        ],
    }


def _format_report(report: dict[str, Any]) -> str:
    """Return what `check_dataset` found as Markdown: a summary, a table of findings, a table of cases."""
    root = report["dataset_dir"]
    found = ", ".join(f"{count} {severity}" for severity, count in report["counts"].items() if count)
    lines = ["# Check", "", f"{root}: {_summarise(report['cases'], by_section=False)}; findings: {found or 'none'}", ""]
    if report["findings"]:
        folder = root if os.path.isdir(root) else os.path.dirname(root)
        rows = [{**row, "file": os.path.relpath(row["file"], folder)} for row in report["findings"]]
        lines += [*_format_rows(rows), ""]
    if report["cases"]:
        left_out = ("findings", "image", "label")
        rows = [{key: row[key] for key in row if key not in left_out} for row in report["cases"]]
        lines += [*_format_rows(rows), ""]
    return "\n".join(lines)


def check(
    dataset_dir: str,
    output_file: str | None = None,
    min_slices: int = PAPER_MIN_SLICES,
    workers: int = WORKERS,
) -> None:
    """Check the cases of DATASET_DIR, WORKERS at once; print the findings, errors first, and the cases.

    OUTPUT_FILE (.json) gets them too, and a file of the same name the tables (.md). The exit status is 1 if there is an
    error, and 0 if there are warnings alone.
    """
    json_file = None if output_file is None else absolute(output_file)
    if json_file is not None and json_file.suffix != ".json":
        raise InputError(f"{json_file}: a report's name must end in .json; the tables go to a file of the same name")
    report = check_dataset(dataset_dir, min_slices, workers)
    tables = _format_report(report)
    print(tables)
    if json_file is not None:
        write_text(json_file, json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_text(json_file.with_suffix(".md"), tables)
    errors = [row for row in report["findings"] if row["severity"] == "error"]
    if errors:
        bad = sum(row["status"] == "bad" for row in report["cases"])
        counts = f"{len(errors)} error{'s' if errors[1:] else ''}, {bad} of {len(report['cases'])} cases"
        first = f"{errors[0]['file']}: {errors[0]['reason']}"
        raise InputError(f"{counts} cannot be used, first {first}; fix or remove the files")


def add(dataset_dir: str, image: str, label: str, series: str = "") -> None:
    """Add a scan IMAGE (DICOM folder or file) and its mask LABEL (0, 1 liver, 2 tumour) to the cases of DATASET_DIR.

    LABEL may be a DICOM SEG, or a .seg.nrrd of 3D Slicer, with segments named liver and tumor. Both are checked, and
    written as ``volume-N.nii.gz`` and ``segmentation-N.nii.gz`` with the next free number. SERIES chooses one of
    several in a folder.
    """
    from scripts.pairs import add_case  # takes seconds to import, and the other words never need it

    report = add_case(dataset_dir, image, label, series)
    measures = f"{report.slices} slices, liver {report.liver_ml:.1f} ml, of which tumour {report.tumor_ml:.1f} ml"
    print(f"{report.case.image} and {os.path.basename(report.case.label)}: {measures}", *report.findings, sep="\n")
    if report.slices < PAPER_MIN_SLICES:
        print(f"of fewer than {PAPER_MIN_SLICES} slices: trained on with --min_slices 1 alone")


def main() -> None:
    """Run the command line."""
    run_command({"make": make, "check": check, "add": add})


if __name__ == "__main__":
    main()
