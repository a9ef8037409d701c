"""A function of ours as a command of its own: ``python -m scripts.NAME --OPTION VALUE``."""

import functools
import os
from collections.abc import Callable
from typing import Any

import fire

from scripts.errors import report_input_errors


def run_command(
    command: Callable[..., Any] | dict[str, Callable[..., Any]],
    arguments: list[str] | None = None,
    name: str | None = None,
) -> Any:
    """Run ``command`` with the options of the command line; an `InputError` in it becomes one line on stderr.

    All options are read before it begins: Fire by itself refuses a mistyped one when the work is done.

    Args:
        command: a function, whose arguments are the options; or functions by the words that choose one.
        arguments: those of the command line by default.
        name: of the command, in its help; the module's file by default.

    Returns:
        What the function returns; text and paths are printed.

    Raises:
        SystemExit: an option is missing or unknown (2), or help was asked for (0).
    """
    report_input_errors()
    calls: list[Callable[[], Any]] = []

    def put_off(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def keep_for_later(*values: Any, **options: Any) -> None:
            calls.append(functools.partial(function, *values, **options))

        return keep_for_later

    is_one = callable(command)
    fire.Fire(put_off(command) if is_one else {key: put_off(each) for key, each in command.items()}, arguments, name)
    result = None
    for call in calls:
        result = call()
        if isinstance(result, str | os.PathLike):
            print(result)
    return result
