"""Switches are understood however they are written, and refused when they are none."""

import re

import pytest

from scripts.errors import InputError
from scripts.knobs import is_true


@pytest.mark.parametrize("value", [True, "true", "True", " TRUE ", "yes", "on", "1", 1])
def test_ways_to_write_true_are_true(value):
    assert is_true(value) is True


@pytest.mark.parametrize("value", [False, "false", "False", " FALSE ", "no", "off", "0", 0, "none", None])
def test_ways_to_write_false_are_false(value):
    assert is_true(value) is False


@pytest.mark.parametrize("value", ["", "maybe", "truee", "2", 2, [True]])
def test_what_is_no_switch_is_refused(value):
    with pytest.raises(InputError, match=rf"^{re.escape(repr(value))}: is no switch; write true or false$"):
        is_true(value)
