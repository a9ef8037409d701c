"""How do measurements become tables?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.benchmark.epoch import CASES, cost_epoch
from scripts.benchmark.network import compare_probabilities
from scripts.benchmark.networks import REFERENCE
from scripts.benchmark.volume import STAGES

NOT_MEASURED = "not measured"
Record = Mapping[str, Any]
Row = dict[str, Any]


def is_reference(record: Record) -> bool:
    """Return whether others are compared to this: the released network, plain, or the plain formula of attention."""
    return record["network"] == REFERENCE or record["network"] == "plain formula"


def summarise(records: Sequence[Record]) -> list[Row]:
    """Return a row per part, case, network and setting: medians over calls and rounds, the most of the memory.

    ``times_faster`` and ``memory_share`` are to the reference of the same case; NaN where there is none.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in ("part", "case", "network", "setting")), []).append(record)
    rows = []
    for (part, case, network, setting), of_group in groups.items():
        results = [record["result"] for record in of_group if "result" in record]
        row: Row = {"part": part, "case": case, "network": network, "setting": setting}
        seconds = [second for result in results for second in result.get("seconds", [])]
        row["seconds"] = statistics.median(seconds) if seconds else math.nan
        row["calls"] = len(seconds)
        for name in ("host_peak_mb", "growth_mb", "device_peak_mb"):
            row[name] = max((result[name] for result in results if name in result), default=math.nan)
        row["result"] = results[-1] if results else {}
        row["failure"] = next((record["failure"] for record in of_group if "failure" in record), "")
        row["is_reference"] = is_reference(of_group[0])
        rows.append(row)
    for row in rows:
        references = [r for r in rows if r["is_reference"] and (r["part"], r["case"]) == (row["part"], row["case"])]
        row["times_faster"] = references[0]["seconds"] / row["seconds"] if references else math.nan
        row["memory_share"] = row["host_peak_mb"] / references[0]["host_peak_mb"] if references else math.nan
    return rows


def add_differences(rows: Sequence[Row], records: Sequence[Record]) -> None:
    """Add to the rows of forward passes how far their result is from the reference's, from the files they left."""
    files = {
        tuple(record[name] for name in ("case", "network", "setting")): Path(record["output"])
        for record in records
        if record.get("output")
    }
    references = {case: file for (case, network, _), file in files.items() if network == REFERENCE}
    for row in rows:
        file = files.get((row["case"], row["network"], row["setting"]))
        reference = references.get(row["case"])
        if file and reference and file != reference and file.is_file() and reference.is_file():
            ours, theirs = (torch.from_numpy(np.load(path)) for path in (file, reference))
            row["result"] = row["result"] | compare_probabilities(ours, theirs)


def number(value: float, digits: int = 0) -> str:
    """Return a number with its thousands apart; what is NaN was not measured."""
    return NOT_MEASURED if math.isnan(value) else f"{value:,.{digits}f}"


def seconds(value: float) -> str:
    """Return seconds with as many digits as they deserve."""
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4)


def markdown(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [heading, ["---"] * len(heading), *lines]) + "\n"


def common_cells(row: Row) -> dict[str, str]:
    """Return what every table has of a row."""
    return {
        "seconds": row["failure"] or seconds(row["seconds"]),
        "times faster": "" if math.isnan(row["times_faster"]) else f"{row['times_faster']:.2f}",
        "peak MB": "" if row["failure"] else number(row["host_peak_mb"]),
        "of the reference's": "" if math.isnan(row["memory_share"]) else f"{row['memory_share']:.2f}",
        "growth MB": "" if row["failure"] else number(row["growth_mb"]),
        "GPU peak MB": number(row["device_peak_mb"]),
    }


