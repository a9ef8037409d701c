"""The measures are those of hand-counted masks, of NumPy's formulas and scipy's distances; undefined ones are NaN."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted
from scipy import ndimage
from torch import nn

from scripts.metrics import (
    OVERLAP_METRICS,
    SURFACE_METRICS,
    SegmentationMetrics,
    overlap_metrics,
    summarize,
    surface_metrics,
)

NAN = math.nan
SPACING_MM = (0.7, 0.8, 5.0)
SHAPE = (8, 9, 7)
# a grid turned about the z axis by the angle of which the sine is 0.6, with those voxel sizes
OBLIQUE_AFFINE = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ np.diag([*SPACING_MM, 1])


def masks_of(tp, fp, fn, tn):
    """A predicted and a labelled mask ``(1, 1, N)`` with these counts of voxels."""
    pred = [True] * tp + [True] * fp + [False] * fn + [False] * tn
    label = [True] * tp + [False] * fp + [True] * fn + [False] * tn
    return torch.tensor(pred)[None, None], torch.tensor(label)[None, None]


def box(*slices, shape=SHAPE):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[slices] = True
    return mask


def numpy_overlap_metrics(pred, label):
    tp, fp = float((pred & label).sum()), float((pred & ~label).sum())
    fn, tn = float((~pred & label).sum()), float((~pred & ~label).sum())
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "precision": tp / (tp + fp),
        "specificity": tn / (tn + fp),
        "iou": tp / (tp + fp + fn),
        "mcc": (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        "sensitivity": tp / (tp + fn),
        "npv": tn / (tn + fn),
    }


def scipy_surface_metrics(pred, label, spacing_mm):
    """By distance transforms; a voxel is at the surface if a face neighbour is outside the mask or the volume."""

    def edge(mask):
        return mask & ~ndimage.binary_erosion(mask)

    def distances(mask, other):
        return ndimage.distance_transform_edt(~edge(other), sampling=spacing_mm)[edge(mask)]

    forth, back = distances(pred, label), distances(label, pred)
    return {
        "hd95_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "assd_mm": np.concatenate([forth, back]).mean(),
    }


# --- overlap -----------------------------------------------------------------------------------------------------


def test_overlap_metrics_follow_from_the_four_counts():
    assert overlap_metrics(*masks_of(tp=6, fp=2, fn=3, tn=9)) == pytest.approx(
        {
            "dice": 12 / 17,
            "accuracy": 15 / 20,
            "precision": 6 / 8,
            "specificity": 9 / 11,
            "iou": 6 / 11,
            "mcc": (6 * 9 - 2 * 3) / math.sqrt(8 * 9 * 11 * 12),
            "sensitivity": 6 / 9,
            "npv": 9 / 12,
        },
        rel=1e-12,
    )


def test_a_perfect_prediction_has_one_of_every_overlap_metric():
    assert overlap_metrics(*masks_of(tp=4, fp=0, fn=0, tn=7)) == dict.fromkeys(OVERLAP_METRICS, 1)


def test_the_opposite_prediction_has_zero_of_every_overlap_metric_and_an_mcc_of_minus_one():
    assert overlap_metrics(*masks_of(tp=0, fp=4, fn=7, tn=0)) == dict.fromkeys(OVERLAP_METRICS, 0) | {"mcc": -1}


@pytest.mark.parametrize("seed", range(8))
def test_overlap_metrics_are_those_of_numpy(seed):
    generator = np.random.default_rng(seed)
    pred, label = (generator.random(SHAPE) < generator.uniform(0.05, 0.95) for _ in range(2))
    measures = overlap_metrics(torch.from_numpy(pred), torch.from_numpy(label))
    assert measures == pytest.approx(numpy_overlap_metrics(pred, label), rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param(
            {"tp": 0, "fp": 0, "fn": 0, "tn": 8},
            {"accuracy": 1, "specificity": 1, "npv": 1}
            | dict.fromkeys(("dice", "iou", "precision", "sensitivity", "mcc"), NAN),
            id="both empty",
        ),
        pytest.param(
            {"tp": 0, "fp": 4, "fn": 0, "tn": 4},
            {"dice": 0, "iou": 0, "precision": 0, "accuracy": 1 / 2, "specificity": 1 / 2, "npv": 1}
            | dict.fromkeys(("sensitivity", "mcc"), NAN),
            id="empty label",
        ),
        pytest.param(
            {"tp": 0, "fp": 0, "fn": 4, "tn": 4},
            {"dice": 0, "iou": 0, "sensitivity": 0, "accuracy": 1 / 2, "specificity": 1, "npv": 1 / 2}
            | dict.fromkeys(("precision", "mcc"), NAN),
            id="empty prediction",
        ),
        pytest.param(
            {"tp": 8, "fp": 0, "fn": 0, "tn": 0},
            {"dice": 1, "iou": 1, "precision": 1, "sensitivity": 1, "accuracy": 1}
            | dict.fromkeys(("specificity", "npv", "mcc"), NAN),
            id="both full",
        ),
        pytest.param(
            {"tp": 4, "fp": 4, "fn": 0, "tn": 0},
            {"dice": 2 / 3, "iou": 1 / 2, "precision": 1 / 2, "sensitivity": 1, "accuracy": 1 / 2, "specificity": 0}
            | dict.fromkeys(("npv", "mcc"), NAN),
            id="full prediction",
        ),
        pytest.param(
            {"tp": 4, "fp": 0, "fn": 4, "tn": 0},
            {"dice": 2 / 3, "iou": 1 / 2, "precision": 1, "sensitivity": 1 / 2, "accuracy": 1 / 2, "npv": 0}
            | dict.fromkeys(("specificity", "mcc"), NAN),
            id="full label",
        ),
    ],
)
def test_overlap_metrics_are_nan_where_they_divide_by_zero_and_only_there(counts, expected):
    assert overlap_metrics(*masks_of(**counts)) == pytest.approx(expected, nan_ok=True)


def test_voxels_are_counted_exactly_in_a_volume_with_more_of_them_than_float32_can_count():
    shape = (257, 256, 256)  # over 2 ** 24 voxels
    label, pred = box(0, 0, slice(3), shape=shape), box(0, 0, slice(4), shape=shape)
    measures = overlap_metrics(pred, label)
    assert measures["precision"] == pytest.approx(3 / 4)
    assert measures["dice"] == pytest.approx(6 / 7)


# --- surface distances -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
def test_surface_metrics_of_a_cube_beside_a_cube_by_hand(axis):
    # Of the 26 surface voxels of a 3³ cube, the layers 1, 2, 3 steps from the other cube have 9, 8 (without the
    # middle), 9; each lies straight before a surface voxel. Mean (9 + 2 · 8 + 3 · 9) / 26 = 2; 95 % lie within 3.
    cube = box(slice(2, 5), slice(2, 5), slice(2, 5), shape=(9, 9, 9))
    beside = cube.roll(3, dims=axis)
    expected = {"hd95_mm": 3 * SPACING_MM[axis], "assd_mm": 2 * SPACING_MM[axis]}
    assert surface_metrics(cube, beside, SPACING_MM) == pytest.approx(expected, rel=1e-6)


def test_hd95_leaves_out_the_farthest_twentieth():
    # Distances from the row of 21 voxels to its first are 0, 1, … 20 steps, the 95th percentile 19; back it is 0.
    row, first = box(slice(21), 0, 0, shape=(21, 3, 3)), box(0, 0, 0, shape=(21, 3, 3))
    expected = {"hd95_mm": 19 * 0.7, "assd_mm": sum(range(21)) / (21 + 1) * 0.7}
    assert surface_metrics(row, first, SPACING_MM) == pytest.approx(expected, rel=1e-6)
    assert surface_metrics(first, row, SPACING_MM) == pytest.approx(expected, rel=1e-6)


def test_surface_distances_of_a_mask_to_itself_are_zero():
    mask = box(slice(2, 6), slice(3, 5), slice(0, 7))
    assert surface_metrics(mask, mask, SPACING_MM) == {"hd95_mm": 0, "assd_mm": 0}


@pytest.mark.parametrize("seed", range(5))
def test_surface_metrics_are_those_of_scipy(seed):
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.normal(size=(2, 20, 18, 12)), sigma=(0, 2, 2, 1.5))
    pred, label = noise > 0.03  # blobs, many of which touch the border of the volume
    measures = surface_metrics(torch.from_numpy(pred), torch.from_numpy(label), SPACING_MM)
    assert measures == pytest.approx(scipy_surface_metrics(pred, label, SPACING_MM), rel=1e-5)


@pytest.mark.parametrize(("pred_is_empty", "label_is_empty"), [(True, False), (False, True), (True, True)])
def test_surface_metrics_are_nan_if_a_mask_is_empty(pred_is_empty, label_is_empty):
    empty, cube = box(slice(0)), box(slice(2, 5), slice(2, 5), slice(2, 5))
    measures = surface_metrics(empty if pred_is_empty else cube, empty if label_is_empty else cube, SPACING_MM)
    assert measures == pytest.approx({"hd95_mm": NAN, "assd_mm": NAN}, nan_ok=True)


# --- summary -----------------------------------------------------------------------------------------------------


def test_summary_leaves_out_undefined_values():
    rows = [{"dice": value, "mcc": 1.0} for value in (1.0, NAN, 2.0, 4.0)]
    (summary,) = summarize(rows, ["dice"])
    # mean 7/3, so squared deviations 16/9 + 1/9 + 25/9 = 14/3, over n - 1 = 2
    statistics = {"mean": 7 / 3, "sd": math.sqrt(7 / 3), "median": 2, "minimum": 1, "maximum": 4}
    assert summary.pop("metric") == "dice"
    assert summary == pytest.approx({"cases": 3} | statistics)


def test_summary_of_one_value_has_no_standard_deviation():
    (summary,) = summarize([{"dice": 0.5}, {"dice": NAN}], ["dice"])
    assert math.isnan(summary["sd"])
    assert [summary[name] for name in ("cases", "mean", "median", "minimum", "maximum")] == [1, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("rows", [[], [{"dice": NAN}, {"dice": NAN}]], ids=["no rows", "all undefined"])
def test_summary_of_no_value_is_nan(rows):
    (summary,) = summarize(rows, ["dice"])
    assert summary["cases"] == 0
    assert all(math.isnan(summary[name]) for name in ("mean", "sd", "median", "minimum", "maximum"))


def test_summary_has_a_row_for_each_metric_in_their_order():
    summary = summarize([{"dice": 0.5, "mcc": 0.25}], ["mcc", "dice"])
    assert [(row["metric"], row["mean"]) for row in summary] == [("mcc", 0.25), ("dice", 0.5)]


# --- the Ignite metric -------------------------------------------------------------------------------------------

CLASS_NAMES = ("background", "liver", "tumor")


def two_cases():
    """Predictions and labels ``(1, 4, 4, 4)`` of two scans of voxels of 0.7 · 0.8 · 5 = 2.8 mm³, by hand:

    * volume-7: liver predicted 16 voxels of 32, all right: Dice 2·16 / (16 + 32) = 2/3; tumour missed: Dice 0.
    * volume-8: liver predicted 16 voxels, 16 right: Dice 1; neither has a tumour: Dice NaN.
    """
    pred = torch.zeros(2, 1, 4, 4, 4)
    label = torch.zeros(2, 1, 4, 4, 4)
    pred[:, :, 0] = label[:, :, 0] = 1
    label[0, :, 1] = 1
    label[0, :, 3] = 2
    files = ("/scans/{}-7.nii.gz", "/scans/{}-8.nii")
    return tuple(
        [
            MetaTensor(mask, torch.from_numpy(OBLIQUE_AFFINE), {"filename_or_obj": file.format(kind)})
            for mask, file in zip(masks, files, strict=True)
        ]
        for kind, masks in (("volume", pred), ("segmentation", label))
    )


class OneHot(nn.Module):
    """A network that is certain of what its input ``(B, 1, H, W, D)`` says."""

    def forward(self, image):
        return nn.functional.one_hot(image[:, 0].long(), len(CLASS_NAMES)).movedim(-1, 1).float()


def evaluate(batch_size=2, surface=True):
    """Run MONAI's evaluator over the two cases and return it."""
    data = [{"image": pred, "label": label} for pred, label in zip(*two_cases(), strict=True)]
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(data, batch_size=batch_size),
        network=OneHot(),
        inferer=SimpleInferer(),
        postprocessing=AsDiscreted(keys="pred", argmax=True),
        key_val_metric={
            "mean_dice": MeanDice(
                include_background=False, num_classes=3, output_transform=from_engine(["pred", "label"])
            )
        },
        additional_metrics={
            "segmentation": SegmentationMetrics(
                CLASS_NAMES, surface=surface, output_transform=from_engine(["pred", "label"])
            )
        },
    )
    evaluator.run()
    return evaluator


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_evaluator_has_a_row_for_every_case_and_class(batch_size):
    rows = evaluate(batch_size).state.metric_details["segmentation"]
    assert [(row["case"], row["class"]) for row in rows] == [
        ("volume-7", "liver"),
        ("volume-7", "tumor"),
        ("volume-8", "liver"),
        ("volume-8", "tumor"),
    ]
    assert [row["dice"] for row in rows] == pytest.approx([2 / 3, 0, 1, NAN], nan_ok=True)
    assert [row["volume_ml"] for row in rows] == pytest.approx([16 * 0.0028, 0, 16 * 0.0028, 0])
    assert [row["reference_volume_ml"] for row in rows] == pytest.approx([32 * 0.0028, 16 * 0.0028, 16 * 0.0028, 0])
    # volume-7: the second layer of the label, 16 of its 32 surface voxels, is one step of 0.7 mm from the prediction
    assert [row["hd95_mm"] for row in rows] == pytest.approx([0.7, NAN, 0, NAN], rel=1e-6, nan_ok=True)
    assert [row["assd_mm"] for row in rows] == pytest.approx([16 * 0.7 / 48, NAN, 0, NAN], rel=1e-6, nan_ok=True)


