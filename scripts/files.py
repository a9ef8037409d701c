"""How files are written, completely or not at all, and how weights are read, without executing what is in them."""

import csv
import errno
import glob
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
BLOCK_BYTES = 2**20
TEMPORARY = ".part-"  # what the name of a file that is being written begins with
DIGEST_CHARACTERS, SUFFIX_CHARACTERS = 16, 32
SPARE_BYTES = 1_000_000  # with less left on the disk, a writer's error is taken for that of a full disk


def _mark(path: Path) -> str:
    """Return what the names of this machine's temporary files of ``path`` end in; others may share the folder.

    It is short, whatever the name of the file and of the machine, and has the file's suffixes.
    """
    digest = hashlib.sha256(os.fsencode(f"{socket.gethostname()}/{path.name}")).hexdigest()[:DIGEST_CHARACTERS]
    return f"-{digest}{''.join(path.suffixes[-2:])[-SUFFIX_CHARACTERS:]}"


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` whose process was one of this machine, and is gone."""
    mark = _mark(path)
    for leftover in path.parent.glob(f"{TEMPORARY}*{glob.escape(mark)}"):
        process = leftover.name.removeprefix(TEMPORARY).removesuffix(mark)
        if process.isdigit() and not _is_running(int(process)):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere the signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_writable(path: str | os.PathLike) -> Path:
    """Return the temporary path of `written_whole`, with nothing there. Missing folders are made.

    Raises:
        InputError: if nothing can be written there.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}{_mark(path)}")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give the name of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.touch()
        temporary.unlink()  # a block that writes nothing is a mistake, which is raised
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise InputError(f"{path}: cannot be written ({reason}); give another place") from error
    return temporary


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffixes of ``path`` (writers choose the format by them). Missing folders are made.
    After an error the temporary file is removed and ``path`` is as it was; what a killed process of this machine left
    is removed too.

    Raises:
        InputError: if nothing can be written there, or the disk is full.
    """
    path = Path(path)
    temporary = check_writable(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # on the disk before it has the name, even if the power fails
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
        if getattr(error, "errno", None) in FULL or shutil.disk_usage(path.parent).free < SPARE_BYTES:
            raise InputError(
                f"{path}: cannot be written, the disk is full; free some space (what was there is unchanged)"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8; bytes of file names that are none as ``\\udcXX``."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_table(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows`` as CSV headed by the keys of the first; other numbers than integers have 6 significant digits.

    Bytes of file names that are no UTF-8 are written as ``\\udcXX``.
    """
    with (
        written_whole(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def read_checkpoint(path: str | os.PathLike, mmap: bool = False) -> Any:
    """Return what a PyTorch file holds: tensors, numbers, strings and containers of them, on the CPU.

    With ``mmap``, of a tensor only what is used is read.

    Raises:
        InputError: if the file is missing or damaged, or holds anything else, which is not loaded
            (``weights_only=True``), since that could execute code.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # the unpickler raises nearly anything on a damaged file
        raise InputError(
            f"{path}: cannot be read as a PyTorch file of tensors alone: it is damaged, or holds more than tensors, "
            "which is not loaded since it could execute code; get it again, or save its state dict alone"
        ) from error


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 sum of a file, as ``sha256sum`` writes it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sum_file(path: str | os.PathLike) -> Path:
    """Return where the sum of a file of weights is: beside it, such as ``model.pt.sha256``."""
    return Path(f"{path}.sha256")


def write_weights(weights: Mapping[str, Tensor], path: str | os.PathLike) -> str:
    """Write a state dict to ``path`` and its sum to the file beside it (``sha256sum --check`` reads it); return it."""
    with written_whole(path) as temporary:
        with open(temporary, "wb") as file:  # of a path the name would be in the file, so the sum would differ
            torch.save(weights, file)
        digest = sha256(temporary)
        sum_file(path).unlink(missing_ok=True)  # killed from here on, the weights, old or new, have no sum
    write_text(sum_file(path), f"{digest}  {Path(path).name}\n")
    return digest


def read_weights(path: str | os.PathLike) -> Any:
    """Return what a file of weights holds, see `read_checkpoint`, once its sum is right, if there is one beside it.

    Raises:
        InputError: as `read_checkpoint`, or if the sum is that of another file.
    """
    expected = sum_file(path)
    if expected.is_file() and Path(path).is_file():
        words = expected.read_text(encoding="utf-8", errors="replace").split()
        if not words or words[0].lower() != sha256(path):
            raise InputError(
                f"{path}: is not the file of which {expected} has the SHA-256 sum; get both again, or delete the sum "
                "if you put other weights there"
            )
    return read_checkpoint(path)
