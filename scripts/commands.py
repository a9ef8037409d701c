"""A function of ours as a command of its own: ``python -m scripts.NAME --OPTION VALUE``."""

import contextlib
import functools
import inspect
import io
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fire
from fire.decorators import SetParseFns

from scripts.errors import InputError, report_input_errors
from scripts.knobs import is_true

HELP = {"-h", "--help"}
TEXT = {str, os.PathLike, Path, types.NoneType}


def run_command(
    command: Callable[..., Any] | Mapping[str, Callable[..., Any]], arguments: Sequence[str] | None = None
) -> Any:
    """Run ``command`` with the options of the command line; an `InputError` in it becomes one line on stderr.

    All options are read before it begins: Fire by itself refuses a mistyped one when the work is done. Text is taken
    as it is written (Fire makes the number 20261126 of a folder 2026_11_26), and a switch may be true or false.

    Args:
        command: a function, whose arguments are the options; or functions by the words that choose one.
        arguments: those of the command line by default.

    Returns:
        What the function returns; text and paths are printed.

    Raises:
        SystemExit: an option is missing, unknown or without its value (2), or help was asked for (0).
        InputError: the function's own.
    """
    report_input_errors()
    arguments, name = list(sys.argv[1:] if arguments is None else arguments), _own_name()
    wants_help = not HELP.isdisjoint(arguments) or (isinstance(command, Mapping) and not arguments)
    if isinstance(command, Mapping):
        if not arguments or arguments[0] not in command:
            _say_words(name, command, arguments, wants_help)
        word = arguments.pop(0)
        command, name = command[word], f"{name} {word}"
    calls: list[Callable[[], Any]] = []

    @functools.wraps(command)
    def keep_for_later(*values: Any, **options: Any) -> None:
        calls.append(functools.partial(command, *values, **options))

    if wants_help:
        fire.Fire(keep_for_later, ["--", "--help"], name)
    if "--" in arguments:
        _refuse("--: nothing is read after it", command)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            fire.Fire(SetParseFns(**_find_parsers(command))(keep_for_later), arguments, name)
    except fire.core.FireExit as exit_:
        _refuse(exit_.trace.elements[-1].ErrorAsStr(), command)
    result = calls[0]()
    if isinstance(result, str | os.PathLike):
        print(result)
    return result


def _own_name() -> str:
    """Return the module that runs, or the file."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def _say_words(
    name: str, commands: Mapping[str, Callable[..., Any]], arguments: Sequence[str], wants_help: bool
) -> NoReturn:
    if wants_help:
        for word, command in commands.items():
            print(f"{name} {word}: {(inspect.getdoc(command) or '').splitlines()[0]}")
        print(f"{name} {'|'.join(commands)} --help: the options")
        raise SystemExit(0 if arguments else 2)
    print(f"error: {arguments[0]}: expected {' or '.join(commands)}", file=sys.stderr)
    raise SystemExit(2)


def _refuse(message: str, command: Callable[..., Any]) -> NoReturn:
    names = [key for key, each in inspect.signature(command).parameters.items() if each.kind != each.VAR_KEYWORD]
    print(f"error: {message}; the options are {', '.join(f'--{key}' for key in names)}", file=sys.stderr)
    raise SystemExit(2)


def _find_parsers(command: Callable[..., Any]) -> dict[str, Callable[[str], Any]]:
    """How each option of ``command`` is read, by its annotation and default."""
    parsers = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kinds = set(typing.get_args(parameter.annotation) or (parameter.annotation,))
        if isinstance(parameter.default, bool):
            parsers[name] = functools.partial(_parse_switch, name)
        elif parameter.kind != parameter.VAR_KEYWORD:
            parse = fire.parser.DefaultParseValue
            if str in kinds and kinds <= TEXT:
                parse = _parse_text_or_none if types.NoneType in kinds else str
            parsers[name] = functools.partial(_parse_value, name, parse)
    return parsers


def _parse_switch(name: str, text: str) -> bool:
    try:
        return is_true(text, f"--{name}")
    except InputError as error:
        raise fire.core.FireError(str(error)) from error


def _parse_value(name: str, parse: Callable[[str], Any], text: str) -> Any:
    if text in ("True", "False"):  # Fire's word for an option alone
        raise fire.core.FireError(f"--{name}: has no value")
    return parse(text)


def _parse_text_or_none(text: str) -> str | None:
    return None if text == "None" else text
