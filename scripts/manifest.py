"""With what was a run made? Config, command line, versions, revision and data, in one JSON file beside its results."""

import datetime
import inspect
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch.utils.data import Dataset
from tqdm.contrib.concurrent import thread_map

from scripts.cases import absolute
from scripts.files import sha256, write_text

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 4  # files read at once
JSON_TYPES = bool | int | float | str | None


def find_parser() -> ConfigParser | None:
    """Return the MONAI parser that is building the caller from a config, or None if none is.

    MONAI gives a component its arguments, and no way to ask for the config that they are from. But the parser is up
    the call stack, whoever asked it: the command line, `monai.bundle.run`, MONAI Label, a federated client.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    return None


def merged_config(parser: ConfigParser) -> dict[str, Any]:
    """Return the config of all files and overrides as JSON can have it: a config file that makes the same run."""
    config = {key: value for key, value in parser.get().items() if key != parser.meta_key}
    return json.loads(json.dumps(config, default=str))


def evaluated_values(parser: ConfigParser) -> dict[str, Any]:
    """Return what the expressions at the top of the config have come to so far, as far as JSON can have it."""
    resolved = parser.ref_resolver.resolved_content
    values = {}
    for key, text in parser.get().items():
        if isinstance(text, str) and text.startswith(("$", "@")) and key in resolved:
            value = str(resolved[key]) if isinstance(resolved[key], torch.device) else resolved[key]
            if all(isinstance(part, JSON_TYPES) for part in (value if isinstance(value, list) else [value])):
                values[key] = value
    return values


def command_line() -> str | None:
    """Return the command as it was typed, if it is one of MONAI's bundles; other programs' may hold anything."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None or module.name != "monai.bundle.__main__":
        return None
    return shlex.join(["python", *sys.orig_argv[1:]])


def git_revision() -> str | None:
    """Return the commit of the bundle's own git checkout, with ``-dirty`` if files differ; None if it is none."""
    command = ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}"]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return None
    return done.stdout.strip()


def versions() -> dict[str, str | None]:
    """Return name → version of the bundle, Python and the packages that the bundle requires; None: not installed."""
    bundle = json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))
    found: dict[str, str | None] = {"bundle": bundle["version"], "python": platform.python_version()}
    found |= {"system": f"{platform.system()} {platform.machine()}", "cuda": torch.version.cuda}
    for package in ("torch", "monai", "numpy", *bundle["required_packages_version"]):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _files_of(item: Any) -> dict[str, list[Path]]:
    """Return key → files of a dataset's item such as ``{"image": path}``; of a folder (DICOM), those in it."""
    files = {}
    for key, value in item.items() if isinstance(item, Mapping) else ():
        if isinstance(value, str | os.PathLike):
            path = absolute(value)
            try:
                if path.exists():
                    files[key] = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
            except PermissionError:  # the reader of the data says it
                files[key] = []
    return files


def _describe_file(path: Path, known: Mapping[str, Any] | None, checksums: bool) -> dict[str, Any]:
    """Return size, time and sum of a file, None for what cannot be read; a known sum if it has not changed since."""
    facts: dict[str, Any] = {"bytes": None, "modified_ns": None, "sha256": None}
    try:
        status = path.stat()
        facts |= {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        unchanged = known and all(known.get(key) == facts[key] for key in ("bytes", "modified_ns"))
        if unchanged and known.get("sha256"):
            facts["sha256"] = known["sha256"]
        elif checksums:
            facts["sha256"] = sha256(path)
    except OSError as error:  # the reader of the data says more
        logger.warning("%s: has no checksum (%s)", path, error)
    return facts


def describe_data(
    datasets: Mapping[str, Iterable[Any]], known: Mapping[str, Any] | None = None, checksums: bool = True
) -> dict[str, Any]:
    """Return which files a run has, by paths relative to the folder that holds them all.

    Args:
        datasets: name → items such as ``{"image": path, "label": path}``.
        known: the ``files`` of an earlier call: sums of files with the same size and time are taken from it.
        checksums: read the files for their SHA-256 sums, some at once; without, only known sums are given.

    Returns:
        ``{"data": {name: [{key: [file, ...]}]}, "files": {file: {"bytes", "modified_ns", "sha256"}}}``.
    """
    found = {name: [_files_of(item) for item in items] for name, items in datasets.items()}
    paths = sorted({path for items in found.values() for item in items for files in item.values() for path in files})
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    names = {path: path.relative_to(root).as_posix() for path in paths}
    earlier = known or {}
    facts = thread_map(
        lambda path: _describe_file(path, earlier.get(names[path]), checksums), paths,
        max_workers=WORKERS, desc="checksums", unit="file", disable=None, leave=False,
    )  # fmt: skip
    data = {
        name: [{key: [names[path] for path in files] for key, files in item.items()} for item in items]
        for name, items in found.items()
    }
    return {"data": data, "files": dict(zip(names.values(), facts, strict=True))}


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Return an earlier manifest, empty if there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class RunManifest:
    """Writes, when an engine starts, with what the run is made: ``manifest.json``.

    Its keys: started (UTC), command (as typed), processes (that share the work), revision (git commit), versions,
    config (of all files and overrides), values (what its expressions came to), weights, data and files (see
    `describe_data`), and earlier: of a run that goes on, the manifests of its starts before, each without what is the
    same in that of the start after it. What is not known is null.

    Build it by a config: it looks for the parser that is doing so, see `find_parser`.

    Args:
        path: of the JSON file.
        datasets: name → dataset, whose ``data`` are listed.
        weights: a file that the run begins with, such as ``models/model.pt``.
        checksums: read all files for their SHA-256 sums; those of an earlier manifest at ``path`` are kept where size
            and time of the file are the same.
        resume: keep the earlier manifest's facts as ``earlier``.
        each_process: of several processes each writes a file of its own, not the first alone.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        datasets: Mapping[str, Dataset],
        weights: str | os.PathLike | None = None,
        checksums: bool = True,
        resume: bool = False,
        each_process: bool = False,
    ):
        self.path = Path(path)
        self.datasets = dict(datasets)
        self.weights = weights
        self.checksums = checksums
        self.resume = resume
        self.each_process = each_process
        self.parser = find_parser()

    def attach(self, engine: Engine) -> None:
        """Write when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file."""
        if idist.get_rank() > 0 and not self.each_process:
            return
        before = read_manifest(self.path)
        items = {name: getattr(dataset, "data", ()) for name, dataset in self.datasets.items()}
        if self.resume and any(before.get("data", {}).values()) and not any(items.values()):  # all was done before
            return
        weights = _describe_file(Path(self.weights), None, self.checksums) if self.weights else None
        manifest = {
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command_line(),
            "processes": idist.get_world_size(),
            "revision": git_revision(),
            "versions": versions(),
            "config": merged_config(self.parser) if self.parser else None,
            "values": evaluated_values(self.parser) if self.parser else None,
            "weights": weights and {"file": Path(self.weights).name} | weights,
        }
        manifest |= describe_data(items, before.get("files"), self.checksums)
        if self.resume and before:
            starts = before.pop("earlier", [])
            same = [key for key in manifest if key != "started" and before.get(key) == manifest[key]]
            manifest["earlier"] = [*starts, {key: value for key, value in before.items() if key not in same}]
        write_text(self.path, json.dumps(manifest, indent=2) + "\n")
