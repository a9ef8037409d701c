"""Makes the measurements one after the other and writes the report after each."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.benchmark import plan, tables
from scripts.benchmark.isolation import MeasurementError, run_isolated
from scripts.benchmark.machine import describe_machine, free_memory_mb
from scripts.benchmark.network import export_network, fit_weights
from scripts.benchmark.networks import OURS, make_network
from scripts.benchmark.plan import FULL, PARTS, QUICK, Measurement, Sizes
from scripts.benchmark.scans import make_scan
from scripts.errors import InputError
from scripts.files import write_table, write_text
from scripts.handlers import existing_file
from scripts.knobs import check_whole

PEER_WINDOWS = 5


def choose_parts(only: str | Sequence[str]) -> list[str]:
    """Return the parts to measure; all if none is given.

    Raises:
        InputError: for a part that there is not.
    """
    names = [name.strip() for name in (only.split(",") if isinstance(only, str) else only) if name.strip()]
    for name in names:
        if name not in PARTS:
            raise InputError(f"--only: no part {name!r}; there are {', '.join(PARTS)}")
    return [part for part in PARTS if not names or part in names]


def make_plan(
    sizes: Sizes, parts: Sequence[str], folder: Path, device: str, weights: str, repeats: int, peer_repeats: int,
    windows: int | None,
) -> list[Measurement]:  # fmt: skip
    """Return all measurements of the parts."""
    planned = {
        "network": lambda: plan.plan_network(sizes, folder, device, weights, repeats, peer_repeats),
        "attention": lambda: plan.plan_attention(sizes, device),
        "volume": lambda: plan.plan_volume(sizes, folder, device, windows),
        "epoch": lambda: plan.plan_epoch(sizes, folder, device, windows),
    }
    return [measurement for part in parts for measurement in planned[part]()]


def needed_mb(measurement: Measurement) -> float:
    """Return the memory without which a measurement is not tried: of the plain attention's two N × N matrices."""
    if measurement.network != "plain formula":
        return 0.0
    height, width, depth = measurement.arguments["grid"]
    return 2 * 4 * (height * width * depth) ** 2 / 1e6


def measure(measurement: Measurement) -> dict[str, Any]:
    """Return the record of a measurement: its names, and its result or why there is none."""
    names = {name: getattr(measurement, name) for name in ("part", "case", "network", "setting", "round")}
    record = names | {"key": measurement.key, "output": measurement.arguments.get("output", "")}
    record["arguments"] = json.loads(json.dumps(measurement.arguments))
    on_host = measurement.arguments["device"] == "cpu"
    if on_host and needed_mb(measurement) > 0.9 * free_memory_mb():
        return record | {"failure": f"does not fit: needs {needed_mb(measurement) / 1e3:.0f} GB"}
    try:
        return record | {"result": run_isolated(measurement.function, **measurement.arguments)}
    except (MeasurementError, InputError) as error:
        return record | {"failure": f"failed: {' '.join(str(error).split())[:200]}"}


