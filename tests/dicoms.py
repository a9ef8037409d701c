"""Small DICOM series, written by ITK, one file per slice; sound ones and, by their arguments, odd ones."""

from pathlib import Path

import itk
import numpy as np

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ROOT_UID = "1.2.826.0.1.3680043.2.1125"
STRAIGHT = (1, 0, 0, 0, 1, 0)  # the direction of a row, and of a column, in LPS
JPEG, JPEG_2000 = itk.GDCMImageIOEnums.Compression_JPEG, itk.GDCMImageIOEnums.Compression_JPEG2000


def write_slice(path, pixels, position_mm, axes=STRAIGHT, spacing_mm=(1.5, 1.5), tags=None, compression=None):
    """Write ``pixels`` (columns, rows) HU as one DICOM file; ``tags`` are ITK's (``group|element``)."""
    row, column = np.array(axes[:3], float), np.array(axes[3:], float)
    image = itk.image_from_array(np.ascontiguousarray(pixels.T)[None].astype(np.int16))
    image.SetSpacing([*map(float, spacing_mm), 1.0])
    image.SetOrigin([float(value) for value in position_mm])
    image.SetDirection(itk.matrix_from_array(np.column_stack([row, column, np.cross(row, column)])))
    dictionary = image.GetMetaDataDictionary()
    for tag, value in (tags or {}).items():
        dictionary[tag] = value
    io = itk.GDCMImageIO.New()
    io.KeepOriginalUIDOn()
    if compression is not None:
        io.SetCompressionType(compression)
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(image, str(path), imageio=io, compression=compression is not None)


def write_series(
    folder,
    volume_hu,
    step_mm=(0, 0, 1),
    start_mm=(0, 0, 0),
    series=1,
    first_number=1,
    left_out=(),
    tags=None,
    **options,
):
    """Write ``volume_hu`` (columns, rows, slices); slice k lies at ``start_mm`` + k ``step_mm``.

    The files are named in reversed order. Returns them in the order of the slices.
    """
    files = []
    for index in range(volume_hu.shape[2]):
        if index in left_out:
            continue
        number = first_number + index
        path = Path(folder) / f"{series}-{1000 - number:03d}.dcm"
        standard = {
            "0008|0060": "CT", "0008|0016": CT_CLASS, "0020|000d": f"{ROOT_UID}.1", "0020|0052": f"{ROOT_UID}.3",
            "0020|000e": f"{ROOT_UID}.2.{series}", "0008|0018": f"{ROOT_UID}.4.{series}.{number}",
            "0020|0013": str(number), "0008|0021": "20200101",
        }  # fmt: skip
        position_mm = np.array(start_mm, float) + index * np.array(step_mm, float)
        write_slice(path, volume_hu[:, :, index], position_mm, tags=standard | (tags or {}), **options)
        files.append(path)
    return files


def as_run_lengths(file, pixels):
    """Replace the JPEG 2000 of a file by the same ``pixels`` in run lengths, which ITK cannot write: literals alone."""
    content = file.read_bytes()
    head = content[: content.rindex(b"\xe0\x7f\x10\x00OB")]
    syntax = b"1.2.840.10008.1.2.4.90"
    assert head.count(syntax) == 1
    head = head.replace(syntax, b"1.2.840.10008.1.2.5".ljust(len(syntax), b"\0"))
    stored = pixels.T.astype("<i2").tobytes()
    segments = [_literals(stored[1::2]), _literals(stored[0::2])]  # the more significant bytes first
    offsets = [2, 64, 64 + len(segments[0])] + [0] * 13
    frame = b"".join(number.to_bytes(4, "little") for number in offsets) + b"".join(segments)
    item, end = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0" + bytes(4)
    element = b"\xe0\x7f\x10\x00OB\0\0" + b"\xff" * 4 + item + bytes(4)
    file.write_bytes(head + element + item + len(frame).to_bytes(4, "little") + frame + end)


def _literals(plane):
    packed = b"".join(bytes([len(run) - 1]) + run for run in (plane[i : i + 128] for i in range(0, len(plane), 128)))
    return packed + bytes(len(packed) % 2)
