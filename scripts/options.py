"""Is every option that somebody typed for `monai.bundle run` one that the configs use?

MONAI takes any, and adds to the config what is not in it: a misspelt one would be as good as none.
"""

import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from scripts.errors import InputError
from scripts.manifest import find_parser, merged_config

PATHS = ("dataset_dir", "output_dir", "ckpt_path", "pretrained", "cache_dir", "datalist_file")
READ_BY_MONAI = {"save_execute_config"}  # of --tracking, wherever it stands
ACTIVE = re.compile(r'"[$@%]|"_target_"')  # what MONAI evaluates, in JSON


def check_options() -> None:
    """Raise `InputError` for an option of the command line that the config being initialized cannot use.

    That is one that it never refers to, and a path whose name was read as a number, such as ``20261127``.

    What a config file says, or a program gives, is not looked at: an overlay may be meant for several configs.
    """
    parser = find_parser()
    if parser is None:
        return
    config = merged_config(parser)
    options = [argument[2:].split("=")[0] for argument in sys.argv[1:] if argument.startswith("--")]
    for key in PATHS:
        value = config.get(key)
        if key in options and not isinstance(value, str | None):
            raise InputError(f"--{key}: was read as {value!r}, not as a path; write ./ before its name")
    for option in find_unused(options, config):
        used = set(config) - set(find_unused(config, config))
        similar = difflib.get_close_matches(_first_part(option), used, 1)
        hint = f"did you mean --{similar[0]}?" if similar else "docs/knobs.md has those that people use"
        raise InputError(f"--{option}: these configs have no such setting; {hint}")


def find_unused(options: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Return the options whose key ``config``, with their values in it, has and never uses.

    Used is a key that the config refers to, and one that has an expression or a component in it, as ``training`` has.

    Args:
        options: without ``--``, such as ``network_def::norm``.
        config: as JSON has it.
    """
    text = json.dumps(config)
    unused = []
    for option in options:
        key = _first_part(option)
        is_named = re.search(rf"[@%]{re.escape(key)}(?!\w)", text)
        if key in config.keys() - READ_BY_MONAI and not is_named and not ACTIVE.search(json.dumps(config[key])):
            unused.append(option)
    return unused


def _first_part(option: str) -> str:
    return re.split("#|::", option)[0].replace("-", "_")
