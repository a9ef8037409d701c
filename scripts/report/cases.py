"""What do good and bad segmentations look like (Sec. 5.2)? CT, outlines, errors, and the surface in 3D."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from monai.transforms import LoadImage
from nibabel.affines import voxel_sizes
from nibabel.processing import resample_from_to
from scipy import ndimage
from skimage.measure import marching_cubes

from scripts.data import TARGETS
from scripts.errors import InputError
from scripts.headers import NIFTI_SUFFIXES, find_voxel_ml
from scripts.preview import AIR_HU, WINDOW_HU
from scripts.report.read import REMEDY, Run
from scripts.report.statistics import defined
from scripts.scans import ScanReader

TRUTH_COLOR, PRED_COLOR = "#8cf0ff", "#ffe100"
FALSE_POSITIVE_COLOR, FALSE_NEGATIVE_COLOR = "#ffe04a", "#d81b60"  # bright and dark: told apart in greyscale
SURFACE_MM = 3.0  # voxel size of the surfaces
FAR_MM = 15.0  # upper end of the surface's colours
DISTANCE_COLORS = LinearSegmentedColormap.from_list("distance", ["#f4efe2", "#f0a33c", "#b0124b"])  # bright to dark
LIGHT = np.array([0.35, 0.75, 0.56])  # from the front, above and the patient's right
BORDER_MM = 15.0  # around the surface
PANEL_INCHES, LEGEND_INCHES, FONT_POINTS = 4.4, 0.45, 9

Plane = tuple[slice, slice, int]  # of an RAS volume: a box in an axial plane


@dataclass(frozen=True)
class Case:
    """One test case as a run segmented it, in voxels closest to RAS.

    Attributes:
        image: HU, float32 ``(X, Y, Z)``.
        truth: boolean, of one class; same shape.
        pred: boolean, likewise.
        affine: ``(4, 4)``, from voxels to mm.
    """

    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Size of a voxel along each axis."""
        return tuple(map(float, voxel_sizes(self.affine)))


def choose_cases(run: Run, class_name: str) -> dict[str, str]:
    """Return "best", "median" and "worst" → case by Dice; with fewer than three cases, as many of them."""
    dice = defined(run.values(class_name, "dice"))
    ranked = sorted(dice, key=lambda case: (dice[case], case))
    if not ranked:
        return {}
    kinds = {"best": ranked[-1], "worst": ranked[0], "median": ranked[len(ranked) // 2]}
    kind_of_case = {case: kind for kind, case in reversed(kinds.items())}
    return {kind: kinds[kind] for kind in ("best", "median", "worst") if kind_of_case[kinds[kind]] == kind}


def _load(path: str) -> nib.Nifti1Image:
    try:
        if path.lower().endswith(NIFTI_SUFFIXES):
            image = nib.squeeze_image(nib.load(path))  # (X, Y, Z, 1) is one volume
        else:
            scan = LoadImage(reader=ScanReader(), image_only=True)(path)
            image = nib.Nifti1Image(scan.numpy(), scan.affine.numpy())
        image = nib.as_closest_canonical(image)
        image.get_fdata(dtype=np.float32)
    except Exception as error:  # whatever nibabel or ITK raises on a damaged file
        raise InputError(f"{path}: cannot be read as an image ({error}); {REMEDY}") from error
    return image


def _labels_of(run: Run, class_name: str) -> list[int]:
    """Return which LiTS labels are the class in what the run was trained for."""
    for target in TARGETS.values():
        if list(target.class_names[1:]) == run.classes:
            index = target.class_names.index(class_name)
            return [label for label, class_index in enumerate(target.class_of_label) if class_index == index]
    return [run.classes.index(class_name) + 1]


def load_case(run: Run, case: str, class_name: str) -> Case | None:
    """Return a test case of a run; None if one of its files is not there (any more).

    Raises:
        InputError: if one of them is damaged, or the prediction has another grid than its image.
    """
    row = next((row for row in run.cases if row["case"] == case), None)
    if row is None:
        return None
    # in the folder where it is now, as a run may have been moved
    prediction = row["prediction"].replace("\\", "/").rpartition("/predictions/")[2]
    files = [row["image"], row["label"], str(run.folder / "evaluation/predictions" / prediction)]
    if not all(Path(file).is_file() for file in files):
        return None
    image, label, pred = map(_load, files)
    if pred.shape != image.shape or not np.allclose(pred.affine, image.affine, atol=1e-3):
        raise InputError(f"{files[2]}: has another grid than {files[0]}; evaluate the run again")
    if label.shape != image.shape or not np.allclose(label.affine, image.affine, atol=1e-3):
        label = resample_from_to(label, image, order=0)
    truth = np.isin(np.rint(label.get_fdata(dtype=np.float32)), _labels_of(run, class_name))
    found = np.rint(pred.get_fdata(dtype=np.float32)) == run.classes.index(class_name) + 1
    return Case(image.get_fdata(dtype=np.float32), truth, found, image.affine)


def body_box(image: np.ndarray) -> tuple[slice, slice]:
    """Return the axial box of what is no air, with a little around it; everything if all is air."""
    body = ndimage.binary_opening((image > AIR_HU).any(axis=2), iterations=2)
    boxes = ndimage.find_objects(body.astype(np.uint8))
    if not boxes:
        return slice(None), slice(None)
    return tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in boxes[0])


def _letters(axes: Axes, letters: str) -> None:
    """Say which direction is at the left, right, top and bottom border."""
    for letter, x, y in zip(letters, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.96, 0.04), strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, color="white", fontsize=FONT_POINTS + 1, ha="center", va="center"
        )


