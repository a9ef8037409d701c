"""One small CT and one small bundle with weights, which every client segments: the same mask, whatever the client.

For the tests of any client and export. Nothing here needs more than requirements.txt, and all of it takes seconds: the
CT is a generated patient, the network a narrow MPU-Net with random weights, seeded, whose masks are large and ragged:
a voxel out of place shows. `tests/clients/conftest.py` has both as fixtures.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from scripts.data import class_names
from scripts.networks import MPUNet
from scripts.pack import list_files
from scripts.phantom.scan import make_phantom
from scripts.settings import describe_training, write_settings
from tests import ROOT
from tests.dicoms import STRAIGHT, write_series

SIZE, SPACING_MM = (72, 60, 40), (4.5, 4.5, 5.0)
TAGS = {"0020|0011": "1", "0018|0050": str(SPACING_MM[2])}  # series number, slice thickness: MONAI Deploy asks for them
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = (0.96, 0.28, 0, -0.28, 0.96, 0)  # direction of a row, and of a column: turned by 16 degrees
SETTINGS = {  # so that there is resampling, and many windows
    "spacing": [4.0, 4.0, 4.0], "plane_size": None, "window_hu": [-160, 240], "roi_size": [48, 48, 32]
}  # fmt: skip
OTHER = {
    "target": "tumor",
    "spacing": [6.0, 6.0, 6.0],
    "window_hu": [0, 80],
    "roi_size": [32, 32, 32],
    "norm": "instance",
}
CHANNELS = [4, 4, 8, 8, 8]
WEIGHTS = "models/model.pt"


@dataclass(frozen=True)
class Scan:
    """The CT as files, each on the same grid.

    Attributes:
        dicom: folder of the series; the names of its files are in reversed order.
        nifti: file, whose voxels lie in memory as the slices do: ``(columns, rows, slices)``.
        affine: ``(4, 4)``, from voxels of ``nifti`` to RAS mm.
        label: ``(columns, rows, slices)`` uint8: 0 background, 1 liver, 2 tumour.
    """

    dicom: Path
    nifti: Path
    affine: np.ndarray
    label: np.ndarray


def write_scan(folder: Path, axes: Sequence[float] = STRAIGHT, seed: int = 3) -> Scan:
    """Write the CT of a generated patient as a DICOM series, and as NIfTI on the grid of its slices.

    Args:
        folder: where to write.
        axes: directions of a row and a column in LPS, see `tests.dicoms`; the default gives an LPS image.
        seed: of the patient.
    """
    phantom = make_phantom(seed, SIZE, SPACING_MM, reorient=False)
    image, label = phantom.image[::-1, ::-1], phantom.label[::-1, ::-1]  # RAS to LPS: a row goes to the left
    start_mm = (-160.0, -130.0, 17.0)
    row, column = np.array(axes[:3]), np.array(axes[3:])
    step_mm = np.cross(row, column) * SPACING_MM[2]
    write_series(folder / "dicom", image, step_mm, start_mm, axes=axes, spacing_mm=SPACING_MM[:2], tags=TAGS)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * SPACING_MM[0], column * SPACING_MM[1], step_mm, start_mm])
    affine = LPS_TO_RAS @ affine
    nifti = folder / "ct.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(image), affine), nifti)
    return Scan(folder / "dicom", nifti, affine, np.ascontiguousarray(label))


def copy_bundle(folder: Path) -> Path:
    """Write a copy of the bundle, as downloaded, without weights, but with the settings of others; return it."""
    for name in list_files(ROOT):
        if not name.startswith("models/") or name.endswith(".md"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    write_settings(OTHER, folder / WEIGHTS)
    return folder


def write_bundle(folder: Path, target: str = "liver") -> Path:
    """Write a copy of the bundle with a narrow network for ``target``, as a training leaves it; return it.

    The configs are the bundle's own: what is special about the weights is in the settings beside them.
    """
    copy_bundle(folder)
    torch.manual_seed(0)
    network = MPUNet(out_channels=len(class_names(target)), channels=CHANNELS)
    torch.save(network.state_dict(), folder / WEIGHTS)
    write_settings(describe_training(network, target=target, **SETTINGS), folder / WEIGHTS)
    return folder


def segment(
    bundle: Path, image: Path, output_dir: Path, config: str = "configs/inference.json", amp: bool = True
) -> nib.Nifti1Image:
    """Return the mask that ``monai.bundle run`` makes of ``image``, a file or a DICOM folder, in a process of its own.

    It is that of the bundle's own command, which the tests of scripts/ hold to the image's grid.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, "--amp", str(amp)]
    options = ["--dataset_dir", str(image), "--output_dir", str(output_dir), "--preview", "false"]
    subprocess.run([*command, *options], cwd=bundle, check=True, capture_output=True, timeout=300)
    (path,) = output_dir.rglob("*_seg.nii.gz")
    return nib.load(path)


def assert_same_mask(mask: nib.Nifti1Image, expected: nib.Nifti1Image) -> None:
    """Compare voxels and where they lie; masks may differ in the order and direction of their axes."""
    mask = nib.as_closest_canonical(mask)
    expected = nib.as_closest_canonical(expected)
    np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-3)
    np.testing.assert_array_equal(np.squeeze(np.asarray(mask.dataobj)), np.asarray(expected.dataobj))


def read_segments(path, shape, affine):
    """Return a DICOM SEG and {segment number: mask}, by each frame's own position, by nothing but pydicom.

    Args:
        path: of a SEG.
        shape: (columns, rows, slices) of the source.
        affine: of the source, voxels to RAS mm.
    """
    import pydicom  # not in requirements.txt

    seg = pydicom.dcmread(path)
    assert seg.Modality == "SEG"
    to_voxels = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ affine)
    shared = seg.SharedFunctionalGroupsSequence[0]  # where a thing is that all frames have in common
    masks = {item.SegmentNumber: np.zeros(shape, np.uint8) for item in seg.SegmentSequence}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = [*map(float, groups.PlanePositionSequence[0].ImagePositionPatient), 1]
        voxel = to_voxels @ position
        np.testing.assert_allclose(voxel[:2], 0, atol=1e-3)
        of_frame = groups if "SegmentIdentificationSequence" in groups else shared
        number = of_frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        masks[number][:, :, round(voxel[2])] = frame.T
    return seg, masks
