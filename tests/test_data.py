"""Every target has its classes, the split is the paper's, and the datalist leaves nothing unsaid."""

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import data
from scripts.data import get_cases, get_datalist, make_datalist, split_cases
from scripts.errors import InputError
from tests.niftis import (
    SHAPE,
    make_image,
    make_label,
    pair,
    save,
    save_case,
    save_lits,
    set_voxel,
    truncate,
    write_json,
)


def list_names(items):
    return [Path(item["image"]).name for item in items]


def read_table(file):
    return Path(file).read_text(encoding="utf-8")


# ---- targets ----


@pytest.mark.parametrize(
    ("target", "names", "labels"),
    [
        ("liver", ("background", "liver"), [0, 1, 1]),
        ("tumor", ("background", "tumor"), [0, 0, 1]),
        ("liver_and_tumor", ("background", "liver", "tumor"), [0, 1, 2]),
    ],
)
def test_target_has_its_classes_and_maps_lits_labels_to_them(target, names, labels):
    assert data.class_names(target) == names
    assert data.target_labels(target) == labels


@pytest.mark.parametrize("function", [data.class_names, data.target_labels])
def test_unknown_target_is_answered_with_the_three_there_are(function):
    with pytest.raises(InputError, match="'lver' is unknown; give one of liver, tumor, liver_and_tumor"):
        function("lver")


# ---- splitting ----


def make_names(count):
    return [f"volume-{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (130, (88, 22, 20)),
        (131, (89, 22, 20)),  # quotas 88.7, 22.2, 20.2
        (20, (14, 3, 3)),  # quotas 13.54, 3.38, 3.08: 13 + 3 + 3, and the largest remainder is training's
        (10, (7, 2, 1)),  # quotas 6.77, 1.69, 1.54
        (4, (2, 1, 1)),  # quotas 2.71, 0.68, 0.62 would be 3, 1, 0
        (3, (1, 1, 1)),
        (2, (1, 1, 0)),
        (1, (1, 0, 0)),
        (0, (0, 0, 0)),
    ],
)
def test_split_is_in_the_papers_proportion(count, sizes):
    assert tuple(map(len, split_cases(make_names(count), seed=0))) == sizes


@pytest.mark.parametrize("count", range(9))
def test_split_leaves_no_section_empty_that_can_have_a_case(count):
    sizes = list(map(len, split_cases(make_names(count), seed=0)))
    assert [size > 0 for size in sizes] == [count > 0, count > 1, count > 2]


def test_split_puts_every_case_in_exactly_one_section_sorted_by_number():
    split = split_cases(make_names(130), seed=3)
    assert sorted(itertools.chain(*split)) == sorted(make_names(130))
    for names in split:
        numbers = [int(name.split("-")[1]) for name in names]
        assert numbers == sorted(numbers)


def test_split_depends_on_the_seed_and_not_on_the_order():
    split = split_cases(make_names(130), seed=1)
    assert split_cases(reversed(make_names(130)), seed=1) == split
    assert split_cases(make_names(130), seed=2) != split


def test_split_is_the_same_in_every_release():
    # Regression: a changed draw would put cases that a published model was trained on into the test set.
    assert split_cases(make_names(6), seed=0) == (
        ["volume-1", "volume-2", "volume-3", "volume-5"],
        ["volume-4"],
        ["volume-0"],
    )


def test_split_refuses_names_that_repeat():
    with pytest.raises(ValueError, match="expected distinct names, received 2 of which 1 differ"):
        split_cases(["a", "a"], 0)


# ---- the datalist ----


