"""Files are written completely or not at all; weights are those of the sum beside them."""

import errno
import hashlib
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import types

import pytest
import torch

from scripts import files
from scripts.errors import InputError
from scripts.files import read_weights, sha256, sum_file, write_table, write_text, write_weights, written_whole


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


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def name_temporary(process, name="a[1].csv", host="here-1"):
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        monkeypatch.setattr(os, "getpid", lambda: process)
        with written_whole(tmp_path / name) as temporary:
            temporary.touch()
        monkeypatch.undo()
        monkeypatch.setattr(socket, "gethostname", lambda: "here-1")
        return temporary.name

    leftover, running = name_temporary(gone.pid), name_temporary(os.getppid())
    other, elsewhere = name_temporary(gone.pid, "b.csv"), name_temporary(gone.pid, host="there")
    for file in tmp_path.iterdir():
        file.unlink()
    assert len({leftover, running, other, elsewhere}) == 4
    for name in (leftover, running, other, elsewhere):
        (tmp_path / name).write_text("half", encoding="utf-8")
    with written_whole(tmp_path / "a[1].csv") as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert names_in(tmp_path) == sorted([running, other, elsewhere, "a[1].csv"])


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


def test_broken_off_write_leaves_the_old_file_and_no_part_of_a_new_one(tmp_path, monkeypatch):
    (tmp_path / "list.json").write_text("old", encoding="utf-8")

    def fail(*_):
        raise OSError("broken off")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="broken off"):
        write_text(tmp_path / "list.json", "new")
    assert names_in(tmp_path) == ["list.json"]
    assert (tmp_path / "list.json").read_text(encoding="utf-8") == "old"


def test_block_that_writes_nothing_leaves_no_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "table.csv"):
        pass
    assert names_in(tmp_path) == []


def test_place_where_nothing_can_be_written_is_named_before_the_block_begins(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "table.csv", tmp_path / "file" / "folder" / "table.csv"):
        with pytest.raises(InputError, match=r"table\.csv: cannot be written .*; give another place"):
            write_text(place, "new")


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


def test_a_name_as_long_as_may_be_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 63)
    name = "x" * 248 + ".nii.gz"
    with written_whole(tmp_path / name) as temporary:
        temporary.touch()
    assert names_in(tmp_path) == [name]


# --- weights -----------------------------------------------------------------------------------------------------


def weights_of(number):
    return {"weight": torch.full((3,), float(number))}


def test_the_sum_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 10_000  # more than is read at once
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_weights_are_written_with_a_sum_that_sha256sum_checks(tmp_path):
    write_weights(weights_of(1), tmp_path / "models" / "model.pt")
    assert names_in(tmp_path / "models") == ["model.pt", "model.pt.sha256"]
    command = ["sha256sum", "--check", "--strict", "model.pt.sha256"]
    subprocess.run(command, cwd=tmp_path / "models", check=True, capture_output=True)
    assert torch.equal(read_weights(tmp_path / "models" / "model.pt")["weight"], weights_of(1)["weight"])


def test_weights_without_a_sum_are_read(tmp_path):
    torch.save(weights_of(1), tmp_path / "model.pt")
    assert list(read_weights(tmp_path / "model.pt")) == ["weight"]


@pytest.mark.parametrize("content", ["0" * 64 + "  model.pt\n", "", "no sum", "\udcff"])
def test_weights_that_are_not_those_of_their_sum_are_refused_in_one_line(tmp_path, content):
    write_weights(weights_of(1), tmp_path / "model.pt")
    (tmp_path / "model.pt.sha256").write_bytes(content.encode(errors="surrogateescape"))
    message = r"model\.pt: is not the file of which .*model\.pt\.sha256 has the SHA-256 sum; get both again, or delete"
    with pytest.raises(InputError, match=message) as error:
        read_weights(tmp_path / "model.pt")
    assert "\n" not in str(error.value)


def test_one_changed_bit_of_the_weights_is_found(tmp_path):
    write_weights(weights_of(1), tmp_path / "model.pt")
    content = bytearray((tmp_path / "model.pt").read_bytes())
    content[content.index(struct.pack("<f", 1.0))] ^= 1  # still a sound PyTorch file with sound numbers
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt: is not the file of which"):
        read_weights(tmp_path / "model.pt")


def test_other_weights_get_another_sum_and_no_instant_has_a_wrong_one(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    write_weights(weights_of(1), path)
    seen, replace = [], os.replace

    def killed_around(source, target):
        seen.append(read_weights(path)["weight"][0].item())
        replace(source, target)
        seen.append(read_weights(path)["weight"][0].item())

    monkeypatch.setattr(files.os, "replace", killed_around)
    write_weights(weights_of(2), path)
    assert seen == [1, 2, 2, 2]  # before and after the weights, before and after their sum
    assert sum_file(path).is_file()


def test_a_failed_write_leaves_the_old_weights_and_their_sum(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    write_weights(weights_of(1), path)
    monkeypatch.setattr(torch, "save", lambda *arguments: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        write_weights(weights_of(2), path)
    assert names_in(tmp_path) == ["model.pt", "model.pt.sha256"]
    assert read_weights(path)["weight"][0] == 1


def test_written_table_has_the_columns_of_its_first_row_and_six_digits(tmp_path):
    rows = [{"name": "a, b", "count": 12345678, "value": 1 / 3}, {"name": "c", "value": math.nan}]
    write_table(tmp_path / "new" / "table.csv", rows)
    assert (tmp_path / "new" / "table.csv").read_bytes() == b'name,count,value\n"a, b",12345678,0.333333\nc,,nan\n'
