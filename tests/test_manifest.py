"""The manifest says with what a run was made, so that it can be made again; and nothing that it need not say."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest
from monai.bundle import run

from scripts import manifest
from scripts.manifest import command_line, describe_data, find_parser, git_revision, versions

CONFIG = {
    "seed": 3,
    "learning_rate": 0.1,
    "output_dir": ".",
    "device": "$torch.device('cpu')",
    "amp": "$@device.type == 'cuda'",
    "size": "$[@learning_rate, None, 'mm']",
    "complex": "$[1j]",
    "unused": "$1 / 0",
    "crop": {"size": [4, 4], "rate": "@learning_rate"},
    "items": [],
    "dataset": {"_target_": "monai.data.Dataset", "data": "@items"},
    "checksums": True,
    "resume": False,
    "manifest": {
        "_target_": "scripts.manifest.RunManifest",
        "path": "$@output_dir + '/manifest.json'",
        "datasets": {"training": "@dataset"},
        "checksums": "@checksums",
        "resume": "@resume",
        "_requires_": ["@amp", "@crop", "@size", "@complex"],
    },
    "run": ["$@manifest(None)"],
}


@pytest.fixture
def make(tmp_path):
    """Run a config that does nothing but write a manifest; return what it says."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")

    def make_manifest(**overrides):
        run(config_file=str(tmp_path / "config.json"), output_dir=str(tmp_path / "out"), **overrides)
        return json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))

    return make_manifest


@pytest.fixture
def items(tmp_path):
    """Two cases in folders of their own; a DICOM series is a folder of files."""
    for name in ("data/a/ct.nii", "data/a/label.nii", "data/b/series/1.dcm", "data/b/series/2.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return [
        {"image": str(tmp_path / "data/a/ct.nii"), "label": str(tmp_path / "data/a/label.nii"), "weight": 2},
        {"image": tmp_path / "data/b/series"},
    ]


def sum_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


# --- the config --------------------------------------------------------------------------------------------------


def test_the_config_is_that_of_the_file_with_the_overrides(make, tmp_path):
    config = make(seed=7, **{"crop::size": [8, 8]})["config"]
    assert config == CONFIG | {"seed": 7, "crop": {"size": [8, 8], "rate": "@learning_rate"}} | {
        "output_dir": str(tmp_path / "out")
    }


def test_the_values_are_what_the_expressions_came_to(make):
    assert make()["values"] == {"device": "cpu", "amp": False, "size": [0.1, None, "mm"]}  # "unused": nobody asked


def test_an_override_that_json_does_not_have_is_written_as_text(make):
    assert make(extra=complex(1, 2))["config"]["extra"] == "(1+2j)"


def test_there_is_no_config_where_no_config_builds_it(tmp_path):
    assert find_parser() is None
    manifest.RunManifest(tmp_path / "manifest.json", {})(None)
    written = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert (written["config"], written["values"], written["weights"]) == (None, None, None)
    assert (written["data"], written["files"]) == ({}, {})


def test_a_resumed_run_keeps_how_it_was_started_before(make):
    first, second = make(seed=1), make(resume=True, seed=2)
    third = make(resume=True, seed=3)
    assert [start["config"]["seed"] for start in third["earlier"]] == [1, 2]
    for start, whole in zip(third["earlier"], (first, second), strict=True):
        assert set(start) == {"started", "config"}  # the rest is as in the next start
        assert start.items() <= whole.items()
    assert second["config"]["seed"] == 2
    assert "earlier" not in make()


def test_a_resumed_run_keeps_the_data_of_a_start_that_had_others(make, items):
    few = [{key: str(value) for key, value in items[0].items()}]
    first, _ = make(items=few), make(items=few, resume=True)
    third = make(items=[{"image": str(items[1]["image"])}], resume=True)
    assert "data" not in third["earlier"][0]  # that of the start after it
    assert third["earlier"][1]["data"] == first["data"] != third["data"]
    assert third["earlier"][1]["files"] == first["files"]


# --- the computer ------------------------------------------------------------------------------------------------


