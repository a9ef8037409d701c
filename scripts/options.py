"""Is every option that somebody typed for `monai.bundle run` one that the configs use?

MONAI takes any, and adds to the config what is not in it: a misspelt one would be as good as none.
"""

import difflib
import inspect
import json
import os
import pydoc
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigComponent, ConfigParser

from scripts.errors import InputError
from scripts.knobs import check_value, is_true, is_whole
from scripts.manifest import find_parser, merged_config

RUN = 1  # place among the arguments of the word ``run``, after which the name of what to run may stand
PATHS = ("dataset_dir", "output_dir", "ckpt_path", "pretrained", "cache_dir", "datalist_file")
NEEDED_PATHS = ("dataset_dir", "output_dir", "ckpt_path", "pretrained")
READ_BY_MONAI = {"save_execute_config"}  # of --tracking, wherever it stands
SWITCH = re.compile(r"\bis_true\(@(\w+)\)")  # what configs say of those
ACTIVE = re.compile(r'"[$@%]|"_target_"')  # what MONAI evaluates, in JSON


def check_options() -> None:
    """Raise `InputError` for what was typed if the config being initialized cannot use it.

    That is an option that it never refers to, an argument that its component does not take, a value that a knob
    (see `check_value`) or a switch does not take, a path that is empty or whose name was read as a number, such as
    ``20261127``, a word in the place of a whole component, and the name of something to run that it does not have.

    What a config file says, or a program gives, is not looked at: an overlay may be meant for several configs.
    """
    parser = find_parser()
    if parser is None:
        return
    config = merged_config(parser)
    typed = [argument[2:].split("=")[0] for argument in sys.argv[1:] if argument.startswith("--")]
    options = [option.replace("-", "_") for option in typed]
    _check_run(config)
    files = _read_config_files()
    switches = set(SWITCH.findall(json.dumps(config)))
    for option in options:
        _check_path(option, config.get(option))
        _check_component(option, config.get(option), files)
        if option in config:
            check_value(option, config[option])
        if option in switches and not str(config.get(option)).startswith("$"):
            is_true(config.get(option), f"--{option}")
    if {"max_epochs", "val_interval"} & set(options):
        _check_interval(config)
    for option in typed:
        refuse_unused(option, config)


def refuse_unused(option: str, config: Mapping[str, Any]) -> None:
    """Raise `InputError` if the ``config`` never uses what ``option`` names, see `find_unused`."""
    unused = find_unused(option, config)
    if unused is None:
        return
    *above, name = unused.path
    similar = difflib.get_close_matches(name, unused.others, 1)
    hint = "docs/knobs.md has those that people use"
    if similar:
        hint = f"did you mean --{'::'.join([*above, *similar])}?"
    raise InputError(f"--{option}: these configs have no such setting; {hint}")


def _check_run(config: Mapping[str, Any]) -> None:
    """Raise `InputError` if what follows ``run`` on the command line is no part of the config."""
    name = next(iter(sys.argv[RUN + 1 :]), "--")
    if sys.argv[RUN : RUN + 1] == ["run"] and not name.startswith("-") and name not in config:
        there = [key for key, value in config.items() if isinstance(value, list) and ".run()" in json.dumps(value)]
        raise InputError(
            f"{name}: there is nothing of that name to run in these configs, but {' and '.join(there) or 'run'}; "
            "mend it, or add the config that has it"
        )


def _check_path(option: str, value: Any) -> None:
    """Raise `InputError` if the ``option`` is a path and its value is none."""
    if option in PATHS and not isinstance(value, str | None):
        raise InputError(f"--{option}: was read as {value!r}, not as a path; write ./ before its name")
    if option in NEEDED_PATHS and value == "":
        raise InputError(f"--{option}: is empty; give a path (was it a variable of the shell that is not set?)")
    if option == "pretrained" and value and not value.startswith("$") and not os.path.isfile(value):
        raise InputError(f"{value}: no such file; --pretrained names the weights to begin with")


