"""The report shows what run folders hold, says what they do not hold, and names the file that is damaged."""

import csv
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.errors import InputError
from scripts.report import curves, tables
from scripts.report.__main__ import show_cases, write_report
from scripts.report.cases import (
    PANELS,
    Case,
    axial_plane,
    choose_cases,
    distance_to_surface,
    load_case,
    surface_of,
    volumes_of_errors_ml,
)
from scripts.report.layout import format_number, format_p, lay_out_cases, lay_out_converged, lay_out_test
from scripts.report.read import METRICS, Run, check_comparable, name_runs, read_run
from scripts.report.statistics import compare, last_third_mean
from scripts.report.summary import compare_in_words, lay_out_facts, make_cards, write_headline
from tests import ROOT

SPACING = (2.0, 2.0, 4.0)
AFFINE = np.diag([*SPACING, 1.0])
LETTERS = ("wide", "narrow")


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def ball(radius_mm, center_mm=(40, 40, 40), shape=(40, 40, 20)):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * SPACING
    return np.linalg.norm(index - center_mm, axis=-1) <= radius_mm


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def write_curves(folder, epochs, gain):
    training = [
        {"epoch": epoch, "seconds": 10 + epoch, "learning_rate": 1e-3}
        | {metric: gain * epoch / 10 for metric in METRICS}
        | {"loss": 1 / epoch}
        for epoch in range(1, epochs + 1)
    ]
    write_csv(folder / "training.csv", training)
    validation = [
        {"epoch": epoch, "seconds": 3} | {metric: gain * epoch / 20 for metric in METRICS}
        for epoch in range(2, epochs + 1, 2)
    ]
    write_csv(folder / "validation.csv", validation)


def write_run(folder, gain=1.0, radii=(20, 22, 24), classes=("liver",)):
    """A finished run of nine epochs whose predictions are balls; the truth is a ball of 24 mm."""
    write_curves(folder, 9, gain)
    facts = {
        "network": "MPUNet", "parameters": 1234, "device": "cpu", "max_epochs": 9, "checkpoint_mb": 5.0,
        "checkpoint_seconds": 0.25, "peak_memory_mb": None, "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    data = folder.parent / "data"
    truth = ball(24)
    rows = []
    for number, radius in enumerate(radii):
        image = np.where(ball(38), 50, -1000).astype(np.int16)
        pred = ball(radius)
        dice = 2 * (pred & truth).sum() / (pred.sum() + truth.sum())
        files = {
            "image": save(data / f"volume-{number}.nii.gz", image),
            "label": save(data / f"segmentation-{number}.nii.gz", truth.astype(np.uint8)),
            "prediction": save(folder / f"evaluation/predictions/volume-{number}_seg.nii.gz", pred.astype(np.uint8)),
        }
        for name in classes:
            rows.append(
                {"case": f"volume-{number}", "class": name}
                | dict.fromkeys(METRICS, dice)
                | {"hd95_mm": 24 - radius, "assd_mm": math.nan, "volume_ml": 1.0, "reference_volume_ml": 2.0}
                | files
            )
    write_csv(folder / "evaluation/per_case.csv", rows)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / "wide", 1.0), write_run(root / "narrow", 0.8, radii=(16, 18, 20))]


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    write_report([str(folder) for folder in finished], str(output))
    return output


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- numbers -----------------------------------------------------------------------------------------------------


def test_the_last_third_of_nine_epochs_is_the_last_three():
    curves = {"epoch": np.arange(1.0, 10), "dice": np.arange(1.0, 10)}
    assert last_third_mean(curves, "dice") == 8  # of 7, 8, 9


def test_the_last_third_leaves_out_what_is_not_defined():
    curves = {"epoch": np.arange(1.0, 4), "dice": np.array([0.1, 0.2, math.nan])}
    assert math.isnan(last_third_mean(curves, "dice"))
    assert math.isnan(last_third_mean({}, "dice"))


def test_runs_are_compared_on_the_cases_that_both_have():
    first = {"a": 0.9, "b": 0.8, "c": math.nan, "d": 1.0}
    second = {"a": 0.8, "b": 0.5, "c": 0.5, "e": 0.1}
    result = compare(first, second)
    assert result.cases == 2
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == pytest.approx((0.1, 0.3))  # of two values, every bootstrap mean is between them
    assert math.isnan(result.p_value)


def test_six_cases_that_all_agree_have_the_exact_p_value_of_the_signed_rank_test():
    first = {str(case): 0.9 + case / 1000 for case in range(6)}
    second = dict.fromkeys(first, 0.8)
    assert compare(first, second).p_value == pytest.approx(2 / 2**6)


def test_the_p_value_is_that_of_all_ways_to_give_the_ranks_signs():
    differences = {str(case): d for case, d in enumerate([0.05, 0.02, -0.01, 0.04, -0.03, 0.07, 0.06, 0.08])}
    ranks = np.arange(1, 9)  # of 0.01, 0.02 ... 0.08 by size; negative are the first and the third
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=8)])  # of the positive ones
    observed = 36 - 1 - 3
    expected = 2 * np.mean(sums >= observed)
    assert compare(differences, dict.fromkeys(differences, 0.0)).p_value == pytest.approx(expected)


