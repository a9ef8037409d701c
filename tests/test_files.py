"""Files are written completely or not at all."""

import errno
import os
import shutil
import subprocess
import sys
import types

import pytest

from scripts.errors import InputError
from scripts.files import written_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_the_block_ends_and_leaves_no_other(tmp_path):
    with written_whole(tmp_path / "table.csv") as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert not (tmp_path / "table.csv").exists()
    assert names_in(tmp_path) == ["table.csv"]
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "new"


def test_old_file_is_whole_until_the_block_ends(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old", encoding="utf-8")
    with written_whole(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_old_file_stays_and_nothing_else_after_an_error(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(error, match="stopped halfway"), written_whole(path) as temporary:
        temporary.write_text("ne", encoding="utf-8")
        raise error("stopped halfway")
    assert names_in(tmp_path) == ["table.csv"]
    assert path.read_text(encoding="utf-8") == "old"


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leftover, running, other = (
        f".part-{gone.pid}-a[1].csv",
        f".part-{os.getppid()}-a[1].csv",
        f".part-{gone.pid}-b.csv",
    )
    for name in (leftover, running, other):
        (tmp_path / name).write_text("half", encoding="utf-8")
    with written_whole(tmp_path / "a[1].csv") as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert names_in(tmp_path) == sorted([running, other, "a[1].csv"])


def write(path, error):
    with written_whole(path) as temporary:
        temporary.write_text("ne", encoding="utf-8")
        raise error


@pytest.mark.parametrize(
    "error, free",
    [(OSError(errno.ENOSPC, "No space left on device"), 10**12), (RuntimeError("PytorchStreamWriter failed"), 1000)],
)
def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path, monkeypatch, error, free):
    path = tmp_path / "last.pt"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free))
    with pytest.raises(InputError, match=r"last\.pt: cannot be written, the disk is full; free some space"):
        write(path, error)
    assert names_in(tmp_path) == ["last.pt"]
    assert path.read_text(encoding="utf-8") == "old"


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="of another kind"):
        write(tmp_path / "last.pt", RuntimeError("of another kind"))


def test_error_before_anything_was_written_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match="nothing to write"), written_whole(tmp_path / "table.csv"):
        raise RuntimeError("nothing to write")
    assert names_in(tmp_path) == []


def test_missing_folders_are_made(tmp_path):
    with written_whole(str(tmp_path / "runs" / "first" / "table.csv")) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert (tmp_path / "runs" / "first" / "table.csv").read_text(encoding="utf-8") == "new"


def test_temporary_file_lies_in_the_same_folder_and_keeps_the_suffixes(tmp_path):
    with written_whole(tmp_path / "label.nii.gz") as temporary:
        temporary.touch()
        assert temporary.parent == tmp_path
        assert temporary.suffixes[-2:] == [".nii", ".gz"]
        assert temporary.name != "label.nii.gz"
