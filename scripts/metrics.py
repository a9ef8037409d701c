"""How good a segmentation is: the paper's six measures (Sec. 4.3, Eq. 20-25) by their true definitions, and more.

The paper's tables head two columns with other names than what its release computed: its "precision" is sensitivity,
TP / (TP + FN), and its "specificity" is the negative predictive value, TN / (TN + FN). Here both have their names.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import compute_average_surface_distance, compute_confusion_matrix_metric, compute_hausdorff_distance
from monai.utils import ImageMetaKey
from torch import Tensor

from scripts.headers import find_voxel_ml, output_name

# name of ours → MONAI's, of the measures that follow from the four counts of a confusion matrix
OVERLAP_METRICS = {
    "dice": "f1 score",  # Eq. 20
    "accuracy": "accuracy",  # Eq. 21
    "precision": "precision",  # Eq. 22
    "specificity": "specificity",  # Eq. 23
    "iou": "threat score",  # Eq. 24
    "mcc": "matthews correlation coefficient",  # Eq. 25
    "sensitivity": "sensitivity",
    "npv": "negative predictive value",
}
SURFACE_METRICS = ("hd95_mm", "assd_mm")


def overlap_metrics(pred: Tensor, label: Tensor) -> dict[str, float]:
    """Return every measure of `OVERLAP_METRICS` of two boolean masks of one shape; NaN where it divides by zero."""
    # counted here, as MONAI's get_confusion_matrix counts in float32: wrong by voxels in volumes of over 2²⁴
    tp, fp, tn, fn = pred & label, pred & ~label, ~pred & ~label, ~pred & label
    confusion = torch.stack([mask.sum() for mask in (tp, fp, tn, fn)]).double()
    return {
        name: float(compute_confusion_matrix_metric(monai_name, confusion))
        for name, monai_name in OVERLAP_METRICS.items()
    }


def surface_metrics(pred: Tensor, label: Tensor, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the 95th percentile of the Hausdorff distance and the average symmetric surface distance, in mm.

    NaN if either mask is empty: there is no distance to a surface that does not exist.

    Args:
        pred: boolean mask ``(H, W, D)``.
        label: boolean mask of the same shape.
        spacing_mm: size of a voxel along each axis.
    """
    if not pred.any() or not label.any():
        return dict.fromkeys(SURFACE_METRICS, math.nan)
    masks = {"y_pred": pred[None, None], "y": label[None, None], "include_background": True}
    spacing = [float(size) for size in spacing_mm]
    hd95 = compute_hausdorff_distance(**masks, percentile=95, spacing=spacing)
    assd = compute_average_surface_distance(**masks, symmetric=True, spacing=spacing)
    return {"hd95_mm": float(hd95), "assd_mm": float(assd)}


