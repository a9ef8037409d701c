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
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def done():
    return []


@pytest.fixture
def command(done):
    def write(path: str, cases: int = 1) -> str:
        """Write cases.

        Args:
            path: where to.
            cases: how many.
        """
        done.append((path, cases))
        return f"{cases} in {path}"

    return write


def test_a_function_gets_the_options_and_its_text_is_printed(command, done, capsys):
    assert run_command(command, ["--path", "a", "--cases", "3"]) == "3 in a"
    assert done == [("a", 3)]
    assert capsys.readouterr().out == "3 in a\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--path", "a", "--case", "3"], "--case"), (["--cases", "3"], "path"), (["a", "3", "more"], "more")],
    ids=["unknown", "missing", "one too many"],
)
def test_nothing_is_done_when_an_option_is_wrong(command, done, capsys, arguments, said):
    with pytest.raises(SystemExit) as exit_:
        run_command(command, arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert done == []


def test_help_names_options_and_does_nothing(command, done, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(command, ["--", "--help"])
    assert exit_.value.code == 0
    text = "".join(capsys.readouterr())
    assert "how many." in text
    assert "--cases" in text
    assert done == []


def test_one_of_several_is_chosen_by_its_word(command, done):
    run_command({"write": command, "other": done.clear}, ["write", "a"])
    assert done == [("a", 1)]


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
    assert "--raer" in process.stderr
    assert list(tmp_path.iterdir()) == []
