"""The report shows what run folders hold, says what they do not hold, and names the file that is damaged."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import InputError
from scripts.report import tables
from scripts.report.__main__ import write_report
from scripts.report.cases import choose_cases, distance_to_surface, load_case, surface_of
from scripts.report.page import write_headline
from scripts.report.read import METRICS, name_runs, read_run
from scripts.report.statistics import compare, last_third_mean
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
                {"case": f"segmentation-{number}", "class": name}
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
    assert (cost["training_s"], cost["validation_s"], cost["output_s"], cost["total_s"]) == (15, 3, 0.25, 18.25)
    assert (cost["parameters"], cost["checkpoint_mb"]) == (1234, 5.0)
    assert math.isnan(cost["peak_memory_mb"])


def test_test_cases_have_mean_and_sd_and_the_undefined_stays_so(finished):
    row = tables.of_test_cases([read_run(finished[0], "wide")])[0]
    assert (row["cases"], row["hd95_mm"], row["hd95_mm_sd"]) == (3, 2, 2)  # of 4, 2, 0
    assert math.isnan(row["assd_mm"])


# --- cases -------------------------------------------------------------------------------------------------------


def test_best_median_and_worst_case_are_by_dice(finished):
    run = read_run(finished[0], "wide")
    assert choose_cases(run, "liver") == {
        "best": "segmentation-2",
        "median": "segmentation-1",
        "worst": "segmentation-0",
    }


def test_fewer_cases_are_shown_once_each(tmp_path):
    one = read_run(write_run(tmp_path / "one", radii=(20,)), "one")
    assert choose_cases(one, "liver") == {"best": "segmentation-0"}
    two = read_run(write_run(tmp_path / "two", radii=(20, 22)), "two")
    assert sorted(choose_cases(two, "liver").values()) == ["segmentation-0", "segmentation-1"]


def test_a_label_with_other_axes_than_its_image_is_shown_where_it_belongs(tmp_path):
    folder = write_run(tmp_path / "run", radii=(24,))
    label = tmp_path / "data/segmentation-0.nii.gz"
    moved = ball(15, center_mm=(30, 44, 40)).astype(np.uint8)
    nib.save(nib.Nifti1Image(moved, AFFINE).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), label)
    case = load_case(read_run(folder, "run"), "segmentation-0")
    np.testing.assert_array_equal(case.truth, moved > 0)
    assert case.spacing_mm == SPACING


def test_scans_are_shown_in_ras_whatever_their_axes(tmp_path):
    folder = write_run(tmp_path / "run", radii=(24,))
    straight = load_case(read_run(folder, "run"), "segmentation-0")
    for path in [*(tmp_path / "data").iterdir(), *(folder / "evaluation/predictions").iterdir()]:
        nib.save(nib.load(path).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]])), path)
    turned = load_case(read_run(folder, "run"), "segmentation-0")
    for part in ("image", "truth", "pred"):
        np.testing.assert_array_equal(getattr(turned, part), getattr(straight, part))


@pytest.mark.parametrize("classes, foreground", [(("liver",), 3), (("tumor",), 1), (("liver", "tumor"), 3)])
def test_truth_is_what_the_run_was_trained_for(tmp_path, classes, foreground):
    folder = write_run(tmp_path / "run", radii=(24,), classes=classes)
    label = np.zeros((40, 40, 20), np.uint8)
    label[0, 0, :3] = (1, 1, 2)
    save(tmp_path / "data/segmentation-0.nii.gz", label)
    assert load_case(read_run(folder, "run"), "segmentation-0").truth.sum() == foreground


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


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) == 3 + 6 + 1 + 1  # cases, three figures of two runs, losses, all cases
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "<script" not in html


def test_every_figure_and_table_is_a_file_too(report):
    names = {path.name for path in report.iterdir()}
    drawings = [f"{kind}-{run}" for kind in ("curves", "boxes", "bars") for run in LETTERS] + ["loss", "cases-liver"]
    assert {f"{name}.{suffix}" for name in drawings for suffix in ("png", "svg")} < names
    assert {f"case-{kind}.png" for kind in ("best", "median", "worst")} < names
    assert {f"{t}.csv" for t in ("converged", "differences", "costs", "test", "significance", "per_case")} < names


def test_the_csv_has_the_values_of_the_runs(report, finished):
    cases = {row["case"]: row for row in rows_of(finished[1] / "evaluation/per_case.csv")}
    for row in rows_of(report / "per_case.csv"):
        assert float(row["narrow: dice"]) == pytest.approx(float(cases[row["case"]]["dice"]), rel=1e-5)
        assert float(row["true_volume_ml"]) == 2
    assert [row["cases"] for row in rows_of(report / "significance.csv")] == ["3"] * 5 + ["0"]


def test_the_page_says_which_run_is_ahead_and_that_few_cases_are_no_test(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "wide is ahead of narrow by" in html
    assert "at least 6 cases are needed" in html


def test_the_page_says_the_paper_s_names_of_the_measures(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "is sensitivity, TP / (TP + FN)" in html
    for heading in ("Sensitivity", "NPV", "Specificity", "Precision"):
        assert f">{heading}</th>" in html


def test_names_that_look_like_html_are_text(tmp_path, finished):
    write_report([str(finished[0])], str(tmp_path), ["<b>bold & co</b>"])
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "&lt;b&gt;bold &amp; co" in html


def test_a_run_that_is_still_going_is_shown_as_far_as_it_went(tmp_path):
    folder = tmp_path / "young"
    write_curves(folder, 2, 1.0)
    (folder / "validation.csv").unlink()
    write_report([str(folder)], str(tmp_path / "report"))
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "No run has been evaluated on test cases yet" in html
    assert "2 epochs; not validated yet; not evaluated; without run.json" in html
    assert (tmp_path / "report/curves-young.png").is_file()


def test_one_evaluated_run_beside_one_that_is_not(tmp_path, finished):
    write_curves(tmp_path / "young", 3, 1.0)
    write_report([str(tmp_path / "young"), str(finished[0])], str(tmp_path / "report"))
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "young has not been evaluated on test cases." in html
    assert "wide: mean Dice of liver" in html


def test_scans_that_are_gone_leave_their_pictures_out(tmp_path, finished):
    folder = shutil.copytree(finished[0], tmp_path / "wide")
    shutil.rmtree(folder / "evaluation/predictions")
    write_report([str(folder)], str(tmp_path / "report"))
    assert "The worst case, segmentation-0, has no picture" in (tmp_path / "report/index.html").read_text(
        encoding="utf-8"
    )


def test_runs_without_a_common_case_are_not_compared(tmp_path, finished):
    other = shutil.copytree(finished[1], tmp_path / "narrow")
    per_case = other / "evaluation/per_case.csv"
    per_case.write_text(per_case.read_text(encoding="utf-8").replace("segmentation-", "another-"))
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
        ("training.csv", "npv", "other", "training.csv: has no column 'npv'"),
        ("training.csv", "0.3,0.3", "0.3,x", "training.csv: line 4, accuracy: 'x' is not a number"),
        ("validation.csv", r"\n8,3,.*", "\n8,3,0.4", "validation.csv: line 5 has 3 of 10 values, it is cut off"),
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
        load_case(read_run(folder, "run"), "segmentation-0")


def test_a_mask_on_another_grid_is_named(tmp_path, finished):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    save(folder / "evaluation/predictions/volume-0_seg.nii.gz", np.zeros((5, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"volume-0_seg\.nii\.gz: has another grid than .*volume-0\.nii\.gz"):
        load_case(read_run(folder, "run"), "segmentation-0")


@pytest.mark.parametrize("kind, message", [("none", "no such folder"), ("empty", "training.csv: no such file")])
def test_a_folder_without_a_run_is_named(tmp_path, kind, message):
    if kind == "empty":
        (tmp_path / kind).mkdir()
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / kind, kind)


def test_as_many_names_as_runs_are_needed(tmp_path, finished):
    with pytest.raises(InputError, match="1 names for 2 runs; give one each"):
        write_report([str(folder) for folder in finished], str(tmp_path), ["one"])


def test_the_command_writes_the_page_and_says_where(tmp_path, finished):
    command = [sys.executable, "-m", "scripts.report", "--runs", *map(str, finished), "--names", "A", "B"]
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
