import json

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import InputError
from scripts.files import write_table
from scripts.phantom.tabulate import find_tumours, name_range, tabulate


def write_evaluation(folder, cases: list[dict]) -> None:
    """An evaluation's table, and what was written of each phantom beside its image."""
    rows = []
    for number, case in enumerate(cases):
        described = {"phase": "portal", "view": "liver", "liver_kind": "usual", "thickness_mm": 2.0, "tumour_ml": []}
        described |= {key: case[key] for key in case if key in (*described, "liver_ml")}
        (folder / f"phantom-{number}.json").write_text(json.dumps(described), encoding="utf-8")
        rows.append(
            {
                "case": str(number),
                "class": case.get("class", "liver"),
                "dice": case.get("dice", float("nan")),
                "hd95_mm": case.get("hd95_mm", float("nan")),
                "volume_ml": case["volume_ml"],
                "reference_volume_ml": case["liver_ml"],
                "image": str(folder / f"volume-{number}.nii.gz"),
                "label": case.get("label", ""),
                "prediction": case.get("prediction", ""),
            }
        )
    write_table(folder / "per_case.csv", rows)


def test_values_are_in_the_range_that_begins_with_them():
    assert [name_range(value, (1.5, 3.0), "mm") for value in (1.4, 1.5, 2.9, 3.0, 8.0)] == [
        "< 1.5 mm",
        "1.5-3 mm",
        "1.5-3 mm",
        ">= 3 mm",
        ">= 3 mm",
    ]


def test_cases_are_averaged_by_group_and_those_without_liver_apart(tmp_path):
    write_evaluation(
        tmp_path,
        [
            {"dice": 0.9, "hd95_mm": 4.0, "volume_ml": 880.0, "liver_ml": 800.0, "phase": "native"},
            {"dice": 0.8, "hd95_mm": 6.0, "volume_ml": 1470.0, "liver_ml": 1500.0, "thickness_mm": 6.0},
            {"dice": 1.0, "hd95_mm": 0.0, "volume_ml": 1200.0, "liver_ml": 1200.0},
            {"dice": 0.0, "volume_ml": 30.0, "liver_ml": 0.0, "view": "head"},
            {"volume_ml": 0.0, "liver_ml": 0.0, "view": "pelvis"},
        ],
    )
    text = tabulate(tmp_path, tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    lines = text.splitlines()
    # Mean of 0.9, 0.8 and 1.0; their 5th percentile is 0.8 + 0.1 * 0.1; errors of 10 %, 2 % and 0.
    assert "| all |  | 3 | 0.900 | 0.810 | 4.0 | 2.0% |" in lines
    assert "| phase | native | 1 | 0.900 | 0.900 | 4.0 | 10.0% |" in lines
    assert "| slices | >= 5 mm | 1 | 0.800 | 0.800 | 6.0 | 2.0% |" in lines
    livers = [line for line in lines if line.startswith("| liver |")]
    assert [line.split(" | ")[1] for line in livers] == ["500-1000 ml", "1000-2000 ml"]
    assert lines[-1] == "| 2 | 1 | 15.0 | 30.0 |"


def test_a_tumour_is_found_if_a_tenth_of_it_is_and_its_dice_counts_what_touches_it():
    label, pred = np.zeros((2, 20, 20, 20), bool)
    label[2:4, 2:7, 2] = label[10:12, 10:15, 10] = label[16:18, 2:7, 16] = True  # three of ten voxels
    pred[2, 2, 2] = True  # a tenth of the first
    pred[9, 10:15, 10] = True  # beside the second
    pred[16:18, 2:7, 15:17] = True  # the third, and as much beside it
    (first, second, third), false_pieces = find_tumours(label, pred, voxel_mm3=8.0)
    assert (first.found, second.found, third.found) == (True, False, True)
    assert (first.dice, second.dice, third.dice) == pytest.approx((2 / 11, 0.0, 20 / 30))
    assert first.diameter_mm == second.diameter_mm == pytest.approx((6 * 80 / np.pi) ** (1 / 3))
    assert false_pieces == 1
    assert find_tumours(np.zeros_like(label), pred, 8.0) == ([], 3)


def test_recall_is_by_size_and_does_not_mind_other_axes(tmp_path):
    label = np.zeros((30, 30, 30), np.uint8)
    label[2:28, 2:28, 2:28] = 1
    label[5:9, 5:9, 5:9] = 2  # of 4 mm: a sphere of as much has 5 mm
    label[15:27, 12:24, 12:24] = 2  # 12 mm: 14.9 mm
    pred = np.where(label == 2, 1, label)
    pred[15:27, 12:24, 12:24] = 2
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 29
    nib.save(nib.Nifti1Image(pred[::-1], flipped), tmp_path / "pred.nii.gz")
    files = {"label": str(tmp_path / "label.nii.gz"), "prediction": str(tmp_path / "pred.nii.gz")}
    case = {"volume_ml": 17.6, "liver_ml": 17.6, "dice": 1.0, "tumour_ml": [1.7, 0.1]}
    write_evaluation(tmp_path, [case, {**case, **files, "class": "tumor", "dice": 0.98}])
    lines = tabulate(tmp_path).splitlines()
    at = lines.index("| tumours of | number | found | recall | Dice |")
    assert lines[at + 2 : at + 4] == ["| < 10 mm | 1 | 0 | 0.00 | 0.00 |", "| 10-20 mm | 1 | 1 | 1.00 | 1.00 |"]
    assert lines[-1] == "| 1 | 0.980 | 0.980 | 0.0 |"


def test_what_is_missing_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"per_case\.csv: cannot be read"):
        tabulate(tmp_path)
    write_evaluation(tmp_path, [{"dice": 1.0, "volume_ml": 1.0, "liver_ml": 1.0, "class": "spleen"}])
    with pytest.raises(InputError, match="has no case of the liver or its tumours"):
        tabulate(tmp_path)
    (tmp_path / "phantom-0.json").unlink()
    with pytest.raises(InputError, match=r"phantom-0\.json: cannot be read"):
        tabulate(tmp_path)
