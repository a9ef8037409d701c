"""Preprocessed scans that are kept: in memory for this run, or on disk for later ones."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from scripts.errors import InputError
from scripts.files import read_checkpoint, written_whole


def hash_case(case: Mapping[str, Any]) -> bytes:
    """Return a hash of a case's files, as it changes when they do: their paths, sizes and times of change."""
    facts = []
    for key in ("image", "label"):
        status = os.stat(case[key])
        facts.append((os.path.abspath(case[key]), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest().encode()


class DiskDataset(PersistentDataset):
    """MONAI's ``PersistentDataset``, whose files are written whole, hold tensors alone, and are read as far as needed.

    What a file was made of is part of its name: the case's files (`hash_case`), and every transform up to the first
    random one with its settings. If either changes, the scan is preprocessed again. A damaged file is too.

    Args:
        data: ``{"image": path, "label": path}`` of each case.
        transform: deterministic transforms first, then random ones.
        cache_dir: folder of the files; about 5 bytes per voxel of a preprocessed scan. Old ones are never removed.

    Raises:
        InputError: if there can be no such folder.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, cache_dir: str | os.PathLike):
        try:
            super().__init__(data, transform, cache_dir, hash_func=hash_case, hash_transform=pickle_hashing)
        except (OSError, ValueError) as error:
            raise InputError(f"{cache_dir}: cannot be the folder of --cache_dir ({error}); give another") from error

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> dict[str, Any]:
        name = hashlib.sha256(self.hash_func(item_transformed) + self.transform_hash.encode()).hexdigest()
        file = Path(self.cache_dir) / f"{name}.pt"
        if file.is_file():
            try:
                return read_checkpoint(file, mmap=True)
            except InputError:
                pass  # damaged: it is made again
        case = convert_to_tensor(self._pre_transform(deepcopy(item_transformed)), track_meta=False)
        with written_whole(file) as temporary:
            torch.save(case, temporary)
        return case


def training_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    cache_dir: str | os.PathLike | None = None,
    cache_rate: float = 1.0,
    num_workers: int = 0,
) -> Dataset:
    """Return a dataset that preprocesses each case once: before the run into memory, or with ``cache_dir`` on disk.

    Args:
        data: ``{"image": path, "label": path}`` of each case.
        transform: deterministic transforms first, then random ones.
        cache_dir: see `DiskDataset`; None or empty for memory.
        cache_rate: how much of the data is kept in memory.
        num_workers: that preprocess at the same time, into memory.
    """
    if cache_dir:
        return DiskDataset(data, transform, cache_dir)
    return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers)