def test_an_evaluator_has_the_mean_of_each_measure_over_its_defined_values():
    metrics = evaluate().state.metrics
    assert metrics["dice"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics["dice_liver"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["dice_tumor"] == 0
    assert metrics["hd95_mm"] == pytest.approx(0.7 / 2, rel=1e-6)
    assert math.isnan(metrics["hd95_mm_tumor"])
    names = {*OVERLAP_METRICS, *SURFACE_METRICS}
    of_classes = {f"{name}_{class_name}" for name in names for class_name in ("liver", "tumor")}
    assert set(metrics) == names | of_classes | {"mean_dice"}


def test_without_surface_no_distance_is_measured():
    evaluator = evaluate(surface=False)
    assert not any("mm" in name for name in evaluator.state.metrics)
    assert not any("mm" in name for row in evaluator.state.metric_details["segmentation"] for name in row)


def test_a_single_foreground_class_has_no_means_of_its_own():
    metric = SegmentationMetrics(["background", "liver"])
    metric.update(two_cases())
    assert set(metric.compute()) == {*OVERLAP_METRICS, *SURFACE_METRICS}
    assert {row["class"] for row in metric.rows} == {"liver"}


def test_a_tilted_gantry_makes_voxels_smaller_than_their_edges_say():
    metric = SegmentationMetrics(["background", "liver"])
    affine = torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0]))
    affine[1, 2] = 3.0  # slices 5 mm apart along the table's tilt, 4 mm thick
    mask = MetaTensor(torch.ones(1, 5, 5, 5), affine=affine)
    metric.update(([mask], [mask]))
    assert metric.rows[0]["volume_ml"] == metric.rows[0]["reference_volume_ml"] == pytest.approx(125 * 0.016)