def test_the_interval_is_that_of_means_of_cases_drawn_again():
    generator = np.random.default_rng(5)
    differences = generator.normal(0.02, 0.05, 20)
    first = {str(case): 0.5 + d for case, d in enumerate(differences)}
    result = compare(first, dict.fromkeys(first, 0.5))
    means = differences[generator.integers(0, 20, (50_000, 20))].mean(axis=1)
    assert (result.low, result.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.001)
    assert result.above == (differences > 0).sum()


@pytest.mark.parametrize("turned", [False, True])
def test_an_interval_is_that_of_the_difference_beside_it(turned):
    dice = {
        "a": (0.90, 0.80, 0.92, 0.85, 0.88, 0.91, 0.80),
        "b": (0.91, 0.90, 0.90, 0.86, 0.87, 0.93, 0.84),
    }
    cases = {name: [{"case": str(i), "class": "liver", "dice": d} for i, d in enumerate(dice[name])] for name in dice}
    runs = [Run(name, Path(name), {}, {}, {}, {}, cases[name], {}) for name in sorted(dice, reverse=turned)]
    lines = " ".join(compare_in_words(*runs, "liver")).replace("−", "-")
    numbers = re.search(r"difference is (\S+), 95 % interval (\S+) to (\S+);", lines).groups()
    difference, low, high = map(float, numbers)
    assert low < 0 < difference < high
    assert "b is ahead in 5 of 7 cases" in lines


def test_cases_decide_if_the_interval_does_not_hold_0_and_p_is_small():
    def decided(*differences):
        first = {str(case): d for case, d in enumerate(differences)}
        return compare(first, dict.fromkeys(first, 0.0)).decided

    assert decided(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert not decided(0.1, 0.2, 0.3, 0.4, 0.5)  # too few
    assert not decided(-0.1, 0.2, 0.3, -0.4, 0.5, -0.6)
    assert not decided(0, 0, 0, 0, 0, 0)


def test_equal_runs_have_p_of_one_and_runs_without_a_common_case_nothing():
    same = {str(case): 0.5 for case in range(8)}
    assert compare(same, same).p_value == 1
    nothing = compare(same, {"other": 1.0})
    assert nothing.cases == 0
    assert math.isnan(nothing.difference)


def test_tables_have_the_means_and_their_differences(finished):
    runs = [read_run(folder, folder.name) for folder in finished]
    wide_training, wide_validation, narrow_training, _ = tables.converged(runs)
    assert wide_training["dice"] == pytest.approx(0.8)  # epochs 7, 8, 9 of epoch / 10
    assert wide_validation["mcc"] == pytest.approx(0.35)  # epochs 6 and 8 of epoch / 20
    assert narrow_training["npv"] == pytest.approx(0.64)
    assert [round(row["iou"], 6) for row in tables.differences(runs)] == [16, 7]
    cost = tables.costs(runs)[0]
    assert (cost["training_s"], cost["validation_s"], cost["output_s"]) == (15, 3, 0.25)
    assert cost["total_s"] == pytest.approx(15 + 3 * 4 / 9 + 0.25)  # of 9 epochs 4 were validated
    assert (cost["parameters"], cost["checkpoint_mb"]) == (1234, 5.0)
    assert math.isnan(cost["peak_memory_mb"])


def test_test_cases_have_mean_and_sd_and_the_undefined_stays_so(finished):
    row = tables.of_test_cases([read_run(finished[0], "wide")])[0]
    assert (row["cases"], row["hd95_mm"], row["hd95_mm_sd"]) == (3, 2, 2)  # of 4, 2, 0
    assert math.isnan(row["assd_mm"])


def six_panels(figure):
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["Dice", "Accuracy", "Precision", "Specificity", "IoU", "MCC"]
    return panels


def test_curves_are_the_six_measures_over_epochs(finished):
    run = read_run(finished[0], "wide")
    for axes in six_panels(curves.draw_curves(run)).values():
        training, validation = axes.lines
        np.testing.assert_allclose(training.get_xydata(), [[epoch, epoch / 10] for epoch in range(1, 10)])
        np.testing.assert_allclose(validation.get_xydata(), [[epoch, epoch / 20] for epoch in (2, 4, 6, 8)])
        assert training.get_linestyle() != validation.get_linestyle()


def test_losses_are_labelled_in_plain_numbers(finished):
    figure = curves.draw_losses([read_run(finished[0], "wide")])  # 1, 1/2 ... 1/9
    figure.canvas.draw()
    axis = figure.axes[0].yaxis
    (low, high), labels = axis.get_view_interval(), [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
    shown = {label.get_text() for label in labels if low <= label.get_position()[1] <= high}
    assert shown == {"1", "0.5", "0.2", "0.1"}


def test_boxes_are_quartiles_of_all_epochs(finished):
    for axes in six_panels(curves.draw_boxes(read_run(finished[0], "wide"))).values():
        training, validation = (
            [box[:, 0].min(), box[:, 0].max()] for box in (p.get_path().vertices for p in axes.patches)
        )
        assert training == pytest.approx([0.3, 0.7])  # of 0.1, 0.2 ... 0.9
        assert validation == pytest.approx([0.175, 0.325])  # of 0.1, 0.2, 0.3, 0.4
        medians = [
            line.get_xdata()[0] for line in axes.lines if line.get_color() == "black" and line.get_linewidth() == 2
        ]
        assert medians == pytest.approx([0.5, 0.25])


def test_bars_are_the_means_of_the_last_third(finished):
    (axes,) = curves.draw_bars(read_run(finished[0], "wide")).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.8] * 6 + [0.35] * 6)
    assert {text.get_text() for text in axes.texts} == {"0.800", "0.350"}