def summarize(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per metric: mean, standard deviation (n - 1), median, minimum, maximum, and how many are defined.

    Undefined (NaN) values are left out; with none left all are NaN and ``cases`` is 0.
    """
    summary = []
    for metric in metrics:
        values = np.array([row[metric] for row in rows], dtype=float)
        values = values[~np.isnan(values)]
        statistics = {
            "mean": values.mean() if values.size else math.nan,
            "sd": values.std(ddof=1) if values.size > 1 else math.nan,
            "median": np.median(values) if values.size else math.nan,
            "minimum": values.min() if values.size else math.nan,
            "maximum": values.max() if values.size else math.nan,
        }
        summary.append(
            {"metric": metric, "cases": int(values.size)} | {name: float(value) for name, value in statistics.items()}
        )
    return summary


def gather_cases(rows: list[dict[str, Any]], rows_per_case: int) -> list[dict[str, Any]]:
    """Return the rows of all processes, among which the cases were dealt out in turn, in the order of the cases."""
    if idist.get_world_size() == 1:
        return rows
    cases = [rows[start : start + rows_per_case] for start in range(0, len(rows), rows_per_case)]
    of_processes: list[list[list[dict[str, Any]]]] = [[] for _ in range(idist.get_world_size())]
    dist.all_gather_object(of_processes, cases)
    dealt = itertools.chain.from_iterable(itertools.zip_longest(*of_processes, fillvalue=[]))
    return list(itertools.chain.from_iterable(dealt))


class SegmentationMetrics(Metric):
    """Every measure of every case and class, as an Ignite metric.

    Attached as ``name``, it puts into ``engine.state.metrics`` the mean of each measure over cases and foreground
    classes under the measure's name (with several foreground classes also ``measure_class``), and into
    ``engine.state.metric_details[name]`` its `rows`. Attached as ``dice``, it makes Dice the engine's key metric.

    `update` takes (predictions, labels): class indices ``(1, H, W, D)`` each, as MONAI's engines decollate them.
    Each row has the files of its image (as the prediction's metadata name it), its label and its saved prediction, if
    any. Cases are named by the image, else by the label; spacing comes from the label's metadata, else it is 1 mm.

    Args:
        class_names: of all classes, background first.
        surface: also measure surface distances (seconds for a large volume).
        output_transform: from the engine's output to the two lists.
    """

    def __init__(
        self, class_names: Sequence[str], surface: bool = True, output_transform: Callable = lambda output: output
    ):
        self.foreground = list(enumerate(class_names))[1:]
        self.surface = surface
        super().__init__(output_transform)

    def reset(self) -> None:
        """Forget all cases."""
        self.rows: list[dict[str, Any]] = []

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Measure each case of a batch.

        Raises:
            ValueError: if a prediction and its label differ in shape.
        """
        for pred, label in zip(*output, strict=True):
            if pred.shape != label.shape:
                raise ValueError(f"prediction has shape {tuple(pred.shape)}, its label {tuple(label.shape)}")
            affine = label.affine if isinstance(label, MetaTensor) else torch.eye(4)
            files = {
                "image": _metadata(pred, ImageMetaKey.FILENAME_OR_OBJ),
                "label": _metadata(label, ImageMetaKey.FILENAME_OR_OBJ),
                "prediction": _metadata(pred, "saved_to"),
            }
            number = len(self.rows) // len(self.foreground)
            path = files["image"] or files["label"]
            case = output_name(path) if path else f"case-{number}"
            # where memory did not suffice, a prediction is not on the label's device
            pred_classes, label_classes = (torch.as_tensor(mask)[0].detach().to(label.device) for mask in (pred, label))
            for index, class_name in self.foreground:
                self.rows.append(
                    {"case": case, "class": class_name}
                    | self._measure(pred_classes == index, label_classes == index, affine)
                    | files
                )

    def _measure(self, pred: Tensor, label: Tensor, affine: Tensor) -> dict[str, float]:
        voxel_ml = find_voxel_ml(affine)
        measures = overlap_metrics(pred, label)
        if self.surface:
            measures |= surface_metrics(pred, label, affine_to_spacing(affine).tolist())
        return measures | {
            "volume_ml": float(pred.sum()) * voxel_ml,
            "reference_volume_ml": float(label.sum()) * voxel_ml,
        }

    def compute(self) -> dict[str, float]:
        """Return the means described above.

        Raises:
            NotComputableError: before any case was measured.
        """
        if not self.rows:
            raise NotComputableError("no case was measured")
        metrics = [*OVERLAP_METRICS, *(SURFACE_METRICS if self.surface else ())]
        means = {row["metric"]: row["mean"] for row in summarize(self.rows, metrics)}
        if len(self.foreground) > 1:
            for _, class_name in self.foreground:
                of_class = [row for row in self.rows if row["class"] == class_name]
                means |= {f"{row['metric']}_{class_name}": row["mean"] for row in summarize(of_class, metrics)}
        return means

    def completed(self, engine: Engine, name: str) -> None:
        """Put the means and the rows, those of all processes, into the engine's state."""
        self.rows = gather_cases(self.rows, rows_per_case=len(self.foreground))
        engine.state.metrics.update(self.compute())
        if hasattr(engine.state, "metric_details"):
            engine.state.metric_details[name] = list(self.rows)


def _metadata(tensor: Tensor, key: str) -> str:
    return str(tensor.meta.get(key, "")) if isinstance(tensor, MetaTensor) else ""
