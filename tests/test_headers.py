"""A file that holds less than its header promises is refused, whatever its reader thinks of it."""

import gzip
import tracemalloc
import zlib

import itk
import numpy as np
import pytest

from scripts.headers import explain_unreadable, find_voxels
from scripts.scans import check_file

SHAPE = (12, 10, 6)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
SUFFIXES = ["mha", "mhd", "nrrd", "nhdr"]


def write(folder, suffix, compression):
    file = folder / f"ct.{suffix}"
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(VOXELS.T)), str(file), compression=compression)
    return file


def say_shape(file, *shape):
    content = file.read_bytes()
    assert content.count(b"12 10 6\n") == 1
    file.write_bytes(content.replace(b"12 10 6\n", b"%d %d %d\n" % shape))


@pytest.mark.parametrize("compression", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sound_file_passes_and_its_voxels_are_found(tmp_path, suffix, compression):
    file = write(tmp_path, suffix, compression)
    check_file(str(file))
    voxels = find_voxels(file)
    assert voxels.compressed == compression
    stored = voxels.file.read_bytes()[voxels.offset :]
    unpack = gzip.decompress if suffix in ("nrrd", "nhdr") else zlib.decompress
    assert (unpack(stored) if compression else stored) == VOXELS.tobytes(order="F")


@pytest.mark.parametrize("compression", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_header_that_promises_gigabytes_takes_no_memory(tmp_path, suffix, compression):
    file = write(tmp_path, suffix, compression)
    say_shape(file, 2000, 2000, 2000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="Expected 16000000000 bytes, the file has no more than"):
        check_file(str(file))
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("slices", [5, 7])
def test_compressed_voxels_that_are_too_few_or_too_many_are_refused(tmp_path, suffix, slices):
    file = write(tmp_path, suffix, True)
    say_shape(file, 12, 10, slices)
    with pytest.raises(ValueError, match=f"Expected {12 * 10 * slices * 2} bytes, the file has 1440"):
        check_file(str(file))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_compressed_voxels_are_refused(tmp_path, suffix):
    voxels = find_voxels(write(tmp_path, suffix, True))
    content = bytearray(voxels.file.read_bytes())
    content[-6] ^= 0x55  # in the checksum of gzip, or in the voxels before that of zlib
    voxels.file.write_bytes(content)
    with pytest.raises((zlib.error, ValueError)):
        check_file(str(tmp_path / f"ct.{suffix}"))


@pytest.mark.parametrize("compression", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_voxels_are_refused(tmp_path, suffix, compression):
    voxels = find_voxels(write(tmp_path, suffix, compression))
    voxels.file.write_bytes(voxels.file.read_bytes()[:-300])
    with pytest.raises(ValueError, match="Expected 1440 bytes, the file has "):
        check_file(str(tmp_path / f"ct.{suffix}"))


TEXTS = {
    "nrrd": "NRRD0004\ntype: double\ndimension: 3\nsizes: 12 10 6\nencoding: ascii\n\n",
    "mha": (
        "ObjectType = Image\nNDims = 3\nBinaryData = False\nDimSize = 12 10 6\nElementType = MET_DOUBLE\n"
        "ElementDataFile = LOCAL\n"
    ),
}


@pytest.mark.parametrize("suffix", TEXTS)
def test_voxels_may_be_written_as_text_but_not_for_gigabytes(tmp_path, suffix):
    file = tmp_path / f"ct.{suffix}"
    file.write_text(TEXTS[suffix] + "0 " * VOXELS.size, encoding="utf-8")
    check_file(str(file))
    assert itk.array_from_image(itk.imread(str(file))).shape == SHAPE[::-1]
    say_shape(file, 2000, 2000, 2000)
    with pytest.raises(ValueError, match="Expected 64000000000 bytes, the file has no more than 5760"):
        check_file(str(file))


def test_voxels_in_several_files_are_refused(tmp_path):
    file = write(tmp_path, "mhd", False)
    file.write_bytes(file.read_bytes().replace(b"ct.raw", b"LIST"))
    with pytest.raises(ValueError, match="its voxels are in several files"):
        find_voxels(file)


def test_text_is_no_image(tmp_path):
    (tmp_path / "ct.mha").write_text("hello", encoding="utf-8")
    with pytest.raises(ValueError, match="not of a format that ITK knows"):
        check_file(str(tmp_path / "ct.mha"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), "must not be read by this user; change its permissions"),
        (IsADirectoryError(21, "Is a directory"), "is a folder, not a file; give the file"),
        (EOFError("ended\nearly"), "cannot be read (EOFError: ended early); download or copy it again"),
        (
            RuntimeError("/src/itkNrrdImageIO.cxx:9:\nITK ERROR: NrrdImageIO(0x55f6): no\n"),
            "cannot be read (RuntimeError: no); download or copy it again",
        ),
    ],
)
def test_why_a_file_cannot_be_read_is_one_line_with_what_to_do(error, expected):
    assert explain_unreadable(error) == expected
