"""How values that people type on the command line are understood."""

from collections.abc import Callable, Container, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from monai.utils import ensure_tuple

from scripts.errors import InputError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")


def is_true(value: Any, name: str = "") -> bool:
    """Return the truth of a switch: a command line gives ``true`` as a string, JSON as a Boolean.

    Args:
        value: of the switch.
        name: of the switch, for the error.

    Raises:
        InputError: if it is neither a way to write true nor one to write false.
    """
    text = str(value).strip().lower()
    if text not in TRUE + FALSE:
        raise InputError(f"{name and name + ': '}{value!r}: is no switch; write true or false")
    return text in TRUE


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, NumPy's too, and no switch."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise `InputError` unless ``value``, the argument ``name``, is a whole number of at least ``least``."""
    if not is_whole(value) or value < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, received {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are(value: Any, count: int, is_part: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(map(is_part, value))


def _is_device(value: Any) -> bool:
    try:
        torch.empty(1, device=value)
    except (RuntimeError, AssertionError, TypeError):  # the second if PyTorch was built without such devices
        return False
    return True


# knobs, which values they take, and what these are in words
VALUES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        (
            "max_epochs", "val_interval", "learning_rate_interval", "batch_size", "crops_per_scan", "sw_batch_size",
            "min_slices",
        ),
        lambda value: is_whole(value) and value >= 1,
        "a whole number of at least 1",
    ),
    (
        ("num_workers", "early_stop_patience", "validation_pictures", "coarse_margin", "seed"),
        lambda value: is_whole(value) and value >= 0,
        "a whole number of at least 0",
    ),
    (("learning_rate",), lambda value: _is_number(value) and value > 0, "a number above 0"),
    (("min_island_mm3",), lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    (("window_weights",), lambda value: value in ("gaussian", "constant"), "gaussian or constant"),
    (
        ("plane_size",),
        lambda value: value is None or _are(value, 2, lambda part: is_whole(part) and part >= 1),
        'two whole numbers of at least 1, such as "[256,256]"',
    ),
    (
        ("overlap",),
        lambda value: all(_is_number(part) and 0 <= part < 1 for part in ensure_tuple(value)),
        "a number from 0 to below 1",
    ),
    (
        ("flip_prob", "rotate_prob", "cache_rate", "min_liver_share"),
        lambda value: _is_number(value) and 0 <= value <= 1,
        "a number from 0 to 1",
    ),
    (
        ("spacing",),
        lambda value: _are(value, 3, lambda part: _is_number(part) and part > 0),
        'three numbers above 0, such as "[1.5,1.5,1]"',
    ),
    (
        ("roi_size",),
        lambda value: _are(value, 3, lambda part: is_whole(part) and part >= 1),
        'three whole numbers of at least 1, such as "[96,96,48]"',
    ),
    (
        ("window_hu",),
        lambda value: _are(value, 2, _is_number) and value[0] < value[1],
        'the lower number and the higher, such as "[-200,200]"',
    ),
    (("device",), _is_device, "a device of this machine, such as cpu"),
)  # fmt: skip


def check_value(knob: str, value: Any) -> None:
    """Raise `InputError` if ``value`` is none that the ``knob`` takes; expressions of a config are not looked at."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        return
    for knobs, is_right, words in VALUES:
        if knob in knobs and not is_right(value):
            raise InputError(f"--{knob}: expected {words}, received {value!r}")


def check_overrides(overrides: Mapping[str, Any], config: Container[str], what: str) -> None:
    """Raise `InputError` unless each key is of something at the top of ``config``, and its value one that it takes.

    Args:
        overrides: keys, such as ``network_def::norm``, with ``::`` or ``#`` between their parts, and values.
        config: its keys.
        what: a key is not, such as "key of configs/train.json".
    """
    for key, value in overrides.items():
        if key.replace("#", "::").split("::")[0] not in config:
            raise InputError(f"--{key}: is no {what}; mend it")
        check_value(key, value)
