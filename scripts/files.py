"""How files are written, completely or not at all, and how checkpoints are read, without executing what is in them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scripts.errors import InputError


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffixes of ``path`` (writers choose the format by them). Missing folders are made.
    After an error the temporary file is removed and ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike) -> Any:
    """Return what a PyTorch file holds: tensors, numbers, strings and containers of them, on the CPU.

    Raises:
        InputError: if the file is missing or damaged, or holds anything else, which is not loaded
            (``weights_only=True``), since that could execute code.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on a damaged file
        raise InputError(
            f"{path}: cannot be read as a PyTorch file of tensors alone: it is damaged, or holds more than tensors, "
            "which is not loaded since it could execute code; get it again, or save its state dict alone"
        ) from error
