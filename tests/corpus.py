"""Bad scans, odd scans, bad labels and bad data sets as files, and what becomes of each.

The document of it is written by ``python -m tests.corpus docs/bad_data.md``.

Each kind is written into one folder of scans, which one command segments, and into one data set, which one command
checks. A kind is either refused, in words that `Kind` expects, or accepted, and then what came out of it must be right:
the mask, voxel by voxel on the scan's own grid, and the volume of the label.
"""

import csv
import ctypes
import gzip
import json
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fire
import itk
import nibabel as nib
import numpy as np
import torch

from scripts.data import check_dataset
from scripts.errors import InputError
from tests import ROOT
from tests.dicoms import JPEG, JPEG_2000, as_run_lengths, write_series

SPACING_MM = (1.5, 1.5, 1.0)  # of configs/inference.json: on such a grid nothing is interpolated
SHAPE = (24, 20, 16)
STRAIGHT = np.diag([*SPACING_MM, 1.0])
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
LIVER_HU, BODY_HU, AIR_HU = 150, 0, -1000
THRESHOLD_HU = 75  # of the oracle that stands in for the network
DICE_OF_RESAMPLED = 0.9
FORBIDDEN = "forbidden.nii.gz"
DROP_FROM_BOUNDING_SET, MAY_READ_ALL, MAY_SEARCH_ALL = 24, 1, 2  # of Linux's prctl and capabilities
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


class Scan(NamedTuple):
    """A file (or a DICOM folder), and if it is readable, where its liver is and voxel → RAS mm."""

    path: Path
    liver: np.ndarray | None = None
    affine: np.ndarray | None = None
    resampled: bool = False


class Kind(NamedTuple):
    """How a kind of scan is made in a folder, and what is expected: words of the refusal, or None if it is accepted.

    ``warning`` are words of what the check of a data set says of an accepted one. ``in_check`` is False of what no
    data set can hold.
    """

    make: Callable[[Path], Scan]
    inference: str | None = None
    check: str | None = None
    warning: str | None = None
    in_check: bool = True


# in a C locale Python cannot name a file so; what becomes of names of any bytes is in test_security.py
OTHER_LETTERS = "CT Müller 肝臓 (1).nii.gz" if sys.getfilesystemencoding() == "utf-8" else "CT Mueller (1).nii.gz"


# ---- sound scans ----


def make_liver(shape=SHAPE):
    """Return two boxes that no flip, swap or rotation maps onto themselves."""
    liver = np.zeros(shape, bool)
    liver[4:10, 3:6, 4:12] = True
    liver[12:18, 8:16, 6:8] = True
    return liver


def make_hu(liver, name):
    """Return int16 HU: liver in a body in air, with noise that is the name's own."""
    generator = np.random.default_rng(list(name.encode()))
    body = np.zeros(liver.shape, bool)
    body[2:-2, 2:-2, 1:-1] = True
    hu = np.where(liver, LIVER_HU, np.where(body, BODY_HU, AIR_HU))
    return (hu + generator.integers(-20, 20, liver.shape)).astype(np.int16)


def save(path, array, affine=STRAIGHT, **header):
    """Write a NIfTI file; ``header`` are its fields."""
    image = nib.Nifti1Image(array, affine)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def sound(folder, name="sound.nii.gz", change=lambda hu: hu, affine=STRAIGHT, **header):
    """A sound scan of boxes but for ``change``."""
    liver = make_liver()
    return Scan(save(folder / name, change(make_hu(liver, name)), affine, **header), liver, affine)


def of_liver(folder, name, liver, affine=STRAIGHT):
    """A sound scan of another liver."""
    return Scan(save(folder / name, make_hu(liver, name), affine), liver, affine)


def scaled(folder, name, dtype, slope, intercept):
    """A sound scan whose stored numbers become HU by slope and intercept."""
    liver = make_liver()
    stored = (make_hu(liver, name).astype(int) - intercept) // slope
    image = nib.Nifti1Image(stored.astype(dtype), STRAIGHT)
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, folder / name)
    saved = nib.load(folder / name).dataobj
    assert (saved.slope, saved.inter, saved.get_unscaled().dtype) == (slope, intercept, dtype)
    return Scan(folder / name, liver, STRAIGHT)


def make_cut_off_liver():
    liver = make_liver()
    liver[:9, :11, :6] = True  # to the borders
    return liver


def tiny(folder, name):
    box = np.s_[3:8, 1:5, 3:6]
    hu = make_hu(make_liver(), name)
    return Scan(save(folder / name, hu[box]), make_liver()[box], STRAIGHT)


def ball(folder, name, shape, affine):
    """A scan of a ball with a soft border, to be resampled, and found again."""
    affine = np.asarray(affine, float)
    axes = affine[:3, :3]
    middle = axes @ (np.array(shape) * (0.45, 0.55, 0.5))
    positions_mm = np.moveaxis(np.indices(shape), 0, -1) @ axes.T
    distances_mm = np.linalg.norm(positions_mm - middle, axis=-1)
    radius_mm = 0.3 * (np.array(shape) * np.linalg.norm(axes, axis=0)).min()
    edge_mm = 0.1 * radius_mm
    hu = LIVER_HU / (1 + np.exp(np.clip((distances_mm - radius_mm) / edge_mm, -50, 50)))
    margin = np.ones(shape, bool)
    margin[1:-1, 1:-1, 1:-1] = False
    hu = np.where(margin, AIR_HU, hu)
    hu[0, 0, 0] -= sum(name.encode()) % 500  # no two are the same
    path = save(folder / name, hu.astype(np.float32), affine)
    return Scan(path, (distances_mm < radius_mm) & ~margin, affine, resampled=True)