# --- cases -------------------------------------------------------------------------------------------------------


def test_best_median_and_worst_case_are_by_dice(finished):
    run = read_run(finished[0], "wide")
    assert choose_cases(run, "liver") == {
        "best": "volume-2",
        "median": "volume-1",
        "worst": "volume-0",
    }


def test_fewer_cases_are_shown_once_each(tmp_path):
    one = read_run(write_run(tmp_path / "one", radii=(20,)), "one")
    assert choose_cases(one, "liver") == {"best": "volume-0"}
    two = read_run(write_run(tmp_path / "two", radii=(20, 22)), "two")
    assert sorted(choose_cases(two, "liver").values()) == ["volume-0", "volume-1"]


def test_a_label_with_other_axes_than_its_image_is_shown_where_it_belongs(tmp_path):
    folder = write_run(tmp_path / "run", radii=(24,))
    label = tmp_path / "data/segmentation-0.nii.gz"
    moved = ball(15, center_mm=(30, 44, 40)).astype(np.uint8)
    nib.save(nib.Nifti1Image(moved, AFFINE).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), label)
    case = load_case(read_run(folder, "run"), "volume-0", "liver")
    np.testing.assert_array_equal(case.truth, moved > 0)
    assert case.spacing_mm == SPACING


def test_files_of_one_volume_along_a_fourth_axis_are_shown(tmp_path):
    folder = write_run(tmp_path / "run", radii=(24,))
    expected = load_case(read_run(folder, "run"), "volume-0", "liver")
    for path in (tmp_path / "data").iterdir():
        nifti = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(nifti.dataobj)[..., None], nifti.affine), path)
    case = load_case(read_run(folder, "run"), "volume-0", "liver")
    np.testing.assert_array_equal(case.image, expected.image)
    np.testing.assert_array_equal(case.truth, expected.truth)


def test_the_size_of_a_voxel_is_that_of_the_affine_and_its_volume_too_where_the_grid_is_sheared(tmp_path):
    folder = write_run(tmp_path / "run", radii=(20,))
    sheared = AFFINE.copy()
    sheared[1, 2] = 1.5
    for path in [*(tmp_path / "data").iterdir(), *(folder / "evaluation/predictions").iterdir()]:
        nifti = nib.Nifti1Image(np.asanyarray(nib.load(path).dataobj), sheared)
        nifti.header["pixdim"][1:4] = 1  # a header that says otherwise: readers go by the affine
        nib.save(nifti, path)
    case = load_case(read_run(folder, "run"), "volume-0", "liver")
    np.testing.assert_allclose(case.spacing_mm, [*SPACING[:2], np.hypot(SPACING[2], 1.5)])
    false_ml, missed_ml = volumes_of_errors_ml(case)
    assert false_ml == 0
    assert missed_ml == pytest.approx((ball(24).sum() - ball(20).sum()) * np.prod(SPACING) / 1000)


def test_scans_that_are_no_nifti_are_shown(tmp_path):
    folder = write_run(tmp_path / "run", radii=(24,))
    expected = load_case(read_run(folder, "run"), "volume-0", "liver")
    rows = rows_of(folder / "evaluation/per_case.csv")
    for key in ("image", "label"):
        nifti = nib.load(rows[0][key])
        image = itk.image_from_array(np.ascontiguousarray(np.asanyarray(nifti.dataobj).T))
        image.SetSpacing(SPACING)
        image.SetDirection(itk.matrix_from_array(np.diag([-1.0, -1.0, 1.0])))  # ITK's axes are LPS
        rows[0][key] = rows[0][key].replace(".nii.gz", ".nrrd")
        itk.imwrite(image, rows[0][key])
    write_csv(folder / "evaluation/per_case.csv", rows)
    case = load_case(read_run(folder, "run"), "volume-0", "liver")
    for part in ("image", "truth", "pred", "spacing_mm"):
        np.testing.assert_allclose(getattr(case, part), getattr(expected, part))
    write_report([str(folder)], str(tmp_path / "report"))
    assert list((tmp_path / "report").glob("case-*.png"))


