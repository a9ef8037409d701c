"""A command reads all of its options before it works, and says what is wrong in one line."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.commands import run_command
from scripts.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """Those that `run_command` sets are taken back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def done():
    return []


@pytest.fixture
def command(done):
    def write(path: str, cases: int = 1, spacing_mm: float | None = None, fresh: bool = False) -> str:
        """Write cases.

        Args:
            path: where to.
            cases: how many.
            spacing_mm: of voxels.
            fresh: anew.
        """
        done.append((path, cases, spacing_mm, fresh))
        return f"{cases} in {path}"

    return write


@pytest.fixture
def with_knobs(done):
    def train(path: str = "a", **knobs) -> None:
        """Train with knobs."""
        done.append((path, knobs))

    return train


def test_a_function_gets_the_options_and_its_text_is_printed(command, done, capsys):
    assert run_command(command, ["--path", "a", "--cases", "3"]) == "3 in a"
    assert done == [("a", 3, None, False)]
    assert capsys.readouterr().out == "3 in a\n"


def test_options_of_the_command_line_are_the_default(command, done, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["write.py", "--path", "b"])
    run_command(command)
    assert done == [("b", 1, None, False)]


@pytest.mark.parametrize("path", ["2026_11_26", "2026", "pool#2", "[a]", "1e3", "a b", "None", "3.10"])
def test_text_is_taken_as_it_is_written(command, done, path):
    run_command(command, ["--path", path])
    run_command(command, [path])
    assert [path, path] == [got[0] for got in done]


@pytest.mark.parametrize(
    ("words", "is_fresh"),
    [(["--fresh"], True), (["--fresh", "true"], True), (["--fresh", "false"], False), (["--fresh=no"], False),
     (["--nofresh"], False), (["--fresh", "True"], True)],
)  # fmt: skip
def test_a_switch_is_true_or_false_in_any_way_to_write_it(command, done, words, is_fresh):
    run_command(command, ["--path", "a", *words])
    assert done == [("a", 1, None, is_fresh)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--path", "a", "--case", "3"], "--case;"),
        (["--cases", "3"], "path"),
        (["a", "3", "1", "true", "more"], "more"),
        (["--cases", "3", "--path"], "--path: has no value"),
        (["--path", "a", "--spacing_mm"], "--spacing_mm: has no value"),
        (["--path", "a", "--fresh", "maybe"], "--fresh: 'maybe': is no switch"),
        (["--path", "a", "--", "--cases", "3"], "--: nothing is read after it"),
        ([], "path"),
    ],
    ids=["unknown", "missing", "one too many", "no path", "no number", "no switch", "after two dashes", "none"],
)
def test_nothing_is_done_when_an_option_is_wrong(command, done, capsys, arguments, said):
    with pytest.raises(SystemExit) as exit_:
        run_command(command, arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.endswith("the options are --path, --cases, --spacing_mm, --fresh")
    assert done == []


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--path", "a", "--help"], ["--", "--help"]], ids=str)
def test_help_names_options_and_does_nothing(command, with_knobs, done, capsys, arguments):
    for function, said in ((command, "how many."), (with_knobs, "Train with knobs.")):
        with pytest.raises(SystemExit) as exit_:
            run_command(function, arguments)
        assert exit_.value.code == 0
        text = "".join(capsys.readouterr())
        assert said in text
        assert "PATH" in text.upper()
    assert done == []


def test_knobs_of_any_name_are_passed_on(with_knobs, done):
    run_command(with_knobs, ["--max_epochs", "3", "--network_def::norm", "instance"])
    assert done == [("a", {"max_epochs": 3, "network_def::norm": "instance"})]


def test_one_of_several_is_chosen_by_its_word(command, done):
    run_command({"write": command, "other": done.clear}, ["write", "a"])
    assert done == [("a", 1, None, False)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "write: Write cases."),
        (["--help"], 0, "write: Write cases."),
        (["--help"], 0, "write|other --help: the options"),
        (["write", "--help"], 0, "how many."),
        (["update"], 2, "error: update: expected write or other"),
        (["write", "a", "--pat", "b"], 2, "--pat;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_words_are_named_when_none_is_chosen(command, done, capsys, arguments, code, said):
    with pytest.raises(SystemExit) as exit_:
        run_command({"write": command, "other": done.clear}, arguments)
    assert exit_.value.code == code
    assert said in "".join(capsys.readouterr())
    assert done == []


def test_yes_or_no_is_given_back_and_not_printed(capsys):
    assert run_command(lambda: False, []) is False
    assert capsys.readouterr().out == ""


def test_an_input_error_reaches_who_called():
    def fail():
        raise InputError("a.nii: is empty")

    with pytest.raises(InputError, match="is empty"):
        run_command(fail, [])


def test_a_mistyped_option_of_the_pool_leaves_nothing(tmp_path):
    options = ["--output_dir", tmp_path / "pool", "--training", "1", "--validation", "1", "--test", "1", "--raer", "1"]
    command = [sys.executable, "-m", "scripts.phantom.pool", *map(str, options)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "--raer" in line
    assert list(tmp_path.iterdir()) == []