# ---- damaged files ----


def truncated(folder, name):
    scan = sound(folder, name)
    scan.path.write_bytes(scan.path.read_bytes()[: scan.path.stat().st_size // 2])
    return scan


def of_bytes(folder, name, content):
    (folder / name).write_bytes(content)
    return Scan(folder / name)


def with_bytes(folder, name, offset, form, values):
    """A sound scan but for some bytes of its header."""
    scan = sound(folder, name.removesuffix(".gz"))
    content = bytearray(scan.path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    scan.path.unlink()
    (folder / name).write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else content)
    return scan._replace(path=folder / name)


def broken_checksum(folder, name):
    scan = sound(folder, name)
    content = bytearray(gzip.compress(gzip.decompress(scan.path.read_bytes()), compresslevel=0))  # stored as it is
    content[-9] ^= 1  # in the last voxel, before the 8 bytes of checksum and length
    scan.path.write_bytes(content)
    return scan


def not_gzip(folder, name):
    plain = sound(folder, "plain.nii")
    return plain._replace(path=plain.path.rename(folder / name))


def forbidden(folder, name):
    scan = sound(folder, name)
    scan.path.chmod(0)
    return scan


def dangling(folder, name):
    (folder / name).symlink_to(folder / "gone.nii.gz")
    return Scan(folder / name)


def by_itk(folder, name, change=lambda hu: hu, compression=False, replace=(b"", b"")):
    """A scan that ITK writes, with an orientation of its own; ``replace`` are bytes of its header."""
    liver = make_liver()
    voxels = change(make_hu(liver, name))
    stored = np.moveaxis(voxels, (0, 2), (2, 0))  # ITK's arrays are (Z, Y, X), colours last
    image = itk.image_from_array(np.ascontiguousarray(stored), is_vector=voxels.ndim > 3)
    image.SetSpacing(SPACING_MM)
    image.SetOrigin((10.5, -20.25, 300.0))
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    image.SetDirection(itk.matrix_from_array(turn))
    itk.imwrite(image, str(folder / name), compression=compression)
    content = (folder / name).read_bytes()
    if replace[0]:
        assert replace[0] in content
        (folder / name).write_bytes(content.replace(*replace, 1))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(SPACING_MM), (10.5, -20.25, 300.0)
    return Scan(folder / name, liver, LPS_TO_RAS @ affine)


def damaged_metaimage(folder, name):
    scan = by_itk(folder, name, compression=True)
    content = bytearray(scan.path.read_bytes())
    content[-500] ^= 0x55
    scan.path.write_bytes(content)
    return scan


# ---- what is no CT in HU, or no grid ----


def wrapped(hu):
    return hu.astype(np.uint16)


def with_margin(hu):
    hu = hu + 1024
    hu[:, :, :1] = -2000
    return hu


def set_voxel(value, hu):
    hu = hu.astype(np.float32)
    hu[3, 4, 5] = value
    return hu


def shear(by):
    affine = np.diag([1.2, 1.2, 1.5, 1.0])
    affine[1, 2] = by
    return affine


def turned(angle_degrees, spacing_mm=SPACING_MM):
    cosine, sine = np.cos(np.deg2rad(angle_degrees)), np.sin(np.deg2rad(angle_degrees))
    turn = np.array([[cosine, -sine, 0, -40], [sine, cosine, 0, 17.5], [0, 0, 1, 333], [0, 0, 0, 1]])
    tilt = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    return turn @ tilt @ np.diag([*spacing_mm, 1])


def disagreeing(folder, name):
    liver = make_liver()
    image = nib.Nifti1Image(make_hu(liver, name), STRAIGHT)
    image.set_sform(STRAIGHT, 1)
    image.set_qform(STRAIGHT + np.eye(4, k=3) * 30, 1)
    nib.save(image, folder / name)
    return Scan(folder / name, liver, STRAIGHT)


def without_forms(folder, name):
    liver = make_liver()
    image = nib.Nifti1Image(make_hu(liver, name), None)
    image.header.set_zooms(SPACING_MM)
    nib.save(image, folder / name)
    return Scan(folder / name, liver, nib.load(folder / name).affine)


# ---- DICOM ----


def dicom(folder, name, step_mm=(0, 0, 1), axes=(1, 0, 0, 0, 1, 0), resampled=False, **options):
    """A series of the boxes' slices."""
    liver = make_liver()
    write_series(folder / name, make_hu(liver, name), step_mm=step_mm, axes=axes, **options)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([np.multiply(axes[:3], 1.5), np.multiply(axes[3:], 1.5), step_mm])
    return Scan(folder / name, liver, LPS_TO_RAS @ affine, resampled)


def dicom_and(folder, name, volume_hu, change=lambda scan: scan, **options):
    """A sound series with something else in its folder."""
    scan = dicom(folder, name)
    write_series(folder / name, volume_hu, **options)
    return change(scan)


def dicom_changed(folder, name, change, compression=None):
    """A series of whose files ``change`` makes others."""
    scan = dicom(folder, name, compression=compression)
    hu = make_hu(make_liver(), name)
    for index, file in enumerate(sorted(scan.path.iterdir(), reverse=True)):
        change(file, index, hu[:, :, index])
    return scan


def tilted(folder, name):
    """A gantry tilted by 14 degrees; the liver is a column of ellipses that the tilt moves along."""
    step_mm = (0, 0.5, 2.0)
    rows, columns, slices = np.indices((40, 40, 20))
    affine = LPS_TO_RAS @ np.array([[1.5, 0, 0, 0], [0, 1.5, 0.5, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    positions_mm = np.stack([1.5 * rows, 1.5 * columns + 0.5 * slices, 2.0 * slices], axis=-1)
    distances_mm = np.linalg.norm(positions_mm - (28, 34, 19), axis=-1)
    hu = np.full((40, 40, 20), AIR_HU, float)
    hu[2:-2, 2:-2, 1:-1] = (LIVER_HU / (1 + np.exp(np.clip(distances_mm - 12, -50, 50))))[2:-2, 2:-2, 1:-1]
    write_series(folder / name, hu, step_mm=step_mm)
    return Scan(folder / name, distances_mm < 12, affine, resampled=True)


def cut_last(file, index, _):
    if index == SHAPE[2] - 1:
        file.write_bytes(file.read_bytes()[:-200])


def say_rle(file, *_):
    file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.80"))


def frames(folder, name):
    (folder / name).mkdir()
    image = itk.image_from_array(np.ascontiguousarray(make_hu(make_liver(), name).T + 1100).astype(np.uint16))
    itk.imwrite(image, str(folder / name / "all.dcm"))
    return Scan(folder / name)


SLICES = make_hu(make_liver(), "other")
SCOUT = {"0008|0008": r"ORIGINAL\PRIMARY\LOCALIZER"}
UNREADABLE = "cannot be read ("
HUGE = (b"24 20 16", b"3000 3000 3000")


def scan(make, name, inference=None, check=None, warning=None, in_check=True, **options):
    return Kind(partial(make, name=name, **options), inference, check, warning, in_check)


def refused(make, name, inference, check=None, **options):
    """What both refuse, in the same words unless ``check`` has others."""
    return scan(make, name, inference, check or inference, **options)


def dicom_scan(make, name, inference=None, **options):
    return scan(make, name, inference, in_check=False, **options)


BAD_SCANS = {
    "truncated NIfTI": refused(truncated, "truncated.nii", UNREADABLE),
    "truncated .nii.gz": refused(truncated, "truncated_gz.nii.gz", f"{UNREADABLE}EOFError"),
    "empty file": refused(of_bytes, "empty.nii", UNREADABLE, content=b""),
    "empty .nii.gz": refused(of_bytes, "empty_gz.nii.gz", UNREADABLE, content=b""),
    "a web page instead of the file": refused(of_bytes, "page.nii", UNREADABLE, content=b"<html>" * 100),
    "wrong magic": refused(with_bytes, "magic.nii.gz", UNREADABLE, offset=344, form="<4s", values=(b"xxxx",)),
    "gzip with a broken checksum": refused(broken_checksum, "crc.nii.gz", "CRC check failed"),
    ".nii.gz that is not gzip": refused(not_gzip, "plain.nii.gz", "is not a gzip file"),
    "2D image": refused(sound, "2d.nii.gz", "is a 2D image of shape (24, 20)", "has shape (24, 20)",
                        change=lambda hu: hu[:, :, 8]),
    "4D image": refused(sound, "4d.nii.gz", "is a 4D image of shape (24, 20, 16, 2)", "has shape (24, 20, 16, 2)",
                        change=lambda hu: np.stack([hu, hu], axis=-1)),
    "RGB voxels": refused(sound, "rgb.nii.gz", "voxels, not numbers", "has voxels of type",
                          change=lambda hu: np.zeros(hu.shape, RGB)),
    "complex voxels": refused(sound, "complex.nii.gz", "holds complex64 voxels", "has voxels of type complex64",
                              change=lambda hu: hu.astype(np.complex64)),
    "Python objects for voxels": refused(of_bytes, "objects.nii", UNREADABLE, content=pickle.dumps([{"hu": 1}] * 99)),
    "unknown type of voxels": refused(with_bytes, "type.nii.gz", UNREADABLE, offset=70, form="<h", values=(999,)),
    "NaN voxels": refused(sound, "nan.nii.gz", "NaN or infinite", change=partial(set_voxel, np.nan)),
    "infinite voxels": refused(sound, "inf.nii.gz", "NaN or infinite", change=partial(set_voxel, -np.inf)),
    "all-constant": refused(sound, "constant.nii.gz", "every voxel is -1000; it holds no scan",
                            change=lambda hu: np.full_like(hu, -1000)),
    "HU + 1024": refused(sound, "offset.nii.gz", "it looks like HU + 1024", change=lambda hu: hu + 1024),
    "HU + 1024 with a margin of -2000": refused(sound, "margin.nii.gz", "it looks like HU + 1024",
                                                change=with_margin),
    "HU wrapped to uint16": refused(sound, "wrapped.nii.gz", "saved as unsigned 16-bit integers", change=wrapped),
    "MR-like range": refused(sound, "mr.nii.gz", "or not CT: convert it to HU", change=lambda hu: abs(hu) + 3),
    "zero spacing": refused(with_bytes, "zero.nii.gz", "gives no voxel size", "has a singular affine", offset=280,
                            form="<4f", values=(0, 0, 0, 0)),
    "singular affine": refused(with_bytes, "singular.nii.gz", "gives no voxel size", "has a singular affine",
                               offset=280, form="<12f", values=(1, 1, 0, 0) * 3),
    "NaN in the affine": refused(with_bytes, "nanaffine.nii.gz", "gives no voxel size", "has a singular affine",
                                 offset=280, form="<4f", values=(float("nan"), 0, 0, 0)),
    "spacing in metres": refused(sound, "metres.nii.gz", "its spacing in plane is 0.0015 mm, not 0.2 to 10 mm",
                                 affine=np.diag([0.0015, 0.0015, 0.001, 1])),
    "spacing of decimetres": refused(sound, "far.nii.gz", "its spacing in plane is 150 mm, not 0.2 to 10 mm",
                                     affine=np.diag([150.0, 150, 100, 1])),
    "larger than any scanner": refused(sound, "large.nii.gz", "mm between slices, more than 2500 mm",
                                       change=lambda hu: np.tile(hu, (1, 1, 20)), affine=np.diag([1.5, 1.5, 10, 1])),
    "sizes below zero": refused(with_bytes, "negative_size.nii.gz", UNREADABLE, offset=40, form="<4h",
                                values=(3, -24, 20, 16)),
    "sizes of terabytes": refused(with_bytes, "huge_nii.nii", "the file has no more than", offset=40, form="<4h",
                                  values=(3, 32000, 32000, 32000)),
    "sizes of terabytes, .nii.gz": refused(with_bytes, "huge_gz.nii.gz", "the file has no more than", offset=40,
                                           form="<4h", values=(3, 32000, 32000, 32000)),
    "sizes of gigabytes, NRRD": refused(by_itk, "huge.nrrd", "the file has no more than", replace=HUGE),
    "sizes of gigabytes, compressed .mha": refused(by_itk, "huge_mha.mha", "the file has no more than",
                                                   compression=True, replace=HUGE),
    "compressed .mha with too few voxels": refused(by_itk, "short.mha", "Expected 16320 bytes, the file has 15360",
                                                   compression=True, replace=(b"24 20 16", b"24 20 17")),
    "damaged compressed .mha": refused(damaged_metaimage, "damaged.mha", UNREADABLE),
    "colours in .mha": refused(by_itk, "colours.mha", "is a 4D image", "has shape (24, 20, 16, 3)",
                               change=lambda hu: np.stack([hu, hu, hu], axis=-1).astype(np.float32)),
    "file that may not be read": refused(forbidden, FORBIDDEN, "must not be read by this user"),
    "link to nowhere": refused(dangling, "link.nii.gz", "cannot be read", "does not exist"),
}  # fmt: skip

BAD_DICOM = {
    "DICOM: two series": dicom_scan(dicom_and, "two series", "holds 2 DICOM series; choose one by --series",
                                    volume_hu=SLICES, series=2),
    "DICOM: mixed sizes": dicom_scan(dicom_and, "mixed sizes", "holds 2 DICOM series; choose one by --series",
                                     volume_hu=SLICES[:20], first_number=50, start_mm=(0, 0, 50)),
    "DICOM: a slice is missing": dicom_scan(dicom, "missing", "slices are missing", left_out=(7,)),
    "DICOM: a slice is there twice": dicom_scan(dicom_and, "twice", "lie in the same place", first_number=50,
                                                volume_hu=SLICES[:, :, 4:5], start_mm=(0, 0, 4)),
    "DICOM: the distance of slices changes": dicom_scan(dicom_and, "uneven", "or their distance changes",
                                                        volume_hu=SLICES, first_number=50, start_mm=(0, 0, 18),
                                                        step_mm=(0, 0, 3)),
    "DICOM: planes of two directions": dicom_scan(dicom_and, "directions", "are planes of different directions",
                                                  volume_hu=SLICES, first_number=50, start_mm=(0, 0, 16),
                                                  axes=(0, 1, 0, -1, 0, 0)),
    "DICOM: the last slice is truncated": dicom_scan(dicom_changed, "cut", "it is damaged or incomplete",
                                                     change=cut_last),
    "DICOM: a compression that cannot be decoded": dicom_scan(dicom_changed, "undecodable", "cannot be decoded",
                                                              change=say_rle, compression=JPEG_2000),
    "DICOM: not CT": dicom_scan(dicom, "magnet", "is of modality MR, not CT", tags={"0008|0060": "MR"}),
    "DICOM: many frames in one file": dicom_scan(frames, "frames", "holds 16 frames; convert it to one DICOM file"),
    "DICOM: a localizer alone": dicom_scan(dicom, "scout", "holds no slices of a scan", tags=SCOUT),
}  # fmt: skip

ODD_DICOM = {
    "DICOM: a localizer in the folder": dicom_scan(dicom_and, "with scout", volume_hu=SLICES[:, :, :1], series=2,
                                                   tags=SCOUT, axes=(1, 0, 0, 0, 0, -1)),
    "DICOM: a localizer in the series": dicom_scan(dicom_and, "with scout inside", volume_hu=SLICES[:, :, :1],
                                                   first_number=50, start_mm=(0, 0, 50), tags=SCOUT),
    "DICOM: a PET series in the folder": dicom_scan(dicom_and, "with pet", volume_hu=SLICES, series=2,
                                                    tags={"0008|0060": "PT"}),
    "DICOM: JPEG lossless": dicom_scan(dicom, "jpeg", compression=JPEG),
    "DICOM: JPEG 2000": dicom_scan(dicom, "jpeg2000", compression=JPEG_2000),
    "DICOM: run lengths": dicom_scan(dicom_changed, "rle", compression=JPEG_2000,
                                     change=lambda file, _, pixels: as_run_lengths(file, pixels)),
    "DICOM: negative column cosine": dicom_scan(dicom, "negative column", axes=(1, 0, 0, 0, -1, 0),
                                                step_mm=(0, 0, -1)),
    "DICOM: negative row cosine": dicom_scan(dicom, "negative row", axes=(-1, 0, 0, 0, 1, 0), step_mm=(0, 0, -1)),
    "DICOM: decubitus": dicom_scan(dicom, "on the side", axes=(0, 1, 0, -1, 0, 0)),
    "DICOM: tilted gantry": dicom_scan(tilted, "tilt"),
}  # fmt: skip

AXES_AT_ANGLES = "its axes are not at right angles"
ODD_SCANS = {
    "20 slices": scan(ball, "slices20.nii.gz", shape=(30, 26, 20), affine=np.diag([2.0, 2, 3, 1])),
    "1,500 slices": scan(ball, "slices1500.nii.gz", shape=(30, 26, 1500), affine=np.diag([2.0, 2, 0.4, 1])),
    "0.4 mm spacing": scan(ball, "fine.nii.gz", shape=(60, 50, 50), affine=np.diag([0.4, 0.4, 0.4, 1])),
    "10 mm spacing": scan(ball, "coarse.nii.gz", shape=(20, 22, 18), affine=np.diag([10.0, 10, 10, 1])),
    "anisotropic, 0.7 x 0.7 x 5 mm": scan(ball, "thick.nii.gz", shape=(64, 60, 12), affine=np.diag([0.7, 0.7, 5, 1])),
    "oblique": scan(sound, "oblique.nii.gz", affine=turned(20)),
    "oblique and resampled": scan(ball, "oblique2.nii.gz", shape=(40, 36, 30), affine=turned(15, (1, 1.2, 2))),
    "sheared affine": scan(ball, "sheared.nii.gz", shape=(40, 40, 30), affine=shear(0.5), warning=AXES_AT_ANGLES),
    "feet first": scan(sound, "feet.nii.gz", affine=np.diag([1.5, 1.5, -1.0, 1])),
    "negative spacings": scan(sound, "negative.nii.gz", affine=np.diag([-1.5, -1.5, -1.0, 1])),
    "negative pixdim": scan(with_bytes, "pixdim.nii.gz", offset=76, form="<4f", values=(1, -1.5, -1.5, -1)),
    "pixdim of zero beside a sound sform": scan(with_bytes, "pixdim0.nii.gz", offset=80, form="<3f", values=(0, 0, 0)),
    "decubitus": scan(sound, "decubitus.nii.gz", affine=turned(0) @ np.array(
        [[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    "identity affine": scan(ball, "identity.nii.gz", shape=(40, 36, 30), affine=np.eye(4), warning="identity affine"),
    "sform and qform disagree": scan(disagreeing, "forms.nii.gz", warning="its sform and qform disagree by up to 30"),
    "neither sform nor qform": scan(without_forms, "formless.nii.gz", warning="its header says no orientation"),
    "liver cut off by the border": scan(of_liver, "cutoff.nii.gz", liver=make_cut_off_liver()),
    "no liver": scan(of_liver, "liverless.nii.gz", liver=np.zeros(SHAPE, bool), warning="is empty: no liver"),
    "tiny, 5 x 4 x 3 voxels": scan(tiny, "tiny.nii.gz"),
    "unsigned 16-bit with an intercept": scan(scaled, "uint16.nii.gz", dtype=np.uint16, slope=1, intercept=-1100),
    "scaled by 2": scan(scaled, "scaled.nii.gz", dtype=np.int16, slope=2, intercept=-1200),
    "float32": scan(sound, "float32.nii.gz", change=lambda hu: hu.astype(np.float32)),
    "float64": scan(sound, "float64.nii.gz", change=lambda hu: hu.astype(np.float64)),
    "32-bit integers": scan(sound, "int32.nii.gz", change=lambda hu: hu.astype(np.int32)),
    "4D of one volume": scan(sound, "4d_of_one.nii.gz", change=lambda hu: hu[..., None]),
    "not compressed": scan(sound, "plain16.nii"),
    "NRRD": scan(by_itk, "ct1.nrrd"),
    "NRRD, compressed": scan(by_itk, "ct2.nrrd", compression=True),
    "MetaImage": scan(by_itk, "ct3.mha"),
    "MetaImage, compressed": scan(by_itk, "ct4.mha", compression=True),
    "MetaImage of two files": scan(by_itk, "ct5.mhd"),
    "a name with spaces and of other letters": scan(sound, OTHER_LETTERS),
    "a name in capitals": scan(sound, "CT.NII.GZ"),
}  # fmt: skip


# ---- labels ----


class LabelKind(NamedTuple):
    """How the label of a sound scan is made, and words of what its check says: an error, a warning, or nothing."""

    make: Callable[[Path, str], Path]
    error: str | None = None
    warning: str | None = None
    voxels: int = 6 * 3 * 8 + 6 * 8 * 2  # of liver, if it is accepted


def labelled(folder, name, change=lambda label: label, affine=STRAIGHT):
    """Write the label of a sound scan but for ``change``, under the scan's name."""
    label = make_liver().astype(np.uint8)
    label[14:16, 10:12, 6:8] = 2
    return save(folder / name, change(label), affine)


def label(change=lambda label: label, error=None, warning=None, affine=STRAIGHT, **options):
    return LabelKind(partial(labelled, change=change, affine=affine), error, warning, **options)


def cut_label(folder, name):
    path = labelled(folder, name)
    path.write_bytes(path.read_bytes()[:100])
    return path


def with_value(value, label):
    changed = label.astype(np.float32)
    changed[5, 4, 5] = value
    return changed


def moved(x_mm):
    return STRAIGHT + np.eye(4, k=3) * x_mm


TURNED = np.array([[0, -1.5, 0, 1.5 * 23], [1.5, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # of axes y, -x, z
LABELS = {
    "label: as it should be": label(),
    "label: shifted by its header": label(error="its affine differs from its image's by up to 6 mm", affine=moved(6)),
    "label: shifted into air": label(lambda label: np.roll(label, -4, axis=1), "which is not liver: the label may be"),
    # 4 of the 6 slices of the larger box, 8 x 2 voxels each, of 240 voxels
    "label: shifted a little": label(lambda label: np.roll(label, 9, axis=0), warning="27% of the label is air"),
    "label: on another grid": label(lambda label: label[::2], "has shape (12, 20, 16)", affine=moved(0) * [2, 1, 1, 1]),
    "label: another orientation": label(
        lambda label: label[::-1].transpose(1, 0, 2), warning="so it is turned to match", affine=TURNED
    ),
    "label: flipped by its header alone": label(error="its affine differs", affine=STRAIGHT * [-1, 1, 1, 1]),
    "label: value 3": label(partial(with_value, 3), "has label values other than 0, 1 and 2: 3"),
    "label: value 255": label(partial(with_value, 255), "has label values other than 0, 1 and 2: 255"),
    "label: value 0.5": label(partial(with_value, 0.5), "has label values other than 0, 1 and 2: 0.5"),
    "label: whole numbers as floats": label(lambda label: label.astype(np.float64)),
    "label: empty": label(lambda label: label * 0, warning="is empty: no liver and no tumour", voxels=0),
    "label: one voxel": label(
        lambda label: np.pad(label[4:5, 3:4, 4:5], ((4, 19), (3, 16), (4, 11))),
        warning="the liver fills 0.01%",
        voxels=1,
    ),
    "label: inverted": label(lambda label: 1 - np.minimum(label, 1), "the label may be inverted"),
    "label: 4D": label(lambda label: np.stack([label, label], axis=-1), "has shape (24, 20, 16, 2)"),
    "label: 4D of one volume": label(lambda label: label[..., None]),
    "label: truncated": LabelKind(cut_label, UNREADABLE),
}


# ---- data sets ----


def pair(folder, number, name=None, at="."):
    """Write a sound case under LiTS's names; of one ``name`` it is the same scan."""
    (folder / at).mkdir(parents=True, exist_ok=True)
    save(folder / at / f"volume-{number}.nii", make_hu(make_liver(), name or str(number)))
    save(folder / at / f"segmentation-{number}.nii", make_liver().astype(np.uint8))
    return {"image": f"{at}/volume-{number}.nii", "label": f"{at}/segmentation-{number}.nii"}


def write_list(folder, **sections):
    (folder / "mine.json").write_text(json.dumps(sections), encoding="utf-8")
    return folder / "mine.json"


def same_scan_twice(folder):
    for number in (0, 1):
        pair(folder, number, "same")
    return folder


def in_two_splits(folder):
    items = [pair(folder, number, "same" if number != 1 else None) for number in range(3)]
    return write_list(folder, training=[items[0]], validation=[items[1]], test=[items[2]])


def listed_twice(folder):
    items = [pair(folder, number) for number in range(2)]
    return write_list(folder, training=[items[0]], validation=[items[1]], test=[items[0]])


def number_twice(folder):
    pair(folder, 0, at="a")
    pair(folder, 0, at="b")
    return folder


def without_label(folder):
    pair(folder, 0)
    pair(folder, 1)
    (folder / "segmentation-1.nii").unlink()
    return folder


def not_json(folder):
    (folder / "mine.json").write_text("{'training': ", encoding="utf-8")
    return folder / "mine.json"


def other_format(folder):
    np.save(folder / "ct.npy", make_hu(make_liver(), "npy"))
    return write_list(folder, training=[{"image": "ct.npy", "label": "ct.npy"}])


def listed_series(folder):
    dicom(folder, "series")
    save(folder / "liver.nii", make_liver().astype(np.uint8), LPS_TO_RAS)
    return write_list(folder, training=[{"image": "series", "label": "liver.nii"}])


DATA_SETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "data set: the same scan under two names": (same_scan_twice, "is the same scan as"),
    "data set: the same scan in two splits": (in_two_splits, "of training; remove one of the two"),
    "data set: a file listed in two splits": (listed_twice, "a second time; remove one of the two"),
    "data set: a number in two folders": (number_twice, "volume 0 is also"),
    "data set: a scan without a label": (without_label, "has no segmentation-1.nii[.gz]; add it"),
    "data set: an empty folder": (lambda folder: folder, "no cases found"),
    "data set: a list that is no JSON": (not_json, "cannot be read as JSON"),
    "data set: a list without training": (partial(write_list, cases=[]), "has no 'training' list"),
    "data set: a DICOM series in a list": (listed_series, "is a folder; python -m scripts.data add makes a case"),
    "data set: NumPy arrays": (other_format, "cannot be read, its format is none of .nii"),
}


# ---- what becomes of them ----

SCANS = BAD_SCANS | ODD_SCANS | BAD_DICOM | ODD_DICOM


class Outcome(NamedTuple):
    """Whether it was "accepted", accepted "with a warning" or "refused", and what was said of it."""

    outcome: str
    message: str = ""


def without_overrides():
    """Take from a process, before it starts, root's right to read what may not be read."""
    for capability in (MAY_READ_ALL, MAY_SEARCH_ALL):
        ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, capability)


class Corpus:
    """All kinds as files in ``folder``, one command over each of its two halves, and what they did.

    Attributes:
        segmenting, checking: the two processes when they have ended.
        peak_bytes: of memory that any process started here has taken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "out"
        for name in ("scans", "labels", "labelled"):
            (folder / name).mkdir()
        self.scans = {name: kind.make(folder / "scans") for name, kind in SCANS.items()}
        items = []
        for name, kind in SCANS.items():
            if kind.in_check:
                items.append(self._pair(name))
        self.labels = {}
        for number, (name, kind) in enumerate(LABELS.items()):
            file = f"label{number}.nii"
            image = sound(folder / "labelled", file).path
            self.labels[name] = kind.make(folder / "labels", file)
            items.append({"image": str(image), "label": str(self.labels[name])})
        (folder / "all.json").write_text(json.dumps({"training": items}), encoding="utf-8")

    def _pair(self, name: str) -> dict[str, str]:
        scan = self.scans[name]
        liver = np.zeros(SHAPE, bool) if scan.liver is None else scan.liver
        affine = STRAIGHT if scan.affine is None else scan.affine
        label = save(self.folder / "labels" / f"{scan.path.name}.nii", liver.astype(np.uint8), affine)
        return {"image": str(scan.path), "label": str(label)}

    def run(self) -> None:
        """Segment the scans and check the data set, each by its command line."""
        weights = self.folder / "model.pt"
        torch.save({}, weights)
        oracle = {"_target_": "tests.oracle.ThresholdOracle", "threshold": THRESHOLD_HU / 200, "sharpness": 2.0}
        settings = {
            "config_file": "configs/inference.json", "network_def": oracle, "dataset_dir": self.folder / "scans",
            "output_dir": self.out, "ckpt_path": weights, "device": "cpu", "roi_size": [64, 64, 64], "preview": False,
        }  # fmt: skip
        self.segmenting = self._run("monai.bundle", "run", **settings)
        report = self.folder / "report.json"
        self.checking = self._run(
            "scripts.data", "check", dataset_dir=self.folder / "all.json", output_file=report, min_slices=1
        )
        self.report = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
        self.failures = {}
        if (self.out / "failed.csv").exists():
            self.failures = {row["image"]: row["reason"] for row in read_rows(self.out / "failed.csv")}
        self.peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024

    @staticmethod
    def _run(module: str, command: str, **settings: Any) -> subprocess.CompletedProcess:
        arguments = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
        return subprocess.run(
            [sys.executable, "-m", module, command, *arguments],
            cwd=ROOT, capture_output=True, encoding="utf-8", preexec_fn=without_overrides, check=False,
        )  # fmt: skip

    def segmented(self, name: str) -> Outcome:
        """Return what became of a scan that was to be segmented.

        Raises:
            AssertionError: if it was accepted and its mask is wrong.
        """
        scan = self.scans[name]
        if str(scan.path) in self.failures:
            return Outcome("refused", self._without_folder(self.failures[str(scan.path)]))
        check_mask(self.out / f"{scan_name(scan.path)}_seg.nii.gz", scan)
        return Outcome("accepted")

    def checked(self, image: Path, liver_ml: float) -> Outcome:
        """Return what became of a case of the data set, the volume of whose label is to be ``liver_ml``."""
        (case,) = [row for row in self.report["cases"] if row["image"] == str(image)]
        found = [row for row in self.report["findings"] if row["case"] == case["name"]]
        message = "; ".join(f"{row['file']}: {row['reason']}" for row in found)
        message = self._without_folder(message)
        if case["status"] == "bad":
            return Outcome("refused", message)
        np.testing.assert_allclose(case["liver_ml"], liver_ml, atol=2e-3)
        return Outcome("with a warning" if found else "accepted", message)

    def checked_scan(self, name: str) -> Outcome:
        """Return what became of a scan in the data set."""
        scan = self.scans[name]
        known = scan.liver is not None
        voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000 if known else 0
        return self.checked(scan.path, scan.liver.sum() * voxel_ml if known else 0)

    def checked_label(self, name: str) -> Outcome:
        """Return what became of a label in the data set."""
        image = self.folder / "labelled" / self.labels[name].name
        return self.checked(image, LABELS[name].voxels * 2.25 / 1000)

    def checked_set(self, name: str) -> Outcome:
        """Check one of the data sets, and return what became of it."""
        folder = self.folder / "sets" / str(list(DATA_SETS).index(name))
        folder.mkdir(parents=True)
        try:
            report = check_dataset(DATA_SETS[name][0](folder), min_slices=1)
        except InputError as error:
            return Outcome("refused", self._without_folder(str(error)))
        errors = [row for row in report["findings"] if row["severity"] == "error"]
        message = "; ".join(f"{row['file']}: {row['reason']}" for row in errors)
        return Outcome("refused" if errors else "accepted", self._without_folder(message))

    def _without_folder(self, message: str) -> str:
        message = re.sub(rf"{re.escape(str(self.folder))}/(sets/\d+|scans|labels|labelled)/?", "", message)
        return message.replace(f"{self.folder}/", "")

    def table(self) -> list[tuple[str, Outcome | None, Outcome | None]]:
        """Return of each kind its name, its outcome in a data set, and as a scan to be segmented."""
        rows = [
            (name, self.checked_scan(name) if kind.in_check else None, self.segmented(name))
            for name, kind in SCANS.items()
        ]
        rows += [(name, self.checked_label(name), None) for name in LABELS]
        return rows + [(name, self.checked_set(name), None) for name in DATA_SETS]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV table."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scan_name(path: Path) -> str:
    """Return a scan's name without the suffix of its format."""
    return re.sub(r"(?i)(\.nii(\.gz)?|\.nrrd|\.mha|\.mhd)$", "", path.name)


def check_mask(path: Path, scan: Scan) -> None:
    """Raise `AssertionError` unless a mask is the scan's liver on the scan's grid."""
    mask = nib.load(path)
    found = np.asarray(mask.dataobj).astype(bool)
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert found.shape == scan.liver.shape
    if not scan.resampled:
        np.testing.assert_array_equal(found, scan.liver)
        return
    dice = 2 * (found & scan.liver).sum() / (found.sum() + scan.liver.sum())
    assert dice > DICE_OF_RESAMPLED, dice
    middles = [np.argwhere(voxels).mean(axis=0) for voxels in (found, scan.liver)]
    np.testing.assert_allclose(*middles, atol=0.3)


def format_table(rows: list[tuple[str, Outcome | None, Outcome | None]]) -> str:
    """Return the table as Markdown."""
    lines = ["| kind | in a data set | to be segmented | what is said |", "|---|---|---|---|"]
    for name, check, segmented in rows:
        outcomes = [outcome.outcome if outcome else "-" for outcome in (check, segmented)]
        messages = dict.fromkeys(outcome.message for outcome in (segmented, check) if outcome and outcome.message)
        message = "<br>".join(re.sub(r"0x[0-9a-f]+", "0x...", text) for text in messages).replace("|", r"\|")
        lines.append(f"| {name} | {outcomes[0]} | {outcomes[1]} | {message} |")
    return "\n".join(lines) + "\n"


def document(rows: list[tuple[str, Outcome | None, Outcome | None]]) -> str:
    """Return ``docs/bad_data.md``."""
    outcomes = [outcome for row in rows for outcome in row[1:] if outcome]
    counts = [
        f"{sum(outcome.outcome == kind for outcome in outcomes)} {kind}"
        for kind in ("refused", "accepted", "with a warning")
    ]
    return f"""# Bad data

What becomes of {len(rows)} kinds of bad and odd data: made by `tests/corpus.py`, which also writes this page
(`python -m tests.corpus docs/bad_data.md`); `tests/test_corpus.py` tries each and compares.

*In a data set* is `python -m scripts.data check` (and so every training, which checks first); *to be segmented* is
`configs/inference.json`, one run over a folder of all of them. Refused is one line, with the file and what to do; the
others go on, `failed.csv` lists what was left out, the exit status is 1. Accepted means that the result was compared
with the truth: the mask voxel by voxel on the scan's own grid (where the scan was resampled on its way: Dice over
{DICE_OF_RESAMPLED}, its middle within 0.3 voxels), the label's volume. Outcomes: {", ".join(counts)}.

{format_table(rows)}
What no check can see: a label that is shifted within soft tissue, left and right swapped in a scan and its label alike,
a voxel changed in an uncompressed file (DICOM and NIfTI without gzip have no checksums).
"""


def main(output_file: str) -> None:
    """Write the document OUTPUT_FILE."""
    folder = Path(tempfile.mkdtemp())
    try:
        corpus = Corpus(folder)
        corpus.run()
        Path(output_file).write_text(document(corpus.table()), encoding="utf-8")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    fire.Fire(main)