def test_cases_with_nothing_to_find_are_not_the_worst():
    rows = [
        {"case": name, "class": "liver", "true_volume_ml": 1.0}
        | {f"run: {key}": value for key, value in (("dice", dice), ("hd95_mm", 1.0), ("volume_ml", 1.0))}
        for name, dice in (("a", math.nan), ("b", 0.9), ("c", 0.2))
    ]
    table = lay_out_cases("liver", [SimpleNamespace(name="run")], rows, folded=False)
    assert [row[0].text for row in table.rows] == ["c", "b", "a"]


def test_a_place_where_nothing_can_be_written_is_named(tmp_path, finished):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/report"):
        write_report([str(folder) for folder in finished], str(tmp_path / "file/report"))


def test_scans_are_shown_in_ras_whatever_their_axes(tmp_path):
    folder = write_run(tmp_path / "run", radii=(24,))
    straight = load_case(read_run(folder, "run"), "volume-0", "liver")
    for path in [*(tmp_path / "data").iterdir(), *(folder / "evaluation/predictions").iterdir()]:
        nib.save(nib.load(path).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]])), path)
    turned = load_case(read_run(folder, "run"), "volume-0", "liver")
    for part in ("image", "truth", "pred"):
        np.testing.assert_array_equal(getattr(turned, part), getattr(straight, part))


@pytest.mark.parametrize(
    "classes, class_name, truth, pred",
    [
        (("liver",), "liver", [1, 1, 1, 0], [1, 0, 0, 1]),  # the liver with its tumour
        (("tumor",), "tumor", [0, 0, 1, 0], [1, 0, 0, 1]),
        (("liver", "tumor"), "liver", [1, 1, 0, 0], [1, 0, 0, 1]),
        (("liver", "tumor"), "tumor", [0, 0, 1, 0], [0, 1, 0, 0]),
    ],
)
def test_truth_and_prediction_are_of_the_class_as_the_run_was_trained(tmp_path, classes, class_name, truth, pred):
    folder = write_run(tmp_path / "run", radii=(24,), classes=classes)
    for path, labels in (
        ("data/segmentation-0", (1, 1, 2, 0)),
        ("run/evaluation/predictions/volume-0_seg", (1, 2, 0, 1)),
    ):
        array = np.zeros((40, 40, 20), np.uint8)
        array[0, 0, :4] = labels
        save(tmp_path / f"{path}.nii.gz", array)
    case = load_case(read_run(folder, "run"), "volume-0", class_name)
    np.testing.assert_array_equal(case.truth[0, 0, :4], truth)
    np.testing.assert_array_equal(case.pred[0, 0, :4], pred)


def test_the_surface_of_a_ball_has_its_radius():
    vertices, triangles, normals = surface_of(ball(24), SPACING)
    center = np.array([40, 40, 40]) + np.array(SPACING) / 2  # from the first voxel's corner
    radii = np.linalg.norm(vertices - center, axis=1)
    assert radii.mean() == pytest.approx(24, abs=1)
    assert radii.std() < 1
    assert triangles.max() < len(vertices)
    outward = (normals * (vertices - center)).sum(axis=1) / radii
    assert outward.mean() > 0.9


def test_nothing_has_no_surface():
    assert len(surface_of(np.zeros((8, 8, 8), bool), (1, 1, 1))[0]) == 0


def test_distances_to_a_surface_are_in_mm_and_the_scan_s_border_is_one():
    mask = np.zeros((20, 20, 20), bool)
    mask[:10] = True  # cut off at x = 0; its other surface is at 10 voxels of 2 mm
    points = np.array([[20.0, 20, 40], [30.0, 20, 40], [0.0, 20, 40], [14.0, 20, 40]])
    distances = distance_to_surface(mask, (2.0, 2.0, 4.0), points)
    np.testing.assert_allclose(distances, [0, 10, 0, 6], atol=1.4)


@pytest.mark.parametrize("truth_mm, pred_mm", [(24, 20), (24, 0), (0, 24), (0, 0)])
@pytest.mark.parametrize("panel", PANELS)
def test_pictures_of_empty_masks_can_be_drawn(panel, truth_mm, pred_mm):
    truth, pred = (ball(radius) & (radius > 0) for radius in (truth_mm, pred_mm))
    case = Case(np.where(ball(38), 50.0, -1000.0), truth, pred, np.diag([*SPACING, 1]))
    plane = axial_plane(case)
    figure = PANELS[panel](case, plane)
    figure.canvas.draw()
    if panel == "surface":
        words = [text.get_text() for text in figure.axes[0].texts]
        assert ("nothing predicted" in words) == (pred_mm == 0)


def test_the_surface_is_seen_from_the_front_with_the_patient_s_right_at_the_left():
    truth = ball(24)
    case = Case(np.zeros(truth.shape), truth, truth, np.diag([*SPACING, 1]))
    axes = PANELS["surface"](case, axial_plane(case)).axes[0]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # x of RAS+ grows to the patient's right
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the head is up
    surface, silhouette = (
        np.concatenate([path.vertices for path in collection.get_paths()]) for collection in axes.collections
    )
    center = (surface.min(axis=0) + surface.max(axis=0)) / 2
    for outline in (surface, silhouette):
        assert np.linalg.norm(outline - center, axis=1).max() == pytest.approx(24, abs=2.1)  # half a voxel


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) == 18 + 6 + 1 + 1  # three panels of three cases and two runs, their figures, losses, all cases
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "<script" not in html


