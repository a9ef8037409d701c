"""What is done is known, by whichever process and run it was done; the tables have all of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import InputError, find_input_error
from scripts.records import Records, own_images, parse_shard
from scripts.settings import write_settings
from tests.jobs import infer_with_oracle
from tests.test_inference import make_image, make_mask, save_nifti, truncated
from tests.test_workflows import read_json, table

SHAPE = (24, 20, 16)
NAMES = ("a", "b", "sub/c", "sub/d", "e")


@pytest.fixture
def archive(tmp_path):
    """Five scans, each with another volume of liver."""
    for number, name in enumerate(NAMES):
        mask = make_mask(SHAPE)
        mask[:number] = True
        save_nifti(tmp_path / "archive" / f"{name}.nii.gz", make_image(mask))
    return tmp_path / "archive"


@pytest.fixture
def infer(tmp_path, archive):
    """Run configs/inference.json with an oracle; return the folder of the results."""

    def infer_archive(output_dir="out", dataset_dir=archive, **overrides):
        settings = {"output_dir": str(tmp_path / output_dir), "amp": False, "preview": False, "check_hu": False}
        infer_with_oracle(tmp_path, dataset_dir, **(settings | overrides))
        return tmp_path / output_dir

    return infer_archive


def names_in(rows):
    return [row["image"].rpartition("archive/")[2].removesuffix(".nii.gz") for row in rows]


def times(out):
    return {path.name[0]: path.stat().st_mtime_ns for path in out.rglob("*_seg.nii.gz")}


def test_a_second_inference_into_a_folder_keeps_the_rows_and_the_manifest_of_the_first(archive, infer):
    out = infer(dataset_dir=str(archive / "a.nii.gz"))
    infer(dataset_dir=str(archive / "b.nii.gz"))
    rows = table(out / "volumes.csv")
    assert names_in(rows) == names_in(read_json(out / "volumes.json")) == ["a", "b"]
    assert int(rows[1]["liver_voxels"]) == int(rows[0]["liver_voxels"]) + SHAPE[1] * SHAPE[2]
    manifest = read_json(out / "inference_manifest.json")
    assert manifest["data"] == {"images": [{"image": ["b.nii.gz"]}]}
    assert [start["data"] for start in manifest["earlier"]] == [{"images": [{"image": ["a.nii.gz"]}]}]


def test_shards_in_any_order_give_the_tables_of_one_process(infer):
    whole = infer("whole")
    assert names_in(table(whole / "volumes.csv")) == sorted(NAMES)
    for shard in ("2/3", "0/3", "1/3"):
        parts = infer("parts", shard=shard)
    for name in ("volumes.csv", "volumes.json"):
        text = (parts / name).read_text(encoding="utf-8")
        assert text.replace("/parts/", "/whole/") == (whole / name).read_text(encoding="utf-8")
    images = [
        item["image"][0]
        for number in range(3)
        for item in read_json(parts / f"inference_manifest-{number}-of-3.json")["data"]["images"]
    ]
    assert len(images) == len(NAMES)


def test_what_is_done_is_skipped_if_asked_and_what_failed_is_tried_again(archive, infer, tmp_path):
    good = (archive / "b.nii.gz").read_bytes()
    truncated(archive / "b.nii.gz")
    with pytest.raises(Exception) as caught:
        infer()
    assert "1 of 5 images were not segmented" in str(find_input_error(caught.value))
    out = tmp_path / "out"
    assert names_in(table(out / "failed.csv")) == ["b"]
    (archive / "b.nii.gz").write_bytes(good)
    (out / "sub/c_seg.nii.gz").unlink()
    before = times(out)
    infer(skip_done="true")
    after = times(out)
    assert {name for name in after if after[name] != before.get(name)} == {"b", "c"}
    assert names_in(table(out / "volumes.csv")) == sorted(NAMES)
    assert not (out / "failed.csv").exists()
    infer(skip_done=True)  # nothing is left to do
    assert times(out) == after
    assert names_in(table(out / "volumes.csv")) == sorted(NAMES)


def test_masks_of_other_settings_or_weights_are_not_taken_for_done(infer, tmp_path):
    out = infer()
    first = times(out)
    infer(skip_done=True, preview=True, shard="0/1")  # of no effect on masks
    assert times(out) == first
    infer(skip_done=True, fill_holes=True)
    second = times(out)
    assert all(second[name] != first[name] for name in first)


def test_masks_of_other_weights_or_settings_of_these_are_not_taken_for_done(tmp_path):
    image, mask, weights = (tmp_path / name for name in ("ct.nii", "ct_seg.nii.gz", "model.pt"))
    for path in (image, mask):
        path.touch()
    weights.write_bytes(b"first")

    def is_done():
        return Records(tmp_path, tmp_path, weights).is_done(image)

    Records(tmp_path, tmp_path, weights).write({"image": str(image), "mask": str(mask)})
    assert is_done()
    weights.write_bytes(b"second")
    assert not is_done()
    weights.write_bytes(b"first")
    assert is_done()
    write_settings({"spacing": [3.0, 3.0, 3.0]}, weights)
    assert not is_done()


@pytest.mark.parametrize("kind", ["file", "DICOM folder"])
def test_an_image_that_has_changed_since_is_not_taken_for_done(tmp_path, kind):
    image, mask = tmp_path / "ct", tmp_path / "ct_seg.nii.gz"
    mask.touch()
    if kind == "file":
        image.write_bytes(b"first")
    else:
        image.mkdir()
        (image / "1.dcm").write_bytes(b"first")
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    records.write({"image": str(image), "mask": str(mask)})
    assert records.is_done(image)
    if kind == "file":
        image.write_bytes(b"exported again")
    else:
        (image / "2.dcm").write_bytes(b"came later")
    assert not records.is_done(image)


def test_a_shard_without_images_ends_well(infer):
    out = infer(shard="6/7")
    assert list(out.glob("*")) == [out / "inference_manifest-6-of-7.json"]


def test_columns_of_several_targets_are_side_by_side(tmp_path):
    records = Records(tmp_path / "out", tmp_path, tmp_path / "none.pt")
    for name, volumes in (("b", {"liver_ml": 2.0}), ("a", {"liver_ml": 1.0, "tumor_ml": 0.5})):
        mask = tmp_path / "out" / f"{name}_seg.nii.gz"
        mask.parent.mkdir(exist_ok=True)
        mask.touch()
        records.write({"image": str(tmp_path / f"{name}.nii.gz"), "mask": str(mask)} | volumes)
    records.write_tables()
    rows = [(row["mask"][-12:], row["liver_ml"], row["tumor_ml"]) for row in table(tmp_path / "out/volumes.csv")]
    assert rows == [("a_seg.nii.gz", "1", "0.5"), ("b_seg.nii.gz", "2", "")]


def test_tables_name_masks_where_they_are_after_the_folder_was_moved(infer, archive, tmp_path):
    infer(dataset_dir=str(archive / "a.nii.gz")).rename(tmp_path / "moved")
    moved = infer("moved", dataset_dir=str(archive / "b.nii.gz"))
    masks = [Path(row["mask"]) for row in table(moved / "volumes.csv")]
    assert masks == [moved / "a_seg.nii.gz", moved / "b_seg.nii.gz"]
    assert all(mask.is_file() for mask in masks)


def test_what_another_process_adds_while_the_tables_are_written_is_in_them(tmp_path, monkeypatch):
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    rows = [{"image": name, "mask": name, "liver_ml": 1} for name in "ab"]
    readings = iter([(rows[:1], []), (rows, []), (rows, [])])
    monkeypatch.setattr(records, "read", lambda: next(readings))
    records.write_tables()
    assert [row["image"] for row in table(tmp_path / "volumes.csv")] == ["a", "b"]


def test_a_record_that_was_cut_off_counts_for_nothing(tmp_path):
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    (tmp_path / "ct.nii").touch()
    records.write({"image": str(tmp_path / "ct.nii"), "reason": "damaged"})
    assert len(records.read()[1]) == 1
    path = records.path(tmp_path / "ct.nii")
    assert json.loads(path.read_text(encoding="utf-8"))["reason"] == "damaged"
    path.write_bytes(path.read_bytes()[:20])
    assert records.read() == ([], [])
    assert not records.is_done(tmp_path / "ct.nii")


def test_another_image_of_the_same_name_is_refused_not_taken_for_done(tmp_path, archive, infer):
    out = infer(dataset_dir=str(archive / "a.nii.gz"))
    before = times(out)
    save_nifti(tmp_path / "others" / "a.nii.gz", make_image(make_mask(SHAPE)))
    for skip_done in (False, True):
        with pytest.raises(Exception) as caught:
            infer(dataset_dir=str(tmp_path / "others"), skip_done=skip_done)
        error = str(find_input_error(caught.value))
        assert error.startswith(
            f"{tmp_path}/others/a.nii.gz: its mask would replace that of {archive}/a.nii.gz, {out}/a_"
        )
    assert times(out) == before
    (tmp_path / "link").symlink_to(archive)
    infer(dataset_dir=str(tmp_path / "link" / "a.nii.gz"), skip_done=True)  # the same image
    assert times(out) == before
    (archive / "a.nii.gz").rename(tmp_path / "a.nii.gz")
    with pytest.raises(Exception) as caught:  # what is gone was another image
        infer(dataset_dir=str(tmp_path / "others"))
    assert "others/a.nii.gz: its mask would replace that of " in str(find_input_error(caught.value))
    infer(dataset_dir=str(tmp_path / "a.nii.gz"), skip_done=True)  # the same in another place
    assert times(out) == before


def test_an_image_that_has_changed_is_segmented_again_and_the_log_says_so(archive, infer, capfd):
    out = infer(dataset_dir=str(archive / "a.nii.gz"))
    before = times(out)
    save_nifti(archive / "a.nii.gz", make_image(make_mask((30, 20, 16))))
    capfd.readouterr()
    infer(dataset_dir=str(archive / "a.nii.gz"), skip_done=True)
    said = capfd.readouterr()
    assert "a.nii.gz: has changed since its mask was made, which is replaced" in said.out + said.err
    assert times(out) != before


def test_a_run_that_finds_all_done_leaves_the_manifest(archive, infer):
    out = infer()
    before = read_json(out / "inference_manifest.json")
    infer(skip_done=True)
    assert read_json(out / "inference_manifest.json") == before


def test_failures_are_known_wherever_a_process_was_started_and_through_links(tmp_path, monkeypatch):
    for folder in ("archive", "disk/results", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "archive/ct.nii").touch()
    (tmp_path / "out").symlink_to(tmp_path / "disk/results")
    monkeypatch.chdir(tmp_path)
    Records("out", "archive", "none.pt").write({"image": "archive/ct.nii", "reason": "damaged"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    records = Records("../disk/results", tmp_path / "archive", "none.pt")
    assert records.read() == ([], [{"image": "archive/ct.nii", "reason": "damaged"}])
    (tmp_path / "archive/ct.nii").unlink()
    assert records.read() == ([], [])


def test_volumes_go_with_the_last_mask(tmp_path):
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    (tmp_path / "ct.nii").touch()
    (tmp_path / "ct_seg.nii.gz").touch()
    records.write({"image": str(tmp_path / "ct.nii"), "mask": str(tmp_path / "ct_seg.nii.gz"), "liver_ml": 1.0})
    records.write_tables()
    assert len(table(tmp_path / "volumes.csv")) == 1
    records.write({"image": str(tmp_path / "ct.nii"), "reason": "damaged"})
    records.write_tables()
    assert [path.name for path in tmp_path.glob("*.csv")] == ["failed.csv"]
    assert not (tmp_path / "volumes.json").exists()


def test_a_folder_that_must_not_be_looked_into_has_a_record(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    records.write({"image": str(tmp_path / "closed"), "reason": "closed"})
    monkeypatch.undo()
    assert records.read()[1] == [{"image": str(tmp_path / "closed"), "reason": "closed"}]


def test_a_record_that_is_being_written_counts_for_nothing(tmp_path):
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    (tmp_path / "ct.nii").touch()
    records.write({"image": str(tmp_path / "ct.nii"), "reason": "damaged"})
    path = records.path(tmp_path / "ct.nii")
    path.with_name(f".part-1-there-{path.name}").write_bytes(path.read_bytes())
    assert len(records.read()[1]) == 1


@pytest.mark.parametrize("name", ["a", "sub/c"])
def test_a_mask_that_was_not_made_here_is_not_replaced(tmp_path, archive, infer, name):
    mask = tmp_path / "out" / f"{name}_seg.nii.gz"
    save_nifti(mask, make_image(make_mask(SHAPE)))
    before = mask.read_bytes()
    with pytest.raises(Exception) as caught:
        infer()
    assert f"{mask}: is there, but no record says that it was made by" in str(find_input_error(caught.value))
    assert mask.read_bytes() == before
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mask]


def test_a_mask_that_was_corrected_is_not_replaced_but_may_be_skipped(archive, infer, capfd):
    out = infer()
    mask = out / "b_seg.nii.gz"
    save_nifti(mask, make_image(make_mask(SHAPE)))
    before = times(out)
    with pytest.raises(Exception) as caught:
        infer()
    assert f"{mask}: has been changed since it was made, and would be replaced" in str(find_input_error(caught.value))
    assert times(out) == before
    save_nifti(archive / "new.nii.gz", make_image(make_mask(SHAPE)))
    capfd.readouterr()
    infer(skip_done=True)
    said = capfd.readouterr()
    assert f"{mask}: has been changed since; its volumes" in said.out + said.err
    assert {name: time for name, time in times(out).items() if name != "n"} == before
    assert "new" in names_in(table(out / "volumes.csv"))


def test_a_mask_without_the_end_of_its_record_is_made_again(tmp_path):
    image, mask = tmp_path / "ct.nii", tmp_path / "ct_seg.nii.gz"
    image.touch()
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    records.begin(image)
    mask.write_bytes(b"killed before the record was written")
    assert records.read() == ([], [])
    records.check_replaced(image)
    records.write({"image": str(image), "mask": str(mask), "liver_ml": 1.0})
    assert records.is_done(image)
    records.begin(image)
    mask.write_bytes(b"killed again")
    assert not records.is_done(image)
    assert [row["liver_ml"] for row in records.read()[0]] == [1.0]
    records.check_replaced(image)


def test_with_other_weights_it_says_why_a_corrected_mask_is_not_skipped(tmp_path):
    image, mask = tmp_path / "ct.nii", tmp_path / "ct_seg.nii.gz"
    image.touch()
    mask.write_bytes(b"made")
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    records.write({"image": str(image), "mask": str(mask)})
    mask.write_bytes(b"corrected")
    (tmp_path / "other.pt").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"or --skip_done true$"):
        records.check_replaced(image)
    with pytest.raises(InputError, match="--skip_done leaves it out with the settings and weights of before alone"):
        Records(tmp_path, tmp_path, tmp_path / "other.pt").check_replaced(image)


NO_SEG, HALF_COPIED = {"mask": "ct_seg.nii.gz", "reason": "no DICOM SEG"}, {"reason": "half copied"}


@pytest.mark.parametrize("rows", [[NO_SEG], [{"mask": "ct_seg.nii.gz"}, HALF_COPIED, HALF_COPIED]])
def test_the_mask_of_an_image_of_which_something_failed_is_replaced_if_it_was_not_changed(tmp_path, rows):
    image, mask = tmp_path / "ct.nii", tmp_path / "ct_seg.nii.gz"
    image.touch()
    mask.write_bytes(b"made")
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    records.begin(image)
    for row in rows:
        places = {"image": str(image)} | ({"mask": str(mask)} if "mask" in row else {})
        records.write(row | places)
    records.check_replaced(image)
    mask.write_bytes(b"corrected")
    with pytest.raises(InputError, match=r"has been changed since it was made.* another --output_dir$"):
        records.check_replaced(image)


@pytest.mark.parametrize("row", [{"mask": "ct_seg.nii.gz"}, {"reason": "damaged"}])
def test_of_records_without_sums_the_time_says_whether_a_mask_was_changed(tmp_path, row):
    """As version 0.15.0 wrote them."""
    image, mask = tmp_path / "ct.nii", tmp_path / "ct_seg.nii.gz"
    image.touch()
    mask.write_bytes(b"made")
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    records.write({"image": str(image), "mask": str(mask)})
    path = records.path(image)
    record = {"made_with": "", "image": str(image), "source": "ct.nii", "file": "ct_seg.nii.gz"} | row
    path.write_text(json.dumps(record), encoding="utf-8")
    os.utime(mask, (1e9, 1e9))
    records.check_replaced(image)
    os.utime(mask, (4e9, 4e9))
    with pytest.raises(InputError, match="has been changed since it was made"):
        records.check_replaced(image)


def test_each_image_is_in_one_shard(tmp_path):
    images = [{"image": str(tmp_path / str(number))} for number in range(7)]
    records = Records(tmp_path, tmp_path, tmp_path / "none.pt")
    shards = [own_images(images, records, f"{index}/3") for index in range(3)]
    assert [len(shard) for shard in shards] == [3, 2, 2]
    assert sorted(item["image"] for shard in shards for item in shard) == [item["image"] for item in images]


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/4", "1/0", ""])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(InputError, match=r"^shard: '.*' is no part of all; write 0/4, 1/4, 2/4 or 3/4 for the parts"):
        parse_shard(shard)


def test_volumes_are_those_of_the_masks(infer):
    rows = table(infer() / "volumes.csv")
    counts = []
    for number in range(len(NAMES)):
        mask = make_mask(SHAPE)
        mask[:number] = True
        counts.append(np.count_nonzero(mask))
    assert {name: int(row["liver_voxels"]) for name, row in zip(names_in(rows), rows, strict=True)} == dict(
        zip(NAMES, counts, strict=True)
    )
