"""A mistake in somebody's input ends a program with one line; a mistake in the program with its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.errors import TRACEBACK_VARIABLE, InputError, find_input_error

ROOT = Path(__file__).parents[1]
SETUP = "from scripts.errors import InputError, report_input_errors\nreport_input_errors()\n"

PLAIN = "raise InputError('scan.nii: is empty; download it again')"
CHAINED = f"""
try:
    try:
        {PLAIN}
    except InputError as error:
        raise ValueError('applying transform') from error
except ValueError as error:
    raise RuntimeError('engine run is terminating') from error
"""
WHILE_HANDLING = f"""
try:
    {PLAIN}
except InputError:
    raise RuntimeError('engine run is terminating')
"""


def run(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name != TRACEBACK_VARIABLE} | variables
    command = [sys.executable, "-c", SETUP + code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)


IN_ANOTHER_PROCESS = """
from torch.utils.data import DataLoader, Dataset
class Cases(Dataset):
    def __len__(self): return 2
    def __getitem__(self, index):
        try:
            raise InputError('scan.nii: is empty; download it again')
        except InputError as error:
            {}
list(DataLoader(Cases(), num_workers=1, multiprocessing_context='fork'))
"""
CODES = {
    "plain": PLAIN,
    "chained": CHAINED,
    "while handling": WHILE_HANDLING,
    "of another process": IN_ANOTHER_PROCESS.format("raise"),
    "wrapped in another process": IN_ANOTHER_PROCESS.format("raise RuntimeError('applying transform') from error"),
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_an_uncaught_input_error_is_one_line_on_stderr_and_status_1(code):
    process = run(code)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr == "error: scan.nii: is empty; download it again\n"


def test_an_input_error_of_several_lines_is_printed_as_one():
    assert run(r"raise InputError('scan.nii:\n  is empty')").stderr == "error: scan.nii: is empty\n"


LOGGED = f"""
import logging
logging.basicConfig(format='%(message)s')
try:
    {PLAIN}
except InputError:
    logging.getLogger('engine').exception('stopping')
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger('engine').exception('a slip')
"""


def test_an_input_error_is_logged_without_its_traceback_and_any_other_with_it():
    lines = run(LOGGED).stderr.splitlines()
    assert lines[:3] == ["stopping", "a slip", "Traceback (most recent call last):"]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "scan.nii: is empty" in run(LOGGED, **{TRACEBACK_VARIABLE: "1"}).stderr


ENGINE = """
import logging
from ignite.engine import Engine
logging.basicConfig(format='%(message)s')
report_input_errors()
def step(engine, batch):
    {}
Engine(step).run([0])
"""


def test_an_engine_does_not_log_an_input_error_before_its_one_line():
    assert run(ENGINE.format(PLAIN)).stderr == "error: scan.nii: is empty; download it again\n"
    lines = run(ENGINE.format("1 / 0")).stderr.splitlines()
    assert lines[0] == "Current run is terminating due to exception: division by zero"
    assert "due to exception: scan.nii" in run(ENGINE.format(PLAIN), **{TRACEBACK_VARIABLE: "1"}).stderr


def test_ctrl_c_is_one_line_too():
    process = run("raise KeyboardInterrupt")
    assert process.stderr == "stopped by Ctrl-C\n"
    assert process.returncode in (130, -2)


def test_any_other_uncaught_error_prints_its_traceback():
    process = run("raise ValueError('a slip of ours')")
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback (most recent call last):")
    assert process.stderr.endswith("ValueError: a slip of ours\n")


@pytest.mark.parametrize("code", [PLAIN, CHAINED], ids=["plain", "chained"])
def test_with_the_traceback_variable_set_an_input_error_prints_its_traceback(code):
    process = run(code, MPUNET_TRACEBACK="1")
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback (most recent call last):")
    assert "scripts.errors.InputError: scan.nii: is empty; download it again\n" in process.stderr
    assert not any(line.startswith("error:") for line in process.stderr.splitlines())


def test_the_input_error_that_a_chain_of_errors_began_with_is_found():
    cause, middle, last = InputError("scan.nii: is empty"), ValueError(), RuntimeError()
    last.__cause__, middle.__context__ = middle, cause
    assert find_input_error(last) is cause
    assert find_input_error(cause) is cause


def test_no_input_error_is_found_where_there_is_none():
    first, second = ValueError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first  # a circle, as re-raised errors can form
    assert find_input_error(first) is None
    assert find_input_error(None) is None