def test_the_versions_are_those_installed():
    found = versions()
    import torch

    assert found["torch"] == torch.__version__
    assert {"bundle", "python", "monai", "numpy", "pytorch-ignite", "nibabel", "itk"} <= found.keys()
    assert all(found[name] for name in found if name != "cuda")


def test_the_command_of_another_program_is_not_written():
    assert command_line() is None  # pytest's, here; a server's may hold passwords


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_the_commit_and_says_if_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    assert git_revision() is None
    environment = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org"}
    environment |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org"}

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), *arguments]
        done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, encoding="utf-8")
        return done.stdout.strip()

    git("init")
    (tmp_path / "code.py").write_text("1", encoding="utf-8")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_revision() == commit
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    assert git_revision() == f"{commit}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_bundle_unpacked_in_somebody_s_checkout_has_no_revision(tmp_path, monkeypatch):
    subprocess.run(["git", "-C", str(tmp_path), "init"], check=True, capture_output=True)
    (tmp_path / "bundle").mkdir()
    monkeypatch.setattr(manifest, "ROOT", tmp_path / "bundle")
    assert git_revision() is None


# --- the data ----------------------------------------------------------------------------------------------------


def test_the_files_are_named_from_the_folder_of_all_with_size_and_sum(make, items):
    written = make(items=[{key: str(value) for key, value in item.items()} for item in items])
    assert written["data"] == {
        "training": [
            {"image": ["a/ct.nii"], "label": ["a/label.nii"]},
            {"image": ["b/series/1.dcm", "b/series/2.dcm"]},
        ]
    }
    assert {name: (facts["bytes"], facts["sha256"]) for name, facts in written["files"].items()} == {
        name: (len(f"data/{name}"), sum_of(f"data/{name}"))
        for name in ("a/ct.nii", "a/label.nii", "b/series/1.dcm", "b/series/2.dcm")
    }


def test_files_that_have_not_changed_are_not_read_again(items, tmp_path, monkeypatch):
    known = describe_data({"training": items})["files"]
    (tmp_path / "data/a/ct.nii").write_bytes(b"longer than before")
    read = []
    monkeypatch.setattr(manifest, "sha256", lambda path: read.append(path.name) or "new")
    files = describe_data({"training": items}, known)["files"]
    assert read == ["ct.nii"]
    assert files == known | {"a/ct.nii": files["a/ct.nii"]}
    assert files["a/ct.nii"]["sha256"] == "new"
    os.utime(tmp_path / "data/a/label.nii", ns=(0, 0))  # of the same size, but another time
    describe_data({"training": items}, files)
    assert read == ["ct.nii", "label.nii"]


def test_no_file_is_read_without_checksums_but_sizes_are_given(items, monkeypatch):
    monkeypatch.setattr(manifest, "sha256", lambda path: pytest.fail("read"))
    facts = describe_data({"training": items}, checksums=False)["files"]["a/ct.nii"]
    assert (facts["bytes"], facts["sha256"]) == (len("data/a/ct.nii"), None)


def test_a_file_that_cannot_be_read_has_no_sum_and_the_run_goes_on(items, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError("not yours")

    monkeypatch.setattr(manifest, "sha256", refuse)
    assert describe_data({"training": items})["files"]["a/ct.nii"]["sha256"] is None
    assert "a/ct.nii: has no checksum (not yours)" in caplog.text


def test_a_folder_that_must_not_be_looked_into_has_no_files_and_the_run_goes_on(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest.Path, "iterdir", refuse)
    assert describe_data({"images": [{"image": str(tmp_path)}]}) == {"data": {"images": [{"image": []}]}, "files": {}}


def test_data_that_are_no_files_are_not_listed():
    assert describe_data({"training": [{"image": [1, 2], "name": "volume-0"}, 3]}) == {
        "data": {"training": [{}, {}]}, "files": {}
    }  # fmt: skip


def test_a_damaged_manifest_is_replaced(make, tmp_path):
    (tmp_path / "out").mkdir()
    for damage in ("{", "[]", ""):
        (tmp_path / "out/manifest.json").write_text(damage, encoding="utf-8")
        assert make(resume=True)["config"]["seed"] == 3