def test_every_figure_and_table_is_a_file_too(report):
    names = {path.name for path in report.iterdir()}
    drawings = [f"{kind}-{run}" for kind in ("curves", "boxes", "bars") for run in LETTERS] + ["loss", "cases-liver"]
    assert {f"{name}.{suffix}" for name in drawings for suffix in ("png", "svg")} < names
    kinds = itertools.product(("best", "median", "worst"), LETTERS, PANELS)
    assert {f"case-liver-{kind}-{run}-{panel}.png" for kind, run, panel in kinds} < names
    assert {f"{t}.csv" for t in ("converged", "differences", "costs", "test", "significance", "per_case")} < names


def test_the_csv_has_the_values_of_the_runs(report, finished):
    cases = {row["case"]: row for row in rows_of(finished[1] / "evaluation/per_case.csv")}
    for row in rows_of(report / "per_case.csv"):
        assert float(row["narrow: dice"]) == pytest.approx(float(cases[row["case"]]["dice"]), rel=1e-5)
        assert float(row["true_volume_ml"]) == 2
    assert [row["cases"] for row in rows_of(report / "significance.csv")] == ["3"] * 9 + ["0"]  # ASSD is not defined


def test_the_page_says_which_run_is_ahead_and_that_few_cases_are_no_test(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "wide is ahead of narrow for liver: mean Dice" in html
    assert "in the same 3 test cases" in html
    assert "wide is ahead in 3 of 3 cases. For a test of significance at least 6 cases are needed." in html


def test_runs_of_the_same_dice_are_level(tmp_path):
    runs = [read_run(write_run(tmp_path / name, radii=radii), name) for name, radii in (("a", (20,)), ("b", (20,)))]
    means = [f"{run.values('liver', 'dice')['volume-0']:.3f}" for run in runs]
    assert write_headline(runs) == [
        f"a and b are level for liver: mean Dice {means[0]} each in the same test case.",
        "The difference is 0.000; a is ahead in 0, b in 0 of 1 case. "
        "For a test of significance at least 6 cases are needed.",
    ]


def test_one_case_has_no_plural_and_no_sd(tmp_path):
    run = read_run(write_run(tmp_path / "run", radii=(24,)), "run")
    assert write_headline([run]) == ["run has a mean Dice of 1.000 for liver in 1 test case."]
    assert make_cards([run])[0].results[0].label == "mean Dice of liver, 1 test case"
    table = lay_out_test("liver", tables.of_test_cases([run]), [])
    assert table.caption == "Liver, 1 test case, whole volumes in their own grids"
    assert table.groups == [("value", 1)]


def test_the_page_says_the_paper_s_names_of_the_measures(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "is sensitivity, TP / (TP + FN)" in html
    for heading in ("Specificity</th>", "Precision</th>", "Sensitivity<small>the paper&#39;s “precision”</small></th>"):
        assert html.count(f'<th scope="row">{heading}') == 2  # test cases, and Tables 3 to 5
    assert html.count('<th scope="row">NPV<small>the paper&#39;s “specificity”</small></th>') == 2


def test_every_picture_says_in_words_what_it_shows(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    words = re.findall(r'alt="([^"]*)"', html)
    assert len(words) == len(set(words)) == html.count("<img")
    assert any("volume-2, wide: Dice 1.000, 0 ml wrongly included, 0 ml missed: axial CT" in text for text in words)
    assert any(
        "wide: Dice in training 0.900 in epoch 9, in validation at best 0.400 in epoch 8" in text for text in words
    )


def test_nothing_of_the_page_is_wider_than_a_phone_but_tables_that_scroll(report):
    html = re.sub(r"base64,[A-Za-z0-9+/=]+", "", (report / "index.html").read_text(encoding="utf-8"))
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert html.count("<table>") == html.count('<div class="scroll"><table>')
    widths = [float(width) for width in re.findall(r"min-?(?:width: )(\d+(?:\.\d+)?)rem", html)]
    widths += [float(width) for width in re.findall(r"minmax\((\d+(?:\.\d+)?)rem", html)]
    assert all(width * 16 < 360 for width in widths)


def test_the_better_of_a_row_is_marked_and_differences_have_their_interval(finished):
    runs = [read_run(folder, folder.name) for folder in finished]
    means, differences = tables.of_test_cases(runs), tables.significance(runs)
    table = lay_out_test("liver", means, differences)
    assert table.header == ["wide", "narrow", "difference", "p"]
    assert table.groups == [("mean ± SD", 2), ("wide − narrow", 2)]
    rows = {heading.text: cells for heading, cells in table.rows}
    assert [cell.best for cell in rows["Dice"]] == [True, False, False, False]
    assert [cell.text for cell in rows["HD95, mm"]] == ["2.0", "6.0", "−4.0", "–"]  # 4, 2, 0 and 8, 6, 4 mm
    assert rows["HD95, mm"][0].best
    assert rows["HD95, mm"][2].detail == "−4.0 to −4.0"
    assert [(cell.text, cell.detail) for cell in rows["ASSD, mm"]] == [("–", "")] * 4


def test_tables_3_4_and_5_stand_in_one(finished):
    runs = [read_run(folder, folder.name) for folder in finished]
    table = lay_out_converged(tables.converged(runs), tables.differences(runs))
    assert table.groups == [("wide", 2), ("narrow", 2), ("wide − narrow", 2)]
    assert table.header == ["training", "validation"] * 3
    cells = dict((heading.text, [cell.text for cell in cells]) for heading, cells in table.rows)
    assert cells["Dice"] == ["0.8000", "0.3500", "0.6400", "0.2800", "+16.00", "+7.00"]


@pytest.mark.parametrize(
    "value, digits, sign, text",
    [(1234.5, 0, False, "1,234"), (-0.0004, 3, False, "0.000"), (-0.25, 2, True, "−0.25"), (0.25, 2, True, "+0.25"),
     (math.nan, 3, True, "–")],
)  # fmt: skip
def test_numbers_have_a_true_minus_and_no_negative_zero(value, digits, sign, text):
    assert format_number(value, digits, sign) == text


def test_small_p_values_are_a_bound():
    assert (format_p(0.0004), format_p(0.0314), format_p(math.nan)) == ("< 0.001", "0.031", "–")


def test_what_is_known_of_the_runs_is_said_and_expressions_are_not(finished, tmp_path):
    write_curves(tmp_path / "young", 3, 1.0)
    config = {"target": "$f()", "spacing": [1.5, 1.5, 1.0], "roi_size": "$g()", "learning_rate": "$1 / 3"}
    manifest = {"config": config, "values": {"target": "liver", "roi_size": [64, 64, 48]}}
    (tmp_path / "young/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    table = lay_out_facts([read_run(finished[0], "wide"), read_run(tmp_path / "young", "young")])
    rows = {heading.text: [cell.text for cell in cells] for heading, cells in table.rows}
    assert rows["Epochs"] == ["9 of 9", "3"]
    assert rows["Target"] == ["–", "liver"]
    assert rows["Spacing, mm"] == ["–", "1.5 × 1.5 × 1.0"]
    assert rows["Crop, voxels"] == ["–", "64 × 64 × 48"]
    assert rows["Missing"] == ["–", "not evaluated, no run.json"]
    assert "Learning rate" not in rows


def test_a_card_has_what_is_known_of_its_run(finished, tmp_path):
    write_curves(tmp_path / "young", 3, 1.0)
    cards = make_cards([read_run(finished[0], "wide"), read_run(tmp_path / "young", "young")])
    assert cards[0].results[0].label == "mean Dice of liver, 3 test cases"
    assert cards[0].results[0].detail.endswith("(volume-0); mean HD95 2.0 mm")
    assert cards[0].details == ["1,234 parameters", "15.0 s of training per epoch"]
    assert (cards[1].results[0].number, cards[1].results[0].label) == (
        "0.100", "Dice in validation, epoch 2; not tested yet"
    )  # fmt: skip


def test_names_that_look_like_html_are_text(tmp_path):
    write_curves(tmp_path / "young", 2, 1.0)
    write_report([str(tmp_path / "young")], str(tmp_path), ["<i>bold & co</i>"])
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<i>" not in html
    assert "&lt;i&gt;bold &amp; co" in html


def test_a_run_that_is_still_going_is_shown_as_far_as_it_went(tmp_path):
    folder = tmp_path / "young"
    write_curves(folder, 2, 1.0)
    (folder / "validation.csv").unlink()
    write_report([str(folder)], str(tmp_path / "report"))
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "No run has been evaluated on test cases yet" in html
    assert "not validated yet, not evaluated, no run.json" in html
    assert "Dice in training, epoch 2; not tested yet" in html
    assert (tmp_path / "report/curves-young.png").is_file()


def keep_the_loss_alone(folder):
    """As trainings by configs/pretrain.json do."""
    rows = rows_of(folder / "training.csv")
    write_csv(folder / "training.csv", [{key: row[key] for key in ("epoch", "loss", "seconds")} for row in rows])


def test_a_training_that_kept_its_loss_alone_is_shown_by_it_and_its_validation(tmp_path, finished):
    folder = write_run(tmp_path / "loss")
    keep_the_loss_alone(folder)
    write_report([str(finished[1]), str(folder)], str(tmp_path / "report"))
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "loss: Dice in validation at best 0.400 in epoch 8." in html
    converged = rows_of(tmp_path / "report/converged.csv")
    assert [(row["run"], row["cases"]) for row in converged] == [
        ("narrow", "training"),
        ("narrow", "validation"),
        ("loss", "validation"),
    ]
    assert [row["cases"] for row in rows_of(tmp_path / "report/differences.csv")] == ["validation"]
    names = ["curves-loss.png", "boxes-loss.svg", "bars-loss.png", "loss.png"]
    assert all((tmp_path / "report" / name).is_file() for name in names)


def test_a_training_of_which_nothing_is_measured_yet_is_shown_by_its_loss(tmp_path):
    folder = tmp_path / "young"
    write_curves(folder, 2, 1.0)
    keep_the_loss_alone(folder)
    (folder / "validation.csv").unlink()
    write_report([str(folder)], str(tmp_path / "report"))
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "Training loss" in html
    assert "Mean over the last third" not in html
    assert "Dice in" not in html
    assert sorted(path.name for path in (tmp_path / "report").glob("*.png")) == ["loss.png"]


def test_one_evaluated_run_beside_one_that_is_not(tmp_path):
    write_curves(tmp_path / "young", 2, 1.0)
    runs = [tmp_path / "young", write_run(tmp_path / "wide", radii=(20,))]
    write_report(list(map(str, runs)), str(tmp_path / "report"))
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "young has not been evaluated on test cases yet." in html
    assert "wide has a mean Dice of" in html
    assert "Best case of wide, liver: volume-0" in html


def test_masks_in_subfolders_are_found_where_the_run_is_now(tmp_path):
    folder = write_run(tmp_path / "run", radii=(20,))
    mask = folder / "evaluation/predictions/volume-0_seg.nii.gz"
    (mask.parent / "patient").mkdir()
    mask.rename(mask.parent / "patient" / mask.name)
    damage(folder, "evaluation/per_case.csv", r"[^,]*/predictions/", "/elsewhere/evaluation/predictions/patient/")
    assert load_case(read_run(folder, "run"), "volume-0", "liver").pred.any()


def test_scans_that_are_gone_leave_their_pictures_out(tmp_path, finished):
    folder = shutil.copytree(finished[0], tmp_path / "wide")
    shutil.rmtree(folder / "evaluation/predictions")
    section = show_cases([read_run(folder, "wide")], tmp_path)
    reason = "has no picture: its image, label or mask is not there."
    assert section.text[-1] == f"Worst case of wide, liver: volume-0, {reason}"
    assert section.blocks == []


@pytest.mark.parametrize(
    "best, measured, trained_at, evaluated_at, outdated",
    [
        ("a", "a", "12:00", "11:00", False),  # the sum says more than the clock
        ("a", "b", "12:00", "13:00", True),
        ("a", None, "12:00", "13:00", False),
        (None, "b", "12:00", "11:00", True),  # resumed since
        (None, None, "12:00", None, False),
    ],
)
def test_an_evaluation_of_other_weights_than_the_best_is_called_so(
    tmp_path, finished, best, measured, trained_at, evaluated_at, outdated
):
    folder = shutil.copytree(finished[0], tmp_path / "run")

    def write(file, facts, time):
        started = {"started": f"2030-01-01T{time}:00+00:00"} if time else {}
        (folder / file).write_text(json.dumps(facts | started), encoding="utf-8")

    write("run.json", {"weights_sha256": best, "best_epoch": 7}, None)
    write("manifest.json", {}, trained_at)
    write("evaluation/manifest.json", {"weights": {"sha256": measured}}, evaluated_at)
    warning = "Test cases of run were measured with other weights than its best (epoch 7): evaluate again."
    assert (warning in write_headline([read_run(folder, "run")])) == outdated


def test_runs_without_a_common_case_are_not_compared(tmp_path, finished):
    other = shutil.copytree(finished[1], tmp_path / "narrow")
    per_case = other / "evaluation/per_case.csv"
    per_case.write_text(per_case.read_text(encoding="utf-8").replace("volume-", "another-"))
    runs = [read_run(finished[0], "wide"), read_run(other, "narrow")]
    assert "wide and narrow have no test case in common, so they cannot be compared." in write_headline(runs)


def test_runs_are_named_by_as_much_of_their_folders_as_tells_them_apart():
    assert name_runs(["a/mpunet", "a/unet"]) == ["mpunet", "unet"]
    assert name_runs(["a/mpunet", "b/mpunet"]) == ["a/mpunet", "b/mpunet"]
    with pytest.raises(InputError, match="a/mpunet: is given twice"):
        name_runs(["a/mpunet", "a/mpunet"])


# --- errors ------------------------------------------------------------------------------------------------------


def damage(folder, file, old, new):
    path = folder / file
    path.write_text(re.sub(old, new, path.read_text(encoding="utf-8"), count=1, flags=re.S))


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("training.csv", ".*", "", "training.csv: has no rows"),
        ("training.csv", "dice", "other", "training.csv: has no column 'dice'"),
        ("training.csv", "npv", "other", "training.csv: has no column 'npv'"),
        ("training.csv", "0.3,0.3", "0.3,x", "training.csv: line 4, accuracy: 'x' is not a number"),
        ("validation.csv", r"\n8,3,.*", "\n8,3,0.4", "validation.csv: line 5 has 3 of 10 values, it is cut off"),
        ("training.csv", r"(.*)\d\d\n", r"\1", "training.csv: its last line has no end, it is cut off"),
        ("evaluation/per_case.csv", "assd_mm", "assd", "per_case.csv: has no column 'assd_mm'"),
        ("run.json", "}", "", "run.json: is damaged"),
        ("run.json", r"\{.*\}", "[1]", "run.json: is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, finished, file, old, new, message):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    damage(folder, file, old, new)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_run(folder, "run")
    assert str(folder) in str(caught.value)


def test_a_file_of_other_bytes_is_named(tmp_path, finished):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "training.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"training\.csv: cannot be read as a CSV"):
        read_run(folder, "run")


def test_a_damaged_mask_is_named(tmp_path, finished):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    mask = folder / "evaluation/predictions/volume-0_seg.nii.gz"
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(InputError, match=r"volume-0_seg\.nii\.gz: cannot be read as an image"):
        load_case(read_run(folder, "run"), "volume-0", "liver")


def test_a_mask_on_another_grid_is_named(tmp_path, finished):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    save(folder / "evaluation/predictions/volume-0_seg.nii.gz", np.zeros((5, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"volume-0_seg\.nii\.gz: has another grid than .*volume-0\.nii\.gz"):
        load_case(read_run(folder, "run"), "volume-0", "liver")


def test_runs_that_find_other_things_are_not_compared(tmp_path, finished):
    both = write_run(tmp_path / "both", radii=(24,), classes=("liver", "tumor"))
    runs = [read_run(finished[0], "wide"), read_run(both, "both")]
    with pytest.raises(InputError, match=rf"{both}/evaluation/per_case.csv: is of liver and tumor, but .* of liver: "):
        check_comparable(runs)
    (both / "evaluation/per_case.csv").unlink()
    header, *rows = (both / "training.csv").read_text(encoding="utf-8").splitlines()
    wider = [header + ",dice_liver,dice_tumor", *(row + ",0,0" for row in rows)]
    (both / "training.csv").write_text("\n".join(wider) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"both/training.csv: is of liver and tumor"):
        check_comparable([runs[0], read_run(both, "both")])


def test_runs_that_are_set_to_find_other_things_are_not_compared_before_they_are_evaluated(tmp_path):
    for target in ("liver", "tumor"):
        write_curves(tmp_path / target, 2, 1.0)
        (tmp_path / target / "manifest.json").write_text(json.dumps({"config": {"target": target}}), encoding="utf-8")
    runs = [read_run(tmp_path / target, target) for target in ("liver", "tumor")]
    with pytest.raises(InputError, match=r"tumor/manifest.json: is of tumor, but .*liver/manifest.json of liver"):
        check_comparable(runs)


def test_cases_of_one_name_that_are_other_scans_are_named(tmp_path, finished):
    other = shutil.copytree(finished[1], tmp_path / "other")
    damage(other, "evaluation/per_case.csv", ",1.0,2.0,", ",1.0,2.5,")
    message = r"other/evaluation/per_case.csv: its volume-0 has 2.5 ml of liver and that of .*wide 2.0 ml"
    with pytest.raises(InputError, match=message):
        write_report([str(finished[0]), str(other)], str(tmp_path / "report"))


@pytest.mark.parametrize("kind, message", [("none", "no such folder"), ("empty", "training.csv: no such file")])
def test_a_folder_without_a_run_is_named(tmp_path, kind, message):
    if kind == "empty":
        (tmp_path / kind).mkdir()
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / kind, kind)


def test_as_many_names_as_runs_are_needed(tmp_path, finished):
    with pytest.raises(InputError, match="1 names for 2 runs; give one each"):
        write_report([str(folder) for folder in finished], str(tmp_path), ["one"])


@pytest.mark.parametrize(
    "names, message", [(["A", "A"], "'A' is given twice"), (["A b", "a-B"], "give the same file names")]
)
def test_names_that_would_overwrite_each_other_s_files_are_refused(tmp_path, finished, names, message):
    with pytest.raises(InputError, match=message):
        write_report([str(folder) for folder in finished], str(tmp_path), names)


def test_the_tables_of_an_evaluation_are_not_written_over(finished):
    with pytest.raises(InputError, match=r"evaluation: has an evaluation's tables, some of the same names"):
        write_report([str(folder) for folder in finished], str(finished[-1] / "evaluation"))


def test_a_file_in_the_place_of_the_output_folder_is_named(tmp_path, finished):
    (tmp_path / "report").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"report: is a file; give a folder as --output_dir"):
        write_report([str(finished[0])], str(tmp_path / "report"))


def test_the_command_writes_the_page_and_says_where(tmp_path):
    runs = [tmp_path / "runs/a", tmp_path / "runs/b"]
    for run in runs:
        write_curves(run, 2, 1.0)
    command = [sys.executable, "-m", "scripts.report", "--runs", *map(str, runs), "--names", "A", "B"]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path)], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "index.html")
    result = subprocess.run(
        [*command[:3], "--runs", str(tmp_path), "--output_dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}/training.csv: no such file")