def test_datalist_is_written_with_all_cases_and_a_table_beside_it(tmp_path):
    lits = save_lits(tmp_path / "lits", range(5))
    save_case(lits, 5, image=make_image()[..., :40], label=make_label()[..., :40])
    output_file = tmp_path / "new" / "folder" / "datalist.json"
    datalist = make_datalist(lits, output_file, seed=1)

    assert json.loads(output_file.read_text(encoding="utf-8")) == datalist
    assert [len(datalist[section]) for section in data.SECTIONS] == [3, 1, 1]  # quotas 3.38, 0.85, 0.77
    items = [item for section in data.SECTIONS for item in datalist[section]]
    assert sorted(list_names(items)) == [f"volume-{number}.nii" for number in range(5)]
    for item in items:
        assert list(item) == ["image", "label"]
        assert all(os.path.isabs(file) and os.path.exists(file) for file in item.values())
        assert item["label"] == item["image"].replace("volume", "segmentation")
    assert (datalist["dataset_dir"], datalist["seed"], datalist["min_slices"]) == (str(lits), 1, 48)
    assert datalist["cases"][5] == {
        "name": "volume-5",
        "section": None,
        "status": "dropped",
        "slices": 40,
        "spacing_mm": [1.5, 1.5, 2.0],
        "liver_ml": 0.9,
        "tumor_ml": 0.09,
        "findings": ["dropped: volume-5.nii: 40 slices, fewer than 48"],
    }

    table = read_table(tmp_path / "new" / "folder" / "datalist.md").splitlines()
    assert table[2].endswith("lits: 6 cases: 3 training, 1 validation, 1 test, 1 dropped")
    assert len({len(line) for line in table[4:]}) == 1  # aligned
    cells = [cell.strip() for cell in table[-1].strip("|").split("|")]
    finding = "dropped: volume-5.nii: 40 slices, fewer than 48"
    assert cells == ["volume-5", "-", "dropped", "40", "1.5 x 1.5 x 2", "0.9", "0.09", finding]
    assert sorted(file.name for file in output_file.parent.iterdir()) == ["datalist.json", "datalist.md"]


def test_bad_cases_stop_the_datalist_and_are_all_in_the_table(tmp_path):
    lits = save_lits(tmp_path / "lits", range(5))
    truncate(lits / "volume-1.nii")
    save(lits / "segmentation-3.nii", set_voxel(make_label(), 9))
    message = (
        r"2 of 5 cases cannot be used, first .*volume-1\.nii: cannot be read .*; see .*list\.md; "
        r"fix or remove the file, or leave bad cases out with --skip_bad_cases true"
    )
    with pytest.raises(InputError, match=message):
        make_datalist(lits, tmp_path / "list.json")
    assert not (tmp_path / "list.json").exists()
    table = read_table(tmp_path / "list.md")
    assert "error: volume-1.nii: cannot be read" in table
    assert "error: segmentation-3.nii: has label values other than 0, 1 and 2: 9" in table


def test_broken_file_has_no_measures_in_the_datalist(tmp_path):
    lits = save_lits(tmp_path / "lits", range(2))
    truncate(lits / "volume-1.nii")
    row = make_datalist(lits, tmp_path / "list.json", skip_bad_cases=True)["cases"][1]
    assert [row[key] for key in ("slices", "spacing_mm", "liver_ml", "tumor_ml")] == [None] * 4
    assert "| volume-1 | -        | bad    | -      |" in read_table(tmp_path / "list.md")


def test_bad_cases_are_left_out_and_listed_when_asked(tmp_path):
    lits = save_lits(tmp_path / "lits", range(4))
    truncate(lits / "volume-1.nii")
    datalist = make_datalist(lits, tmp_path / "list.json", skip_bad_cases=True)
    assert sum(len(datalist[section]) for section in data.SECTIONS) == 3
    assert [row["status"] for row in datalist["cases"]] == ["ok", "bad", "ok", "ok"]
    assert "1 bad" in read_table(tmp_path / "list.md")


def test_datalist_of_nothing_is_refused(tmp_path):
    lits = save_lits(tmp_path / "lits", range(2))
    with pytest.raises(
        InputError,
        match=r"lits: no case is left \(2 cases: 2 dropped\); the first has 48 slices, .*: --min_slices 1 keeps such",
    ):
        make_datalist(lits, tmp_path / "list.json", min_slices=49)
    assert not (tmp_path / "list.json").exists()


def test_datalist_must_be_named_json_so_that_the_table_is_another_file(tmp_path):
    with pytest.raises(InputError, match=r"list\.md: a datalist's name must end in \.json"):
        make_datalist(tmp_path, tmp_path / "list.md")


