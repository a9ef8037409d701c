"""How values that people type on the command line are understood."""

from typing import Any

from scripts.errors import InputError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")


def is_true(value: Any) -> bool:
    """Return the truth of a switch: a command line gives ``true`` as a string, JSON as a Boolean.

    Raises:
        InputError: if it is neither a way to write true nor one to write false.
    """
    text = str(value).strip().lower()
    if text not in TRUE + FALSE:
        raise InputError(f"{value!r}: is no switch; write true or false")
    return text in TRUE