def _size_mm(case: Case, plane: Plane) -> tuple[float, float]:
    width, height = case.image[plane].shape
    return width * case.spacing_mm[0], height * case.spacing_mm[1]


def _show(axes: Axes, plane: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Show an axial plane ``(X, Y)`` in RAS as radiologists do: patient's right at the left, front at the top."""
    low, high = WINDOW_HU
    extent = {"extent": (0, plane.shape[0] * spacing_mm[0], plane.shape[1] * spacing_mm[1], 0)}
    axes.imshow(plane[::-1, ::-1].T, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **extent)
    axes.set_axis_off()
    _letters(axes, "RLAP")
    return extent


def _outline(axes: Axes, mask: np.ndarray, spacing_mm: Sequence[float], color: str, linestyle: str) -> None:
    mask = np.pad(mask[::-1, ::-1].T, 1).astype(float)
    if mask.any():
        x = (np.arange(mask.shape[1]) - 0.5) * spacing_mm[0]
        y = (np.arange(mask.shape[0]) - 0.5) * spacing_mm[1]
        axes.contour(x, y, mask, levels=[0.5], colors=color, linewidths=1.5, linestyles=linestyle)


def surface_of(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertices, triangles and normals of a boolean mask's surface, smoothed to about `SURFACE_MM`.

    Vertices are in mm from the first voxel's corner, normals of length 1 point outwards.
    """
    spacing = np.asarray(spacing_mm)
    coarse = ndimage.zoom(
        ndimage.gaussian_filter(np.pad(mask, 2).astype(np.float32), 0.8 * SURFACE_MM / spacing),
        spacing / SURFACE_MM, order=1, grid_mode=True, mode="grid-constant",
    )  # fmt: skip
    if coarse.max() <= 0.5:
        return np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 3))
    vertices, triangles, normals, _ = marching_cubes(np.pad(coarse, 1), 0.5)
    voxel_mm = spacing * (np.array(mask.shape) + 4) / coarse.shape
    return (vertices - 0.5) * voxel_mm - 2 * spacing, triangles, normals


def distance_to_surface(mask: np.ndarray, spacing_mm: Sequence[float], points_mm: np.ndarray) -> np.ndarray:
    """Return how far each point (N, 3), in mm from the first voxel's corner, is from the surface of a boolean mask.

    Where the mask is cut off by the volume's border, there is a surface too.
    """
    mask = np.pad(mask, 1)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    distance = np.maximum(outside, inside) - 0.5 * np.mean(spacing_mm)
    index = (points_mm / np.asarray(spacing_mm) + 0.5).T  # - 0.5 to the voxels' centres, + 1 for the padding
    return np.maximum(ndimage.map_coordinates(distance, index, order=1, mode="nearest"), 0)


def _canvas(size_mm: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a black picture as wide as all panels, high enough for ``size_mm`` (width, height), and its axes."""
    width, height = size_mm
    inches = PANEL_INCHES * min(max(height / width, 0.5), 1.2)
    figure = Figure(figsize=(PANEL_INCHES, inches + LEGEND_INCHES), facecolor="black", layout="constrained")
    return figure, figure.subplots(subplot_kw={"facecolor": "black"})


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, labelcolor="white", frameon=False, fontsize=FONT_POINTS
    )


def draw_outlines(case: Case, plane: Plane) -> Figure:
    """The axial plane with the outlines of truth and prediction."""
    figure, axes = _canvas(_size_mm(case, plane))
    _show(axes, case.image[plane], case.spacing_mm)
    _outline(axes, case.truth[plane], case.spacing_mm, TRUTH_COLOR, "-")
    _outline(axes, case.pred[plane], case.spacing_mm, PRED_COLOR, "--")
    _legend(
        figure,
        [
            Line2D([], [], color=TRUTH_COLOR, label="truth"),
            Line2D([], [], color=PRED_COLOR, ls="--", label="prediction"),
        ],
    )
    return figure


def draw_errors(case: Case, plane: Plane) -> Figure:
    """The axial plane with what is wrongly included and what is missed."""
    figure, axes = _canvas(_size_mm(case, plane))
    extent = _show(axes, case.image[plane], case.spacing_mm)
    truth, pred = case.truth[plane], case.pred[plane]
    colors = np.zeros((*truth.shape, 4))
    colors[pred & ~truth] = to_rgba(FALSE_POSITIVE_COLOR)
    colors[truth & ~pred] = to_rgba(FALSE_NEGATIVE_COLOR)
    axes.imshow(colors[::-1, ::-1].transpose(1, 0, 2), interpolation="nearest", **extent)
    kinds = {"wrongly included": FALSE_POSITIVE_COLOR, "missed": FALSE_NEGATIVE_COLOR}
    _legend(figure, [Patch(color=color, label=label) for label, color in kinds.items()])
    return figure


def _paint_surface(axes: Axes, truth: np.ndarray, pred: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Paint the surface of ``pred`` as seen from the front, lit, coloured by its distance to that of ``truth``."""
    vertices, triangles, normals = surface_of(pred, spacing_mm)
    if not len(triangles):
        axes.text(0.5, 0.02, "nothing predicted", transform=axes.transAxes, color="white", ha="center", va="bottom")
        return
    distances = np.full(len(vertices), FAR_MM)
    if truth.any():
        distances = distance_to_surface(truth, spacing_mm, vertices)
    facing = normals[triangles].mean(axis=1)
    colors = ScalarMappable(Normalize(0, FAR_MM), DISTANCE_COLORS).to_rgba(distances[triangles].mean(axis=1))
    colors[:, :3] *= (0.3 + 0.7 * np.clip(facing @ LIGHT, 0, 1))[:, None]
    order = np.argsort(vertices[triangles][:, :, 1].mean(axis=1))  # from the back to the front
    order = order[facing[order, 1] > -0.1]
    corners = vertices[triangles[order]][:, :, [0, 2]]
    axes.add_collection(PolyCollection(corners, facecolors=colors[order], edgecolors="none", antialiaseds=False))


def draw_surface(case: Case, plane: Plane) -> Figure:
    """The prediction's surface from the front, coloured by its distance to the true one, whose silhouette is a line.

    It is an orthographic view: the patient's right at the left, head at the top.
    """
    figure, axes = _canvas(_size_mm(case, plane))
    axes.set_axis_off()
    box = (ndimage.find_objects((case.truth | case.pred).astype(np.uint8)) or [(slice(0, 1),) * 3])[0]
    truth, pred = case.truth[box], case.pred[box]
    _paint_surface(axes, truth, pred, case.spacing_mm)
    silhouette = np.pad(truth.any(axis=1).T, 1).astype(float)
    if silhouette.any():
        x = (np.arange(silhouette.shape[1]) - 0.5) * case.spacing_mm[0]
        z = (np.arange(silhouette.shape[0]) - 0.5) * case.spacing_mm[2]
        axes.contour(x, z, silhouette, levels=[0.5], colors=TRUTH_COLOR, linewidths=1.5)
    axes.set_xlim(truth.shape[0] * case.spacing_mm[0] + BORDER_MM, -BORDER_MM)  # x grows to the patient's right
    axes.set_ylim(-BORDER_MM, truth.shape[2] * case.spacing_mm[2] + BORDER_MM)
    axes.set_aspect("equal")
    _letters(axes, "RLSI")
    colorbar = figure.colorbar(
        ScalarMappable(Normalize(0, FAR_MM), DISTANCE_COLORS), ax=axes, location="bottom", extend="max", aspect=30,
        fraction=0.06, pad=0.02,
    )  # fmt: skip
    colorbar.set_label("mm to the true surface; line: its silhouette", color="white", fontsize=FONT_POINTS)
    colorbar.ax.tick_params(colors="white", labelsize=FONT_POINTS)
    return figure


PANELS = {"outlines": draw_outlines, "errors": draw_errors, "surface": draw_surface}


def axial_plane(case: Case) -> Plane:
    """Return the body's box in the axial plane with most of the truth (of the prediction, if there is no truth)."""
    shown = case.truth if case.truth.any() else case.pred
    return (*body_box(case.image), int(shown.sum(axis=(0, 1)).argmax()))


def volumes_of_errors_ml(case: Case) -> tuple[float, float]:
    """Return what is wrongly included and what is missed, in ml."""
    voxel_ml = find_voxel_ml(case.affine)
    return (case.pred & ~case.truth).sum() * voxel_ml, (case.truth & ~case.pred).sum() * voxel_ml