def test_output_that_cannot_be_written_is_named(tmp_path):
    lits = save_lits(tmp_path / "lits", range(1))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"list\.md: cannot be written .*; give another place"):
        make_datalist(lits, tmp_path / "file" / "list.json")


def test_users_own_split_is_kept_and_its_cases_are_checked(tmp_path):
    save_lits(tmp_path, range(4))
    content = {"training": [pair(3), pair(0)], "validation": [pair(1)], "name": "mine"}
    mine = write_json(tmp_path / "mine.json", content)
    datalist = make_datalist(mine, tmp_path / "out" / "list.json")
    assert [list_names(datalist[section]) for section in data.SECTIONS] == [
        ["volume-0.nii", "volume-3.nii"],
        ["volume-1.nii"],
        [],
    ]
    save(tmp_path / "volume-1.nii", np.zeros(SHAPE, np.int16))
    with pytest.raises(InputError, match=r"volume-1\.nii: every voxel is 0"):
        make_datalist(mine, tmp_path / "out" / "list.json")


def test_folder_with_a_datalist_named_dataset_json_keeps_its_split(tmp_path):
    save_lits(tmp_path, range(3))
    write_json(tmp_path / "dataset.json", {"training": [pair(2)], "validation": [pair(1)], "test": [pair(0)]})
    datalist = make_datalist(tmp_path, tmp_path / "list.json")
    assert list_names(datalist["training"] + datalist["validation"] + datalist["test"]) == [
        "volume-2.nii",
        "volume-1.nii",
        "volume-0.nii",
    ]


def test_written_datalist_can_be_given_as_data_again(tmp_path):
    datalist = make_datalist(save_lits(tmp_path / "lits", range(4)), tmp_path / "list.json", seed=5)
    again = make_datalist(tmp_path / "list.json", tmp_path / "again.json", seed=6)
    assert all(again[section] == datalist[section] for section in data.SECTIONS)


def test_msd_training_list_is_split(tmp_path):
    save_lits(tmp_path, range(4))
    training = [pair(number) for number in range(4)]
    write_json(tmp_path / "dataset.json", {"training": training, "test": ["./imagesTs/liver_132.nii.gz"]})
    datalist = make_datalist(tmp_path, tmp_path / "list.json")
    assert [len(datalist[section]) for section in data.SECTIONS] == [2, 1, 1]


def test_datalist_is_made_once_and_then_reused(tmp_path, monkeypatch):
    lits = save_lits(tmp_path / "lits", range(4))
    made = get_datalist(lits, tmp_path / "list.json")
    monkeypatch.setattr(data, "make_datalist", None)
    monkeypatch.chdir(tmp_path)
    assert get_datalist("lits", "list.json") == made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"seed": 1},
            r"list\.json: was made with seed 0, not 1; give --seed 0, or for another training another",
        ),
        ({"min_slices": 9}, r"list\.json: was made with min_slices 48, not 9; give --min_slices 48, or"),
        (
            {"dataset_dir": "elsewhere"},
            r"with dataset_dir .*lits, not .*elsewhere; give --dataset_dir .*lits, or",
        ),
    ],
)
def test_datalist_made_otherwise_is_not_reused(tmp_path, settings, message):
    lits = save_lits(tmp_path / "lits", range(1))
    get_datalist(lits, tmp_path / "list.json")
    with pytest.raises(InputError, match=message):
        get_datalist(**{"dataset_dir": lits, "datalist_file": tmp_path / "list.json", **settings})


def test_what_is_left_out_is_said_in_every_run(tmp_path, caplog):
    lits = save_lits(tmp_path / "lits", range(3))
    save_case(lits, 7, image=set_voxel(make_image(), -1007)[..., :40], label=make_label()[..., :40])
    for _ in range(2):
        caplog.clear()
        get_datalist(lits, tmp_path / "list.json")
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert record.getMessage() == (
            "left out 1 of 4 cases (volume-7: dropped: volume-7.nii: 40 slices, fewer than 48), in a new --output_dir "
            "--min_slices 1 keeps short ones"
        )


