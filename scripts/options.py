"""Is every option that somebody typed for `monai.bundle run` one that the configs use?

MONAI takes any, and adds to the config what is not in it: a misspelt one would be as good as none.
"""

import difflib
import inspect
import json
import pydoc
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigComponent

from scripts.errors import InputError
from scripts.manifest import find_parser, merged_config

PATHS = ("dataset_dir", "output_dir", "ckpt_path", "pretrained", "cache_dir", "datalist_file")
READ_BY_MONAI = {"save_execute_config"}  # of --tracking, wherever it stands
ACTIVE = re.compile(r'"[$@%]|"_target_"')  # what MONAI evaluates, in JSON


def check_options() -> None:
    """Raise `InputError` for an option of the command line that the config being initialized cannot use.

    That is one that it never refers to, an argument that its component does not take, and a path whose name was read
    as a number, such as ``20261127``.

    What a config file says, or a program gives, is not looked at: an overlay may be meant for several configs.
    """
    parser = find_parser()
    if parser is None:
        return
    config = merged_config(parser)
    options = [argument[2:].split("=")[0] for argument in sys.argv[1:] if argument.startswith("--")]
    for key in PATHS:
        value = config.get(key)
        if key in (option.replace("-", "_") for option in options) and not isinstance(value, str | None):
            raise InputError(f"--{key}: was read as {value!r}, not as a path; write ./ before its name")
    for option in options:
        unused = find_unused(option, config)
        if unused is None:
            continue
        *above, name = unused.path
        similar = difflib.get_close_matches(name, unused.others, 1)
        hint = "docs/knobs.md has those that people use"
        if similar:
            hint = f"did you mean --{'::'.join([*above, *similar])}?"
        raise InputError(f"--{option}: these configs have no such setting; {hint}")


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