def test_tensors_without_metadata_are_numbered_and_have_voxels_of_1_mm():
    metric = SegmentationMetrics(CLASS_NAMES)
    preds, labels = ([mask.as_tensor() for mask in masks] for masks in two_cases())
    metric.update((preds, labels))
    metric.update((preds[:1], labels[:1]))
    assert [row["case"] for row in metric.rows[::2]] == ["case-0", "case-1", "case-2"]
    assert metric.rows[0]["volume_ml"] == pytest.approx(0.016)
    assert metric.rows[0]["hd95_mm"] == 1


def test_a_metric_begins_anew_with_every_run_of_its_engine():
    preds, labels = two_cases()
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {}
    SegmentationMetrics(CLASS_NAMES, surface=False).attach(engine, "segmentation")
    engine.run([(preds, labels)])
    first = engine.state.metric_details["segmentation"]
    engine.run([(preds[1:], labels[1:])])
    assert [row["case"] for row in first[::2]] == ["volume-7", "volume-8"]
    assert [row["case"] for row in engine.state.metric_details["segmentation"][::2]] == ["volume-8"]
    assert engine.state.metrics["dice"] == 1


def test_a_prediction_of_another_shape_than_its_label_is_refused():
    message = r"prediction has shape \(1, 4, 4, 3\), its label \(1, 4, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(CLASS_NAMES).update(([torch.zeros(1, 4, 4, 3)], [torch.zeros(1, 4, 4, 4)]))


def test_a_metric_of_no_case_cannot_be_computed():
    metric = SegmentationMetrics(CLASS_NAMES)
    metric.update(two_cases())
    metric.reset()
    with pytest.raises(NotComputableError, match="no case was measured"):
        metric.compute()