def _read_config_files() -> list[dict[str, Any]]:
    """Return what each config file that the command line names says by itself."""
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, is_joined, value = argument.partition("=")
        if name.replace("-", "_") == "__config_file":
            files = DefaultParseValue(value if is_joined else following)
            if isinstance(files, str):
                files = [files] if os.path.isfile(files) else files.split(",")
            return [ConfigParser.load_config_file(file) for file in files]
    return []


def _check_component(option: str, value: Any, files: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputError` if a word was typed for what every config file that has it makes a component: ``dataset``."""
    found = [file[option] for file in files if option in file]
    if not found or not all(isinstance(part, Mapping) and "_target_" in part for part in found):
        return
    if isinstance(value, str) and not value.startswith(("$", "@", "%")):
        settings = [key for file in files for key, part in file.items() if not isinstance(part, Mapping | list)]
        similar = difflib.get_close_matches(option, settings, 1)
        hint = f"did you mean --{similar[0]}?" if similar else "docs/knobs.md has the settings"
        raise InputError(f"--{option}: is a part of these configs and takes no word, received {value!r}; {hint}")


def _check_interval(config: Mapping[str, Any]) -> None:
    """Raise `InputError` for a training that would end before its first validation, and so keep no weights."""
    epochs, interval = config.get("max_epochs"), config.get("val_interval")
    if is_whole(epochs) and is_whole(interval) and epochs < interval and "training" in sys.argv:
        raise InputError(
            f"--max_epochs: {epochs} is less than --val_interval, {interval}: no epoch would be validated, and no "
            f"weights kept; give --val_interval {epochs} too"
        )


@dataclass(frozen=True)
class Unused:
    """A part of a config that nothing uses.

    Attributes:
        path: its name, after those of the parts that it is in.
        others: names that would be used in its place.
    """

    path: list[str]
    others: list[str]


def find_unused(option: str, config: Mapping[str, Any]) -> Unused | None:
    """Return what of ``option`` the ``config``, with its value in it, never uses, if there is such a part.

    Used is a part that the config refers to, and one that has an expression or a component in it, as ``training`` has;
    of a component, what it takes as an argument. What is in a list is not looked at. A part that macros
    (``%key``) alone take counts as unused: by now MONAI has put in their place what they stand for.

    Args:
        option: without ``--``, such as ``network_def::norm``.
        config: as JSON has it.
    """
    text = json.dumps(config).replace("#", "::")
    names = re.split("#|::", option.replace("-", "_"))
    part: Any = config
    of_component = False
    for depth, name in enumerate(names):
        if not isinstance(part, Mapping) or name not in part or name in READ_BY_MONAI:
            return None
        above = names[:depth]
        if "_target_" in part:
            arguments = _find_arguments(part)
            if arguments is not None and name not in arguments | ConfigComponent.non_arg_keys:
                return Unused([*above, name], sorted(arguments))
            of_component = True
        elif not of_component and not _is_used([*above, name], part[name], text):
            return Unused([*above, name], [other for other in part if _is_used([*above, other], part[other], text)])
        part = part[name]
    return None


def _is_used(path: Sequence[str], value: Any, text: str) -> bool:
    """Return whether a part is active, or the config's ``text`` refers to it or to a whole that it is in."""
    wholes = ["::".join(path[:depth]) for depth in range(1, len(path))]
    patterns = [rf"@{re.escape('::'.join(path))}(?!\w)", *(rf"@{re.escape(whole)}(?!\w|::)" for whole in wholes)]
    return any(re.search(pattern, text) for pattern in patterns) or bool(ACTIVE.search(json.dumps(value)))


def _find_arguments(component: Mapping[str, Any]) -> set[str] | None:
    """Return the names that a component takes beside MONAI's own; None if any, or if it does not say."""
    name = ConfigComponent(component).resolve_module_name()
    target = pydoc.locate(name) if isinstance(name, str) else None
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}
