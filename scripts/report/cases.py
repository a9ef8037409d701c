"""What do good and bad segmentations look like (Sec. 5.2)? CT, outlines, errors, and the surface in 3D."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from nibabel.processing import resample_from_to
from scipy import ndimage
from skimage.measure import marching_cubes

from scripts.data import TARGETS
from scripts.errors import InputError
from scripts.preview import AIR_HU, WINDOW_HU
from scripts.report.read import REMEDY, Run
from scripts.report.statistics import defined

TRUTH_COLOR, PRED_COLOR = "#8cf0ff", "#ffe100"
FALSE_POSITIVE_COLOR, FALSE_NEGATIVE_COLOR = "#ffe04a", "#d81b60"  # bright and dark: told apart in greyscale
SURFACE_MM = 3.0  # voxel size of the surfaces
FAR_MM = 15.0  # upper end of the surface's colours


@dataclass(frozen=True)
class Case:
    """One test case as a run segmented it, in voxels closest to RAS.

    Attributes:
        image: HU, float32 ``(X, Y, Z)``.
        truth: boolean, of the run's foreground classes; same shape.
        pred: boolean, likewise.
        spacing_mm: size of a voxel.
    """

    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray
    spacing_mm: tuple[float, float, float]


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
        image = nib.as_closest_canonical(nib.load(path))
        image.get_fdata(dtype=np.float32)
    except Exception as error:  # whatever nibabel raises on a damaged file
        raise InputError(f"{path}: cannot be read as an image ({error}); {REMEDY}") from error
    return image


def _labels_of_foreground(run: Run) -> list[int]:
    """Return which LiTS labels are foreground in what the run was trained for."""
    for target in TARGETS.values():
        if list(target.class_names[1:]) == run.classes:
            return [label for label, index in enumerate(target.class_of_label) if index]
    return [1, 2]


def load_case(run: Run, case: str) -> Case | None:
    """Return a test case of a run; None if one of its files is not there (any more).

    Raises:
        InputError: if one of them is damaged, or the prediction has another grid than its image.
    """
    row = next((row for row in run.cases if row["case"] == case), None)
    if row is None:
        return None
    # by its name, so that a run folder may have been moved since
    files = [row["image"], row["label"], str(run.folder / "evaluation/predictions" / Path(row["prediction"]).name)]
    if not all(Path(file).is_file() for file in files):
        return None
    image, label, pred = map(_load, files)
    if pred.shape != image.shape or not np.allclose(pred.affine, image.affine, atol=1e-3):
        raise InputError(f"{files[2]}: has another grid than {files[0]}; evaluate the run again")
    if label.shape != image.shape or not np.allclose(label.affine, image.affine, atol=1e-3):
        label = resample_from_to(label, image, order=0)
    truth = np.isin(np.rint(label.get_fdata(dtype=np.float32)), _labels_of_foreground(run))
    spacing_mm = tuple(float(size) for size in image.header.get_zooms()[:3])
    return Case(image.get_fdata(dtype=np.float32), truth, pred.get_fdata(dtype=np.float32) > 0.5, spacing_mm)


def body_box(image: np.ndarray) -> tuple[slice, slice]:
    """Return the axial box of what is no air, with a little around it; everything if all is air."""
    body = ndimage.binary_opening((image > AIR_HU).any(axis=2), iterations=2)
    boxes = ndimage.find_objects(body.astype(np.uint8))
    if not boxes:
        return slice(None), slice(None)
    return tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in boxes[0])


def _show(axes: Axes, plane: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Show an axial plane ``(X, Y)`` in RAS as radiologists do: patient's right at the left, front at the top."""
    width, height = plane.shape[0] * spacing_mm[0], plane.shape[1] * spacing_mm[1]
    low, high = WINDOW_HU
    extent = {"extent": (0, width, height, 0)}
    axes.imshow(plane[::-1, ::-1].T, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **extent)
    axes.set_axis_off()
    for letter, x, y in (("R", 0.02, 0.5), ("L", 0.98, 0.5), ("A", 0.5, 0.97), ("P", 0.5, 0.03)):
        axes.text(x, y, letter, transform=axes.transAxes, color="white", fontsize=9, ha="center", va="center")
    return extent


def _outline(axes: Axes, mask: np.ndarray, spacing_mm: Sequence[float], color: str, linestyle: str) -> None:
    mask = np.pad(mask[::-1, ::-1].T, 1).astype(float)
    if mask.any():
        x = (np.arange(mask.shape[1]) - 0.5) * spacing_mm[0]
        y = (np.arange(mask.shape[0]) - 0.5) * spacing_mm[1]
        axes.contour(x, y, mask, levels=[0.5], colors=color, linewidths=1.5, linestyles=linestyle)


