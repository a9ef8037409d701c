"""Small DICOM series, written by ITK, one file per slice; sound ones and, by their arguments, odd ones."""

from pathlib import Path

import itk
import numpy as np

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ROOT_UID = "1.2.826.0.1.3680043.2.1125"
SHAPE = (24, 20, 16)
AIR_HU, LIVER_HU, TUMOR_HU = -1000, 150, 190
STRAIGHT = (1, 0, 0, 0, 1, 0)  # the direction of a row, and of a column, in LPS
JPEG, JPEG_2000 = itk.GDCMImageIOEnums.Compression_JPEG, itk.GDCMImageIOEnums.Compression_JPEG2000


def make_scan():
    """Boxes that no flip, swap or rotation maps onto themselves: liver in two, in one of them tumour."""
    scan = np.full(SHAPE, AIR_HU, np.int16)
    scan[2:9, 3:6, 4:12] = LIVER_HU
    scan[12:18, 8:16, 6:8] = LIVER_HU
    scan[12:15, 9:11, 7] = TUMOR_HU
    return scan


SCAN = make_scan()


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


def write_enhanced(file, volume_hu, step_mm=(0, 0, 1), axes=STRAIGHT, order=None, slopes=None, tags=None):
    """Write ``volume_hu`` (columns, rows, slices) as one enhanced CT; slice k lies at k ``step_mm``.

    Its frames are the slices ``order``, each stored as HU divided by the slice's slope (those of 1 throughout).
    """
    from pydicom import Dataset, FileMetaDataset
    from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

    def only(**elements):
        item = Dataset()
        item.update(elements)
        return [item]

    count = volume_hu.shape[2]
    order = range(count) if order is None else order
    slopes = np.ones(count) if slopes is None else slopes
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = EnhancedCTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = f"{ROOT_UID}.5.1"
    header.update({
        "PatientName": "", "PatientID": "", "PatientBirthDate": "", "PatientSex": "", "StudyDate": "20200101",
        "StudyTime": "", "StudyID": "", "AccessionNumber": "", "ReferringPhysicianName": "", "Modality": "CT",
        "StudyInstanceUID": f"{ROOT_UID}.1", "SeriesInstanceUID": f"{ROOT_UID}.2.9", "SeriesNumber": 9,
        "FrameOfReferenceUID": f"{ROOT_UID}.3", "InstanceNumber": 1, "SeriesDate": "20200101",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "SamplesPerPixel": 1, "NumberOfFrames": count,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": volume_hu.shape[1], "Columns": volume_hu.shape[0],
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "DimensionOrganizationSequence": only(DimensionOrganizationUID=f"{ROOT_UID}.6"),
        "DimensionIndexSequence": only(
            DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111,
            DimensionOrganizationUID=f"{ROOT_UID}.6",
        ),
        "SharedFunctionalGroupsSequence": only(
            PixelMeasuresSequence=only(PixelSpacing=[1.5, 1.5], SliceThickness=1),
            PlaneOrientationSequence=only(ImageOrientationPatient=[float(value) for value in axes]),
        ),
        "PerFrameFunctionalGroupsSequence": [
            only(
                FrameContentSequence=only(InStackPositionNumber=k + 1, StackID="1", DimensionIndexValues=[k + 1]),
                PlanePositionSequence=only(ImagePositionPatient=[float(k * value) for value in step_mm]),
                PixelValueTransformationSequence=only(
                    RescaleSlope=float(slopes[k]), RescaleIntercept=0.0, RescaleType="HU"
                ),
            )[0]
            for k in order
        ],
    } | (tags or {}))  # fmt: skip
    stored = np.stack([np.round(volume_hu[:, :, k].T / slopes[k]) for k in order]).astype("<i2")
    header.PixelData = stored.tobytes()
    header["PixelData"].VR = "OW"
    file.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(file, enforce_file_format=True)
    return file