def network_table(rows: Sequence[Row]) -> str:
    """Return the table of forward pass and training step."""
    lines = []
    for row in rows:
        cells = {"what": row["case"], "network": row["network"], "setting": row["setting"]} | common_cells(row)
        difference, dice = (row["result"].get(name, math.nan) for name in ("max_difference", "dice"))
        cells["largest difference of probability"] = "" if math.isnan(difference) else f"{difference:.1e}"
        cells["Dice of masks"] = "" if math.isnan(dice) else f"{dice:.5f}"
        lines.append(cells)
    return markdown(list(lines[0]), [list(line.values()) for line in lines])


def attention_table(rows: Sequence[Row]) -> str:
    """Return the table of attention by number of positions."""
    lines = [
        {"what": row["case"], "attention": f"{row['network']}, {row['setting']}"} | common_cells(row) for row in rows
    ]
    return markdown(list(lines[0]), [list(line.values()) for line in lines])


def volume_table(rows: Sequence[Row]) -> str:
    """Return the table of whole CTs, with the seconds of every stage."""
    lines = []
    for row in rows:
        result = row["result"]
        cells = {"what": row["case"], "network": row["network"], "pipeline": row["setting"]} | common_cells(row)
        cells |= {f"{stage}, s": seconds(result["stages"][stage]) if result else "" for stage in STAGES}
        cells["number of windows"] = cells["Dice"] = ""
        if result:
            left_out = result["windows"] != result["windows_computed"]
            of_windows = f"{result['windows_computed']} of {result['windows']} measured, the rest calculated"
            cells["number of windows"] = of_windows if left_out else str(result["windows"])
            cells["Dice"] = f"{result['dice']:.4f}"
        lines.append(cells)
    return markdown(list(lines[0]), [list(line.values()) for line in lines])


def epoch_table(rows: Sequence[Row]) -> str:
    """Return the table of what an epoch of the paper's size costs."""
    lines = []
    for row in rows:
        for name, cost in cost_epoch(row["result"]["seconds_per_case"]).items() if row["result"] else ():
            count = CASES["training"] if "step" in name else CASES["validation"]
            count = sum(CASES.values()) if "preprocessing" in name else count
            lines.append([name, seconds(cost / count), str(count), f"{cost / 3600:.2f}"])
        if row["failure"]:
            lines.append([row["failure"], "", "", ""])
    return markdown(["what", "seconds of one, measured", "of an epoch", "hours of an epoch, calculated"], lines)


TABLES = {
    "network": ("Forward pass and training step", network_table),
    "attention": ("Position attention", attention_table),
    "volume": ("A whole CT, from its file to that of the mask", volume_table),
    "epoch": ("An epoch of the paper's size (88 steps, 22 validations)", epoch_table),
}


def format_report(machine: Mapping[str, Any], rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return the whole report as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = f"{machine['memory_gb']} GB" if machine["memory_gb"] else "memory unknown"
    gpu = machine["gpu"] or f"no GPU (on a GPU: {NOT_MEASURED})"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {memory}, "
        f"{machine['instructions']}, half precision: {machine['half_precision']}; {gpu}; "
        f"{machine['system']}; {versions}.",
        "",
        *notes,
    ]
    for part, (title, table) in TABLES.items():
        of_part = [row for row in rows if row["part"] == part]
        if of_part:
            lines += ["", f"## {title}", "", table(of_part).rstrip("\n")]
    return "\n".join(lines) + "\n"


def flat_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows for a CSV: numbers of every kind side by side, empty where they do not apply."""
    flat = []
    for row in rows:
        result = row["result"]
        line = {key: value for key, value in row.items() if key not in ("result", "is_reference")}
        line |= {name: result.get(name, math.nan) for name in ("max_difference", "dice", "windows", "windows_computed")}
        line |= {f"{stage} s".replace(" ", "_"): result.get("stages", {}).get(stage, math.nan) for stage in STAGES}
        line |= {
            f"{name}_s_per_case": result.get("seconds_per_case", {}).get(name, math.nan)
            for name in ("preprocessing", "augmentation", "step", "validation", "metrics")
        }
        flat.append(
            {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        )
    return flat