def test_datalist_whose_file_is_gone_is_not_reused(tmp_path):
    lits = save_lits(tmp_path / "lits", range(2))
    get_datalist(lits, tmp_path / "list.json")
    (lits / "segmentation-1.nii").unlink()
    with pytest.raises(InputError, match=r"segmentation-1\.nii: is gone, but .*list\.json lists it"):
        get_datalist(lits, tmp_path / "list.json")


def test_datalist_of_other_making_is_not_reused(tmp_path):
    write_json(tmp_path / "list.json", {"training": [pair(0)]})
    with pytest.raises(InputError, match=r"list\.json: was not made by this bundle; .*goes to --dataset_dir"):
        get_datalist(tmp_path, tmp_path / "list.json")


def test_a_list_of_the_users_own_that_was_changed_is_not_ignored(tmp_path, caplog):
    lits = save_lits(tmp_path / "lits", range(4))
    items = [pair(number) for number in range(4)]
    own = lits / "own.json"

    def write(training, validation, test):
        sections = {"training": training, "validation": validation, "test": test}
        write_json(own, {name: [items[number] for number in numbers] for name, numbers in sections.items()})

    write([0, 1], [2], [3])
    get_datalist(own, tmp_path / "list.json")
    write([0, 3], [2], [1])
    with pytest.raises(InputError, match=r"list\.json: has volume-1 for training, .*own\.json for test by now; delete"):
        get_datalist(own, tmp_path / "list.json")
    write([0, 1], [2], [])
    with caplog.at_level(logging.WARNING):
        get_datalist(own, tmp_path / "list.json")
    assert "list.json has 1 cases that" in caplog.text
    (lits / "corrected").mkdir()
    shutil.copy(lits / "segmentation-1.nii", lits / "corrected")
    items[1] = items[1] | {"label": "corrected/segmentation-1.nii"}
    write([0, 1], [2], [3])
    with pytest.raises(InputError, match=r"list\.json: has another image or label of volume-1 than .*own\.json has by"):
        get_datalist(own, tmp_path / "list.json")


def test_cases_added_after_the_datalist_was_made_are_counted_in_the_log(tmp_path, caplog):
    lits = save_lits(tmp_path / "lits", range(1))
    made = get_datalist(lits, tmp_path / "list.json")
    save_lits(lits, (1, 2))
    with caplog.at_level(logging.WARNING):
        assert get_datalist(lits, tmp_path / "list.json") == made
    assert "list.json lacks 2 newer cases" in caplog.text


def test_section_gives_its_items_and_an_empty_one_says_so():
    items = [{"image": "a.nii", "label": "b.nii"}]
    datalist = {"training": items, "validation": [], "dataset_dir": "/lits"}
    assert get_cases(datalist, "training") == items
    for section in ("validation", "test"):
        with pytest.raises(InputError, match=f"/lits: has no cases for {section}"):
            get_cases(datalist, section)


# ---- the command line ----


def run_command(*arguments):
    command = [sys.executable, "-m", "scripts.data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=Path(__file__).parent.parent)


def test_make_ends_with_the_counts_and_where_the_files_are(tmp_path):
    lits = save_lits(tmp_path / "lits", range(4))
    result = run_command("make", "--dataset_dir", lits, "--output_file", tmp_path / "list.json", "--seed", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "4 cases: 2 training, 1 validation, 1 test; "
        f"datalist: {tmp_path / 'list.json'}; table: {tmp_path / 'list.md'}\n"
    )
    assert json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))["seed"] == 2


def test_make_understands_true_and_false_as_words(tmp_path, capsys):
    lits = save_lits(tmp_path / "lits", range(3))
    truncate(lits / "volume-1.nii")
    with pytest.raises(InputError, match="1 of 3 cases cannot be used"):
        data.make(lits, tmp_path / "list.json", skip_bad_cases="false")
    data.make(lits, tmp_path / "list.json", skip_bad_cases="true")
    assert capsys.readouterr().out.startswith("3 cases: 1 training, 1 validation, 1 bad;")
    with pytest.raises(InputError, match="'maybe': is no switch; write true or false"):
        data.make(lits, tmp_path / "list.json", skip_bad_cases="maybe")


