"""How a segmented scan is shown: three planes through its middle, outlined, as a radiologist expects to see them."""

import os
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.utils import convert_to_numpy
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import ArrayLike
from scipy import ndimage

from scripts.files import written_whole

WINDOW_HU = (-160.0, 240.0)  # abdominal window: level 40, width 400
AIR_HU = -500.0
CLASS_COLORS = ("#ff4040", "#ffd000", "#40c0ff")  # first, second, third foreground class
BAR_MM = 50.0
BORDERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # at the left, right, top, bottom border


def to_ras(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the volume with its axes flipped and swapped to the closest of RAS, and the size of its voxels in mm."""
    image = nib.as_closest_canonical(nib.Nifti1Image(volume, affine, dtype=volume.dtype))
    return np.asanyarray(image.dataobj), np.array(image.header.get_zooms())


def planes(volume: np.ndarray, center: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the axial, coronal and sagittal plane of an RAS volume, rows downwards, patient's right at the left."""
    x, y, z = center
    return {
        "axial": volume[::-1, ::-1, z].T,
        "coronal": volume[::-1, y, ::-1].T,
        "sagittal": volume[x, ::-1, ::-1].T,
    }


def middle_of(mask: np.ndarray) -> tuple[int, int, int]:
    """Return the voxel whose three planes show most of a boolean mask; the middle of the volume if it is empty."""
    if not mask.any():
        return tuple(size // 2 for size in mask.shape)
    return tuple(int(np.argmax(mask.sum(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3))


def _body_box(image: np.ndarray) -> tuple[slice, ...]:
    """Return the box of what is no air, 5 voxels larger on every side; the whole volume if all is air."""
    boxes = ndimage.find_objects((image > AIR_HU).astype(np.uint8))
    if not boxes:
        return tuple(slice(0, size) for size in image.shape)
    return tuple(slice(max(axis.start - 5, 0), axis.stop + 5) for axis in boxes[0])


def draw_preview(
    image: ArrayLike,
    mask: ArrayLike,
    affine: ArrayLike,
    class_names: Sequence[str],
    path: str | os.PathLike,
    title: str = "",
    reference: ArrayLike | None = None,
) -> None:
    """Write a PNG with the axial, coronal and sagittal plane of a CT, the outline of each class on it.

    The planes are those that show most of the last class present (the tumour, if any); axial as seen from the feet,
    with its number, the window and a bar of 50 mm below it. Air around the body is cut off.

    Args:
        image: HU ``(X, Y, Z)``.
        mask: class indices of the same shape.
        affine: voxel → RAS mm, 4 × 4. Of oblique grids the closest orthogonal view is drawn.
        class_names: of all classes, background first.
        path: of the PNG.
        title: above the picture.
        reference: another mask, whose classes are outlined in white dashes.
    """
    reference = np.zeros(np.shape(mask)) if reference is None else reference
    image, spacing_mm = to_ras(np.asarray(image, dtype=np.float32), np.asarray(affine))
    mask, reference = (to_ras(convert_to_numpy(m, np.uint8), np.asarray(affine))[0] for m in (mask, reference))
    box, slices = _body_box(image), image.shape[2]
    image, mask, reference = image[box], mask[box], reference[box]
    center = middle_of((mask == mask.max()) & (mask > 0))
    image_planes, mask_planes, reference_planes = (planes(volume, center) for volume in (image, mask, reference))
    width_mm, depth_mm, height_mm = np.array(image.shape) * spacing_mm
    sizes_mm = {"axial": (width_mm, depth_mm), "coronal": (width_mm, height_mm), "sagittal": (depth_mm, height_mm)}

    figure = Figure(figsize=(14, 7), facecolor="black", layout="constrained")
    figure.get_layout_engine().set(hspace=0.1)  # room for a letter below one plane and another above the next
    layout = [["axial", "coronal"], ["axial", "sagittal"]]
    axes = figure.subplot_mosaic(layout, width_ratios=[1.2, 1])
    for plane, axis in axes.items():
        masks = {"mask": mask_planes[plane], "reference": reference_planes[plane]}
        draw_plane(axis, image_planes[plane], size_mm=sizes_mm[plane], num_classes=len(class_names), **masks)
        for letter, (x, y) in zip(BORDERS[plane], ((0, 0.5), (1, 0.5), (0.5, 1), (0.5, 0)), strict=True):
            offset_points = (np.array([x, y]) - 0.5) * 28
            place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "center"}
            axis.annotate(letter, (x, y), offset_points, color="white", fontsize=12, **place)
    low, high = WINDOW_HU
    number = f"slice {box[2].start + center[2] + 1} of {slices} from the feet"
    window = f"level {(low + high) / 2:.0f}, width {high - low:.0f} HU"
    axes["axial"].text(0, -0.06, f"{number}\n{window}", color="white", va="top", transform=axes["axial"].transAxes)
    corner = {"loc": "upper right", "bbox_to_anchor": (1, -0.04), "bbox_transform": axes["axial"].transAxes}
    look = {"frameon": False, "color": "white", "label_top": True, "size_vertical": 2, "borderpad": 0}
    axes["axial"].add_artist(AnchoredSizeBar(axes["axial"].transData, BAR_MM, f"{BAR_MM:.0f} mm", **corner, **look))
    text = title.encode(errors="replace").decode()  # of file names of any bytes, which are no formulas either
    figure.suptitle(text, color="white", fontsize=14, parse_math=False)
    outlines = [Line2D([], [], color=_color(index), label=name) for index, name in enumerate(class_names) if index]
    figure.legend(handles=outlines, loc="outside lower center", ncols=len(outlines), labelcolor="white", frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100, facecolor="black")


def _color(class_index: int) -> str:
    return CLASS_COLORS[(class_index - 1) % len(CLASS_COLORS)]


def draw_plane(
    axis: Axes,
    image: np.ndarray,
    mask: np.ndarray,
    size_mm: tuple[float, float],
    num_classes: int,
    line_width: float = 1.2,
    reference: np.ndarray | None = None,
) -> None:
    """Show a plane of HU with rows downwards, and the outlines of the classes of ``mask``, dashed of ``reference``."""
    width_mm, height_mm = size_mm
    low, high = WINDOW_HU
    extent = (0, width_mm, height_mm, 0)
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    rows, columns = mask.shape
    mask = np.pad(mask, 1)  # an outline closes at the border of the picture too
    x = (np.arange(-1, columns + 1) + 0.5) * width_mm / columns
    y = (np.arange(-1, rows + 1) + 0.5) * height_mm / rows
    for index in range(1, num_classes):
        if (mask == index).any():
            axis.contour(x, y, mask == index, levels=[0.5], colors=_color(index), linewidths=line_width)
        if reference is not None and (reference == index).any():
            dashes = {"colors": "white", "linewidths": 0.7 * line_width, "linestyles": "dashed"}
            axis.contour(x, y, np.pad(reference == index, 1), levels=[0.5], **dashes)
    axis.set(xlim=(0, width_mm), ylim=(height_mm, 0))
    axis.set_axis_off()