def _draw_errors(axes: Axes, case: Case, plane: tuple[slice, slice, int]) -> None:
    extent = _show(axes, case.image[plane], case.spacing_mm)
    truth, pred = case.truth[plane], case.pred[plane]
    colors = np.zeros((*truth.shape, 4))
    for mask, color in ((pred & ~truth, FALSE_POSITIVE_COLOR), (truth & ~pred, FALSE_NEGATIVE_COLOR)):
        colors[mask] = [*(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0]
    axes.imshow(colors[::-1, ::-1].transpose(1, 0, 2), interpolation="nearest", **extent)


def surface_of(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertices, triangles and normals of a boolean mask's surface, smoothed to about `SURFACE_MM`.

    Vertices are in mm from the first voxel's corner, normals of length 1 point outwards.
    """
    spacing = np.asarray(spacing_mm)
    coarse = ndimage.zoom(
        ndimage.gaussian_filter(np.pad(mask, 2).astype(np.float32), 0.5 * SURFACE_MM / spacing),
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


def _draw_surface(axes: Any, case: Case) -> None:
    """Draw the prediction's surface from the front, coloured by its distance to the true one."""
    vertices, triangles, normals = surface_of(case.pred, case.spacing_mm)
    axes.set_axis_off()
    if not len(triangles) or not case.truth.any():
        axes.text2D(0.5, 0.5, "no surface", transform=axes.transAxes, color="white", ha="center")
        return
    distances = distance_to_surface(case.truth, case.spacing_mm, vertices)[triangles].mean(axis=1)
    light = np.clip(normals[triangles].mean(axis=1) @ np.array([0.35, 0.75, 0.55]), 0, None)  # from the front, above
    colors = ScalarMappable(Normalize(0, FAR_MM), "cividis").to_rgba(distances)
    colors[:, :3] *= (0.35 + 0.65 * light / max(light.max(), 1e-6))[:, None]
    axes.add_collection3d(Poly3DCollection(vertices[triangles], facecolors=colors, antialiased=False))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    for set_limits, start, stop in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), low, high, strict=True):
        set_limits(start, stop)
    axes.set_box_aspect(high - low, zoom=1.25)
    axes.view_init(elev=8, azim=90)  # RAS seen from the front: the patient's right at the left
    for letter, x, y in (("R", 0.04, 0.5), ("L", 0.96, 0.5), ("S", 0.5, 0.95), ("I", 0.5, 0.05)):
        axes.text2D(x, y, letter, transform=axes.transAxes, color="white", fontsize=9, ha="center", va="center")


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=TRUTH_COLOR, label="truth"),
        Line2D([], [], color=PRED_COLOR, linestyle="--", label="prediction"),
        Patch(color=FALSE_POSITIVE_COLOR, label="wrongly included"),
        Patch(color=FALSE_NEGATIVE_COLOR, label="missed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, labelcolor="white", frameon=False, fontsize=11)


def draw_case(runs: Sequence[Run], cases: Sequence[Case], class_name: str, name: str) -> Figure:
    """One test case, a row per run: axial CT with both outlines, the errors there, and the prediction's surface.

    The plane is the axial one with most of the truth (of the prediction, if there is no truth).
    """
    figure = Figure(figsize=(11, 3.6 * len(runs) + 0.7), facecolor="black", layout="constrained")
    rows = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    truth = cases[0].truth if cases[0].truth.any() else cases[0].pred
    plane = (*body_box(cases[0].image), int(truth.sum(axis=(0, 1)).argmax()))
    for subfigure, run, case in zip(rows, runs, cases, strict=True):
        subfigure.set_facecolor("black")
        outlines, errors = (subfigure.add_subplot(1, 3, column) for column in (1, 2))
        surface = subfigure.add_subplot(1, 3, 3, projection="3d", facecolor="black", computed_zorder=False)
        _show(outlines, case.image[plane], case.spacing_mm)
        _outline(outlines, case.truth[plane], case.spacing_mm, TRUTH_COLOR, "-")
        _outline(outlines, case.pred[plane], case.spacing_mm, PRED_COLOR, "--")
        _draw_errors(errors, case, plane)
        _draw_surface(surface, case)
        voxel_ml = float(np.prod(case.spacing_mm)) / 1000
        excess, missed = ((a & ~b).sum() * voxel_ml for a, b in ((case.pred, case.truth), (case.truth, case.pred)))
        dice = run.values(class_name, "dice").get(name, float("nan"))
        subfigure.suptitle(
            f"{run.name}: Dice {dice:.3f}, {excess:.0f} ml wrongly included, {missed:.0f} ml missed",
            color="white", fontsize=12,
        )  # fmt: skip
        bar = subfigure.colorbar(
            ScalarMappable(Normalize(0, FAR_MM), "cividis"), ax=surface, shrink=0.7, aspect=18, extend="max"
        )
        bar.set_label("distance to the true surface, mm", color="white")
        bar.ax.tick_params(colors="white")
    _legend(figure)
    return figure