def test_check_reports_every_finding_by_severity_in_json_and_tables_and_fails_in_one_line(tmp_path):
    lits = save_lits(tmp_path / "lits", range(5))
    truncate(lits / "volume-1.nii")
    save(lits / "segmentation-1.nii", np.zeros(SHAPE, np.float32)[..., 1])
    save_case(lits, 2, image=set_voxel(make_image(), -1002)[..., :40], label=make_label()[..., :40])
    save(lits / "segmentation-3.nii", np.zeros(SHAPE, np.uint8))
    (lits / "segmentation-4.nii").unlink()
    result = run_command("check", "--dataset_dir", lits, "--output_file", tmp_path / "report.json", "--workers", 2)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: 3 errors, 1 of 4 cases cannot be used, first {lits / 'volume-4.nii'}: has no segmentation-4.nii[.gz]; "
    )
    assert result.stderr.count("\n") == 1  # progress is shown on a terminal alone

    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["dataset_dir"] == str(lits)
    assert report["counts"] == {"error": 3, "dropped": 1, "warning": 1}
    assert [(row["severity"], row["case"], Path(row["file"]).name) for row in report["findings"]] == [
        ("error", None, "volume-4.nii"),
        ("error", "volume-1", "volume-1.nii"),
        ("error", "volume-1", "segmentation-1.nii"),
        ("dropped", "volume-2", "volume-2.nii"),
        ("warning", "volume-3", "segmentation-3.nii"),
    ]
    assert report["findings"][-1]["reason"] == "is empty: no liver and no tumour"
    assert [row["status"] for row in report["cases"]] == ["ok", "bad", "dropped", "ok"]

    tables = read_table(tmp_path / "report.md")
    assert result.stdout.strip() == tables.strip()
    assert f"{lits}: 4 cases: 2 ok, 1 dropped, 1 bad; findings: 3 error, 1 dropped, 1 warning" in tables
    assert "| warning  | volume-3 | segmentation-3.nii | is empty: no liver and no tumour" in tables


def test_check_of_sound_cases_and_of_doubtful_ones_succeeds(tmp_path, capsys):
    lits = save_lits(tmp_path / "lits", range(2))
    data.check(lits)
    assert "2 cases: 2 ok; findings: none" in capsys.readouterr().out
    save(lits / "segmentation-1.nii", np.zeros(SHAPE, np.uint8))
    data.check(lits)
    assert "2 cases: 2 ok; findings: 1 warning" in capsys.readouterr().out


def test_check_says_which_number_it_cannot_use(tmp_path):
    lits = save_lits(tmp_path / "lits", range(1))
    with pytest.raises(InputError, match="workers: expected a whole number of at least 1, received 0"):
        data.check_dataset(lits, workers=0)
    with pytest.raises(InputError, match="min_slices: expected a whole number of at least 0, received 'few'"):
        data.check_dataset(lits, min_slices="few")


def test_check_shows_the_sections_of_the_users_own_split_and_a_scan_that_is_in_two(tmp_path):
    lits = save_lits(tmp_path / "lits", range(3))
    save(lits / "volume-2.nii", set_voxel(make_image(), -1000))  # as volume-0
    mine = write_json(lits / "mine.json", {"training": [pair(0)], "validation": [pair(1)], "test": [pair(2)]})
    report = data.check_dataset(mine)
    assert [row["section"] for row in report["cases"]] == ["training", "validation", "test"]
    (finding,) = report["findings"]
    assert (finding["severity"], finding["case"]) == ("error", "volume-2")
    assert finding["reason"] == f"is the same scan as {lits / 'volume-0.nii'} of training; remove one of the two"


def test_check_refuses_a_report_that_would_not_be_json(tmp_path):
    with pytest.raises(InputError, match=r"table\.md: a report's name must end in \.json"):
        data.check(tmp_path, tmp_path / "table.md")


def test_check_says_that_nothing_is_there(tmp_path):
    with pytest.raises(InputError, match=r"1 error, 0 of 0 cases cannot be used, first .*: no cases found"):
        data.check(tmp_path)
