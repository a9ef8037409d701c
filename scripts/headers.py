"""Does a file hold what its header promises? Asked before its voxels take memory, and where the readers do not ask."""

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

NIFTI_SUFFIXES = (".nii", ".nii.gz")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *METAIMAGE_SUFFIXES)

MAX_GZIP_RATIO = 1040  # deflate cannot do better than 1032 : 1
MAX_TEXT_RATIO = 4  # of 8 bytes, written as one digit and what parts it from the next
CHUNK_BYTES = 2**24
MAX_HEADER_LINES = 1000
ZLIB_OR_GZIP = 47  # the window size that makes zlib take both


def find_voxel_ml(affine: ArrayLike) -> float:
    """Return the volume of a voxel, of a grid ``(4, 4)`` in mm: of a tilted gantry less than that of its edges."""
    return abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000


def output_name(path: str | os.PathLike) -> str:
    """Return the name of an image (a file or a DICOM folder) without folders and suffix, as in its outputs' names."""
    name = os.path.basename(os.path.normpath(path))
    suffix = next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def explain_unreadable(error: Exception) -> str:
    """Return why reading a file failed, and what to do, in words that follow its name."""
    if isinstance(error, PermissionError):
        return "must not be read by this user; change its permissions"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file; give the file"
    reason = re.sub(r"^.*ITK ERROR: \w+\(0x[0-9a-f]+\): ", "", " ".join(str(error).split()))
    return f"cannot be read ({type(error).__name__}: {reason}); download or copy it again"


def check_size(nifti: nib.Nifti1Image) -> None:
    """Raise `ValueError` if a file is too small for the voxels that its header promises, before memory is taken."""
    file = nifti.get_filename()
    promised = nifti.dataobj.offset + math.prod(map(int, nifti.shape)) * nifti.get_data_dtype().itemsize
    _check_promise(promised, os.path.getsize(file) * (MAX_GZIP_RATIO if file.lower().endswith(".gz") else 1))


def _check_promise(promised: int, possible: int) -> None:
    if promised > possible:
        raise ValueError(f"Expected {promised} bytes, the file has no more than {possible}")


def check_gzip(file: str | os.PathLike) -> None:
    """Read a gzip file to its end: nibabel stops at the last voxel, before the checksum of the whole.

    Raises:
        OSError, EOFError, zlib.error: if the file is damaged.
    """
    with gzip.open(file) as stream:
        while stream.read(CHUNK_BYTES):
            pass


class Voxels(NamedTuple):
    """Where a MetaImage or NRRD file keeps its voxels, and as what: compressed, or as text, or neither."""

    file: Path
    offset: int
    compressed: bool
    text: bool


def _read_fields(stream: BinaryIO) -> Iterable[tuple[str, str]]:
    """Yield the fields of a MetaImage or NRRD header as lower-case name without spaces, and value."""
    for _ in range(MAX_HEADER_LINES):
        line = stream.readline(CHUNK_BYTES).decode("latin-1").strip()
        if not line:  # the end of an NRRD header
            return
        name, _, value = re.split(r"(=|:=?)", line, maxsplit=1) if re.search("[=:]", line) else (line, "", "")
        yield name.lower().replace(" ", ""), value.strip()
        if name.strip() == "ElementDataFile":  # the end of a MetaImage header
            return


def find_voxels(file: str | os.PathLike) -> Voxels:
    """Return where the MetaImage or NRRD ``file`` keeps its voxels.

    Raises:
        ValueError: if they are in several files.
    """
    with open(file, "rb") as stream:
        fields = dict(_read_fields(stream))
        offset = stream.tell()
    name = next((fields[key] for key in ("elementdatafile", "datafile") if key in fields), "LOCAL")
    compressed = fields.get("compresseddata", "").lower() == "true" or fields.get("encoding") in ("gzip", "gz")
    text = fields.get("encoding") in ("ascii", "text", "txt") or fields.get("binarydata", "").lower() == "false"
    if name == "LOCAL":
        return Voxels(Path(file), offset, compressed, text)
    if name.startswith("LIST") or "%" in name:
        raise ValueError("its voxels are in several files")
    return Voxels(Path(file).parent / name, 0, compressed, text)


def check_voxels(file: str | os.PathLike, promised: int) -> None:
    """Raise unless the MetaImage or NRRD ``file`` holds the ``promised`` bytes of voxels, uncompressed.

    ITK takes the memory before it looks, and takes a MetaImage whose compressed voxels are damaged or too few for a
    sound one.

    Raises:
        ValueError: if there are fewer, or, compressed, not exactly as many, or damaged ones.
    """
    voxels = find_voxels(file)
    ratio = MAX_GZIP_RATIO if voxels.compressed else MAX_TEXT_RATIO if voxels.text else 1
    _check_promise(promised, (os.path.getsize(voxels.file) - voxels.offset) * ratio)
    if not voxels.compressed:
        return
    decompressor, count = zlib.decompressobj(ZLIB_OR_GZIP), 0
    with open(voxels.file, "rb") as stream:
        stream.seek(voxels.offset)
        while not decompressor.eof and (chunk := stream.read(CHUNK_BYTES)):
            while chunk and not decompressor.eof:
                count += len(decompressor.decompress(chunk, CHUNK_BYTES))
                chunk = decompressor.unconsumed_tail
    if count != promised or not decompressor.eof:
        raise ValueError(f"Expected {promised} bytes, the file has {count}")
