"""Switches are understood however they are written; values that knobs do not take are refused."""

import json
import re

import pytest
import torch

from scripts.errors import InputError
from scripts.knobs import VALUES, check_value, is_true
from tests import ROOT


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


WRONG = {
    "max_epochs": (0, 2.5, "abc", True, None),
    "seed": (-1, "x"),
    "learning_rate": (0, "abc", [0.1]),
    "overlap": (1, -0.1, 25, [0.5, 1.5, 0.5]),
    "cache_rate": (2, "all"),
    "spacing": ([2, 2], 2, [1, 1, 0], "2,2,2", [1, 1, "x"]),
    "roi_size": (96, [96, 96], [96.0, 96, 96], [0, 96, 96]),
    "window_hu": ([200, -200], [-200], -200),
    "device": ("gpu", "cpu:x", 1.5),
    "min_island_mm3": ("50mm", [1, 0], -1),
    "window_weights": ("gausian",),
    "plane_size": (256, [256, 0], [256, 256, 64]),
}
RIGHT = {
    "max_epochs": (1, 600),
    "seed": (0,),
    "learning_rate": (1e-4, 1),
    "overlap": (0, 0.5, [0.5, 0.5, 0.25]),
    "cache_rate": (0, 0.5, 1),
    "spacing": ([1.5, 1.5, 1], (2, 2, 2)),
    "roi_size": ([96, 96, 48],),
    "window_hu": ([-200, 200],),
    "device": ("cpu", torch.device("cpu")),
    "min_island_mm3": (0, 50, 1.5),
    "window_weights": ("gaussian", "constant"),
    "plane_size": (None, [256, 256]),
    "of no knob": ("anything",),
}


@pytest.mark.parametrize(("knob", "value"), [(knob, value) for knob, values in WRONG.items() for value in values])
def test_a_value_that_a_knob_does_not_take_is_refused_in_one_line(knob, value):
    with pytest.raises(InputError) as caught:
        check_value(knob, value)
    assert str(caught.value).startswith(f"--{knob}: expected ")
    assert str(caught.value).endswith(f", received {value!r}")


@pytest.mark.parametrize(("knob", "value"), [(knob, value) for knob, values in RIGHT.items() for value in values])
def test_a_value_that_a_knob_takes_passes_and_so_does_an_expression(knob, value):
    check_value(knob, value)
    check_value(knob, "$@something")


def test_every_knob_with_a_rule_is_one_of_the_configs_and_its_default_follows_it():
    configs = [
        json.loads((ROOT / f"configs/{name}.json").read_text(encoding="utf-8")) for name in ("train", "inference")
    ]
    for knob in (knob for knobs, *_ in VALUES for knob in knobs):
        values = [config[knob] for config in configs if knob in config]
        assert values, knob
        for value in values:
            check_value(knob, value)
