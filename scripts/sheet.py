"""What do the cases of a folder look like at a glance, and beside another scan?

    python -m scripts.sheet --dataset_dir pool --output_file docs/generated.png --cases 24

Each case is an axial and a coronal plane through the middle of its liver, with the outlines of liver and tumours.
"""

import io
import os
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from scripts.cases import Case, find_cases
from scripts.commands import run_command
from scripts.errors import InputError
from scripts.files import written_whole
from scripts.headers import explain_unreadable, find_voxel_ml
from scripts.knobs import check_whole
from scripts.preview import draw_plane, middle_of, planes, to_ras

COLUMNS = 6
CLASSES = 3  # background, liver, tumour


def draw_sheet(
    dataset_dir: str | os.PathLike, output_file: str | os.PathLike, cases: int = 24, beside: str | None = None
) -> None:
    """Write a PNG with an axial and a coronal plane of each of the first ``cases`` cases of ``dataset_dir``.

    Args:
        dataset_dir: as for `find_cases`, of NIfTI files.
        output_file: the PNG.
        cases: how many at most.
        beside: another scan (a file or a DICOM folder) of which slices come below; None for none.

    Raises:
        InputError: ``cases`` is no positive whole number, or a file cannot be read.
    """
    check_whole("cases", cases, 1)
    shown = find_cases(dataset_dir)[:cases]
    slices = list(_read_slices(beside)) if beside else []
    heights = [1.0, 1.1] * -(-len(shown) // COLUMNS) + [1.0] * bool(slices)
    figure = Figure(figsize=(2 * COLUMNS, 1.8 * sum(heights)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(heights), COLUMNS, height_ratios=heights, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, case in enumerate(shown):
        row, column = 2 * (index // COLUMNS), index % COLUMNS
        _draw_case(axes[row : row + 2, column], case)
    for axis, (image, spacing_mm) in zip(axes[-1], slices, strict=False):
        draw_plane(
            axis, image, np.zeros_like(image), (image.shape[1] * spacing_mm[0], image.shape[0] * spacing_mm[1]), 1
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor="black")
    with written_whole(output_file) as temporary:  # with a palette it is half the size
        picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
        picture.save(temporary, format="PNG", optimize=True)


def _draw_case(axes: np.ndarray, case: Case) -> None:
    volumes = []
    for file in (case.image, case.label):
        try:
            nifti = nib.squeeze_image(nib.load(file))  # (X, Y, Z, 1) is one volume
            volumes.append(to_ras(np.asanyarray(nifti.dataobj), nifti.affine))
        except Exception as error:  # whatever a broken file makes nibabel run into
            raise InputError(f"{file}: {explain_unreadable(error)}") from error
    (image, spacing_mm), (label, _) = volumes
    if image.ndim != 3 or label.shape != image.shape:
        raise InputError(
            f"{case.label}: has shape {label.shape}, its image {image.shape}; they must be volumes on one grid"
        )
    center = middle_of(label > 0)
    images, labels = planes(image, center), planes(label, center)
    for axis, plane, height_mm in zip(axes, ("axial", "coronal"), spacing_mm[1:], strict=True):
        size_mm = (images[plane].shape[1] * spacing_mm[0], images[plane].shape[0] * height_mm)
        draw_plane(axis, images[plane], labels[plane], size_mm, CLASSES, 0.7)
    liver_ml = np.count_nonzero(label) * find_voxel_ml(nifti.affine)  # the label's
    axes[0].set_title(f"{case.name}, {liver_ml:.0f} ml", color="white", fontsize=6, parse_math=False)


def _read_slices(file: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Axial slices of a scan, evenly over it, and the size of its voxels in mm."""
    from monai.transforms import LoadImage  # takes seconds to import

    from scripts.scans import ScanReader

    try:
        scan = LoadImage(reader=ScanReader(), image_only=True)(file)
    except Exception as error:
        raise InputError(f"{file}: {explain_unreadable(error)}") from error
    image, spacing_mm = to_ras(scan.numpy(), scan.affine.numpy())
    for index in np.linspace(0, image.shape[2] - 1, COLUMNS).astype(int):
        yield planes(image, (0, 0, index))["axial"], spacing_mm


def main() -> None:
    """Run the command line."""
    run_command(draw_sheet)


if __name__ == "__main__":
    main()