def read_records(path: Path, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of an earlier run on this ``machine`` that have a result; none if there is no such run.

    Raises:
        InputError: if the file is something else, or of another machine or other versions.
    """
    if not path.is_file():
        return []
    advice = "give another --output_dir, or --fresh"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        records = [record for record in content["records"] if "result" in record]
        others = {name: value for name, value in content["machine"].items() if machine.get(name) != value}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not of a benchmark; {advice}") from error
    others.pop("memory_gb", None)  # a system may keep a little more or less of it for itself
    for name, value in others.items():
        raise InputError(f"{path}: was measured with {name} {value}, here it is {machine.get(name)}; {advice}")
    return records


def write_report(folder: Path, machine: dict[str, Any], command: str, records: list[dict], notes: list[str]) -> str:
    """Write ``benchmark.json`` (all of it), ``.csv`` and ``.md``; return the Markdown."""
    rows = tables.summarise(records)
    tables.add_differences(rows, records)
    markdown = tables.format_report(machine, rows, [*notes, f"Command: `{command}`"])
    content = {"machine": machine, "command": command, "notes": notes, "records": records}
    for name, text in (("benchmark.json", json.dumps(content, indent=1) + "\n"), ("benchmark.md", markdown)):
        write_text(folder / name, text)
    write_table(folder / "benchmark.csv", tables.flat_rows(rows))
    return markdown


def run_benchmark(
    output_dir: str = "runs/benchmark",
    only: str | Sequence[str] = (),
    repeats: int = 2,
    peer_repeats: int = 1,
    windows: int = PEER_WINDOWS,
    ckpt_path: str = "",
    device: str = "",
    quick: bool = False,
    fresh: bool = False,
    sizes: Sizes | None = None,
) -> bool:
    """Measure what is not measured yet, print the tables, and return whether every measurement succeeded.

    Args:
        output_dir: where scans, masks and the report are.
        only: parts of `PARTS`, separated by commas; all by default.
        repeats: rounds in which the reference and MPU-Net are measured.
        peer_repeats: rounds in which the other networks are.
        windows: of a whole CT that other networks compute, the others' seconds being calculated; 0: all.
        ckpt_path: weights of a full-size MPU-Net; without, it is trained for a minute.
        device: to measure on; by default the GPU where there is one.
        quick: small images: minutes, and figures that say nothing.
        fresh: measure again what is there.
        sizes: how large everything is.
    """
    check_whole("repeats", repeats, 1)
    check_whole("peer_repeats", peer_repeats, 0)
    check_whole("windows", windows, 0)
    folder, parts, device = Path(output_dir).absolute(), choose_parts(only), device or plan.default_device()
    sizes = sizes or (QUICK if quick else FULL)
    command = "python -m scripts.benchmark " + " ".join(sys.argv[1:])
    weights = existing_file(ckpt_path, "give the weights of a full-size MPU-Net") if ckpt_path else ""
    if weights:
        make_network(OURS, weights)
    machine = describe_machine()
    records = [] if fresh else read_records(folder / "benchmark.json", machine)
    notes = []
    if "network" in parts:
        weights = weights or str(folder / f"weights-{plan.times(sizes.forward[-1]).replace(' × ', 'x')}.pt")
        notes.append(
            f"Weights of MPU-Net in forward passes: {Path(weights).name}"
            + ("." if ckpt_path else ", of a minute's training on the scan that is measured; of the others: random.")
        )
    notes.append(
        "Scans are generated, the liver brightened; in whole CTs every network is computed, and a threshold "
        "answers in its place, so that all find the same liver."
    )
    measurements = make_plan(sizes, parts, folder, device, weights, repeats, peer_repeats, windows or None)
    done = {record["key"]: record for record in records}
    waiting = [
        m for m in measurements
        if m.key not in done or done[m.key]["arguments"] != json.loads(json.dumps(m.arguments))
    ]  # fmt: skip
    again = {measurement.key for measurement in waiting}
    known = {measurement.key for measurement in make_plan(sizes, PARTS, folder, device, weights, 1, 1, None)}
    records = [record for record in records if record["key"] in known - again]  # others are of another plan
    if waiting:
        for size, spacing in tqdm(plan.needed_scans(sizes, parts), desc="scans", unit="scan", disable=None):
            run_isolated(make_scan, folder=folder / "scans", size=size, spacing=spacing)
        if "network" in parts and not Path(weights).is_file():
            arguments = {"path": weights, "size": sizes.forward[-1], "folder": str(folder / "scans")}
            arguments["steps"] = sizes.fit_steps
            dice = run_isolated(fit_weights, **arguments)
            print(f"trained {weights}: Dice {dice:.3f}", file=sys.stderr)
        for onnx, size in {
            m.arguments["onnx"]: m.arguments["size"] for m in waiting if m.arguments.get("onnx")
        }.items():
            run_isolated(export_network, path=onnx, weights=weights, size=size)
    markdown = ""
    with tqdm(total=len(measurements), initial=len(measurements) - len(waiting), desc="benchmark", disable=None) as bar:
        for measurement in waiting:
            bar.set_postfix_str(measurement.key)
            records.append(measure(measurement))
            if "failure" in records[-1]:
                bar.write(f"{measurement.key}: {records[-1]['failure']}", file=sys.stderr)
            markdown = write_report(folder, machine, command, records, notes)
            bar.update()
    print(markdown or write_report(folder, machine, command, records, notes))
    return not any(record.get("failure", "").startswith("failed") for record in records)
