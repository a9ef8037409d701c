"""How values that people type on the command line are understood."""

from collections.abc import Container, Iterable
from numbers import Integral
from typing import Any

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


def check_keys(keys: Iterable[str], config: Container[str], what: str) -> None:
    """Raise `InputError` unless each key, such as ``network_def::norm``, is of something at the top of ``config``.

    Args:
        keys: with ``::`` or ``#`` between their parts.
        config: its keys.
        what: it is not, such as "key of configs/train.json".
    """
    for key in keys:
        if key.replace("#", "::").split("::")[0] not in config:
            raise InputError(f"--{key}: is no {what}; mend it")
