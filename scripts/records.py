"""What became of each image of an inference: one small file each, so that processes and later runs can share a folder.

The tables of all images (``volumes.csv``, ``volumes.json``, ``failed.csv``) are made of these.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike

from scripts.errors import InputError
from scripts.files import TEMPORARY, sha256, write_table, write_text
from scripts.headers import output_name
from scripts.manifest import find_parser, merged_config
from scripts.settings import read_settings

logger = logging.getLogger(__name__)

FOLDER = "records"
MASK_ENDING = "_seg.nii.gz"  # of the name of a mask, as configs/inference.json writes it
# of a record, not in the table of volumes
HIDDEN = ("made_with", "source", "state", "file", "sum", "begun", "reason", "earlier")
SECONDS = 10  # between two writings of the tables
# what masks do not depend on, nor on where it is set
WITHOUT_EFFECT = (
    "bundle_root", "dataset_dir", "output_dir", "ckpt_path", "shard", "skip_done", "preview", "probabilities", "device",
    "checksums", "sw_batch_size", "handlers", "initialize", "finalize", "_desc_",
)  # fmt: skip


def state_of(image: PathLike) -> str:
    """Return a sum of sizes and times of a file, or of the files in a DICOM folder; empty if it may not be read."""
    path = Path(image)
    facts = []
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                facts.append((file.name, status.st_size, status.st_mtime_ns))
    except PermissionError:
        return ""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class Records:
    """The records of an inference, and its tables.

    Build it by a config: it looks for the parser that is doing so, see `find_parser`.

    Args:
        output_dir: of the inference; records are in its folder ``records``.
        images_root: folder relative to which outputs, and records, keep their subfolders.
        weights: of the network.
    """

    def __init__(self, output_dir: PathLike, images_root: PathLike, weights: PathLike):
        self.output_dir = Path(output_dir)
        self.images_root = Path(images_root)
        parser = find_parser()
        config = {k: v for k, v in merged_config(parser).items() if k not in WITHOUT_EFFECT} if parser else None
        sums = [sha256(weights) if os.path.isfile(weights) else None, read_settings(weights)]
        self.made_with = hashlib.sha256(json.dumps([config, sums], sort_keys=True).encode()).hexdigest()
        self.written = -SECONDS

    def path(self, image: PathLike) -> Path:
        """Return where the record of an image is."""
        name = os.path.relpath(os.path.normpath(image), self.images_root)
        return self.output_dir / FOLDER / os.path.dirname(name) / f"{output_name(name)}.json"

    def write(self, row: Mapping[str, Any]) -> None:
        """Write what became of ``row["image"]``: its ``mask`` and volumes, or the ``reason`` why it has none.

        With both, something else that was wanted of it failed; then what was written of its mask stays.
        """
        before = self._read(self.path(row["image"])) or {}
        before.pop("begun", None)
        if "mask" in row and "reason" in row:
            row = {**before, **row}
        elif "mask" not in row:  # a mask of earlier is still there
            row = {**row, "earlier": before.get("sum", before.get("earlier"))}
        image = row["image"]
        hidden = {"made_with": self.made_with, "source": self._place(image), "state": state_of(image)}
        if "mask" in row:
            hidden |= {"file": self._place(row["mask"]), "sum": sha256(row["mask"])}
        write_text(self.path(image), json.dumps({**row, **hidden}, indent=2) + "\n")

    def begin(self, image: PathLike) -> None:
        """Note that a mask is being written: what the image has from now on until `write` is nobody's work."""
        record = self._read(self.path(image)) or {"image": str(image)}
        record |= {"source": self._place(image), "begun": True}
        write_text(self.path(image), json.dumps(record, indent=2) + "\n")

    def check_replaced(self, image: PathLike) -> None:
        """Raise `InputError` if the image has a mask by now that was not made here, or has been changed since."""
        path = self.path(image)
        mask = (self.output_dir / path.relative_to(self.output_dir / FOLDER)).with_name(f"{path.stem}{MASK_ENDING}")
        record = self._read(path) or {}
        # records of version 0.15.0 and before have no sums; they were written after their masks
        is_old = "sum" not in record and "earlier" not in record and record
        if mask.is_symlink() or not mask.is_file() or "begun" in record:  # a link is replaced, not what it leads to
            return
        if is_old and mask.stat().st_mtime <= path.stat().st_mtime:
            return
        expected = record.get("sum", record.get("earlier"))
        if not is_old and expected is None:
            raise InputError(
                f"{mask}: is there, but no record says that it was made by this bundle, and it would be replaced; move "
                "it away, or give another --output_dir"
            )
        if is_old or sha256(mask) != expected:
            remedy = "move it away, or give another --output_dir"
            if self.is_done(image):
                remedy += ", or --skip_done true"
            elif "mask" in record and "reason" not in record and record["made_with"] != self.made_with:
                remedy += " (--skip_done leaves it out with the settings and weights of before alone)"
            raise InputError(f"{mask}: has been changed since it was made, and would be replaced; {remedy}")

    def warn_of_corrected(self, images: Sequence[PathLike]) -> None:
        """Say which masks of images that are done have been changed: what else there is of them is of before."""
        for image in images:
            record = self._read(self.path(image)) or {}
            mask = self.output_dir / record.get("file", "")
            if mask.is_file() and sha256(mask) != record.get("sum", sha256(mask)):
                logger.warning("%s: has been changed since; its volumes, picture and DICOM SEG are of before", mask)

    def _place(self, path: PathLike) -> str:
        """Return where a file is, from the folder of outputs on if it can be said so: other processes know that."""
        folder, name = os.path.split(os.path.abspath(path))
        place = os.path.join(os.path.realpath(folder), name)  # the name may be that of a link to nowhere
        try:
            return os.path.relpath(place, os.path.realpath(self.output_dir))
        except ValueError:  # on another drive
            return place

    def is_done(self, image: PathLike) -> bool:
        """Return whether the image, as it is now, has a mask of this config and these weights, and nothing failed.

        If it has changed since its mask was made, the log says so.

        Raises:
            InputError: if its mask would replace that of another image.
        """
        record = self._read(self.path(image))
        if record is None or "mask" not in record:
            return False
        source = self.output_dir / record.get("source", self._place(image))
        state = state_of(image)
        is_unchanged = record.get("state", state) == state
        # one that is gone from where it was may have been moved
        is_of_image = os.path.exists(image) and os.path.samefile(source, image) if source.exists() else is_unchanged
        if not is_of_image:
            raise InputError(
                f"{image}: its mask would replace that of {record['image']}, {self.output_dir / record['file']}; give "
                "another --output_dir"
            )
        if not is_unchanged:
            logger.warning("%s: has changed since its mask was made, which is replaced", image)
        return is_unchanged and not {"reason", "begun"} & record.keys() and record["made_with"] == self.made_with

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return a record, None if it cannot be read, or if the mask, or the image that has none, is gone."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            is_there = os.path.lexists(self.output_dir / record["file" if "mask" in record else "source"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if is_there else None

    def read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the rows of all images that have a mask, and of those that are there and of which something failed.

        Both are sorted by path; the latter have ``image`` and ``reason`` alone. Masks are where they are now, though
        the folder of outputs may have been moved.
        """
        paths = [path for path in (self.output_dir / FOLDER).rglob("*.json") if not path.name.startswith(TEMPORARY)]
        found = [record for path in paths if (record := self._read(path))]
        found.sort(key=lambda record: record["image"])
        for record in found:
            if "mask" in record:
                record["mask"] = os.path.abspath(self.output_dir / record["file"])
        rows = [
            {key: value for key, value in record.items() if key not in HIDDEN} for record in found if "mask" in record
        ]
        failed = [{key: record[key] for key in ("image", "reason")} for record in found if "reason" in record]
        return rows, failed

    def write_tables(self, at_once: bool = True) -> None:
        """Write the tables of all images, those of other processes and earlier runs too.

        Args:
            at_once: also if they were written a moment ago, and until no other process has added anything meanwhile.
        """
        if not at_once and time.monotonic() < self.written + SECONDS:
            return
        rows = None
        while rows != (rows := self.read()):
            done, failed = rows
            if done:
                columns = dict.fromkeys(key for row in done for key in row)
                table = [{key: row.get(key, "") for key in columns} for row in done]
                write_table(self.output_dir / "volumes.csv", table)
                write_text(self.output_dir / "volumes.json", json.dumps(done, indent=2) + "\n")
            else:
                for name in ("volumes.csv", "volumes.json"):
                    (self.output_dir / name).unlink(missing_ok=True)
            if failed:
                write_table(self.output_dir / "failed.csv", failed)
            else:
                (self.output_dir / "failed.csv").unlink(missing_ok=True)
            if not at_once:
                break
        self.written = time.monotonic()


def own_images(
    images: Sequence[Mapping[str, str]], records: Records, shard: str = "0/1", skip_done: bool = False
) -> list[Mapping[str, str]]:
    """Return the part of ``images`` that this process has to do.

    Args:
        images: of all processes, in the same order in each.
        records: what is done already.
        shard: ``"0/4"``, ``"1/4"``, ... for the first, the second, ... of four processes.
        skip_done: leave out images that have a mask which was made with the same config and weights.

    Raises:
        InputError: if ``shard`` is nothing like that, or a mask would replace that of another image, or somebody's.
    """
    index, count = parse_shard(shard)
    own = list(images)[index::count]
    done = [records.is_done(item["image"]) for item in own]
    left = [item for item, is_done in zip(own, done, strict=True) if not (skip_done and is_done)]
    for item in left:
        records.check_replaced(item["image"])
    if skip_done:
        records.warn_of_corrected([item["image"] for item, is_done in zip(own, done, strict=True) if is_done])
    if len(own) < len(images):
        logger.info("%d of %d images are this process's", len(own), len(images))
    if len(left) < len(own):
        logger.info("%d of %d images are done, their masks are in %s", sum(done), len(own), records.output_dir)
    return left


def parse_shard(shard: str) -> tuple[int, int]:
    """Return the number of this process and the number of all. Raises `InputError` unless it is like ``"0/4"``."""
    index, _, count = str(shard).partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"shard: {shard!r} is no part of all; write 0/4, 1/4, 2/4 or 3/4 for the parts of four")
    return int(index), int(count)


def manifest_name(shard: str) -> str:
    """Return the name of this process's manifest."""
    index, count = parse_shard(shard)
    return "inference_manifest.json" if count == 1 else f"inference_manifest-{index}-of-{count}.json"
