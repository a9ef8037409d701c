"""With what settings were weights trained? It lies beside them: ``model.json`` beside ``model.pt``."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scripts.errors import InputError
from scripts.files import write_text

RUN_FILES = ("last", "previous-last", "run", "manifest", "datalist")  # what a run names its other files


def describe_training(network: nn.Module, **settings: Any) -> dict[str, Any]:
    """Return ``settings``, the network's class and its own ``settings``, if it has any."""
    return settings | {"network": type(network).__name__} | getattr(network, "settings", {})


def check_weights_name(path: str | os.PathLike) -> None:
    """Raise `InputError` unless a file of weights and that of its settings can have this name."""
    if Path(path).suffix != ".pt" or Path(path).stem in RUN_FILES:
        raise InputError(
            f"{path}: is no name for weights, beside which their settings lie; give one that ends in .pt, and is not "
            f"that of another file of a run ({', '.join(RUN_FILES)})"
        )


def settings_file(weights: str | os.PathLike) -> Path:
    """Return the file of the settings of a file of weights."""
    return Path(weights).with_suffix(".json")


def write_settings(settings: Mapping[str, Any], weights: str | os.PathLike) -> None:
    """Write the settings, which JSON must know, of a file of weights beside it."""
    write_text(settings_file(weights), json.dumps(settings, indent=2) + "\n")


def read_settings(weights: str | os.PathLike | None) -> dict[str, Any]:
    """Return the settings of a file of weights; none for no file, or one that has none beside it.

    Raises:
        InputError: if what lies beside it is something else.
    """
    if not weights or not settings_file(weights).is_file():
        return {}
    path = settings_file(weights)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise InputError(
            f"{path}: is not the settings that {Path(weights).name} was trained with; get both again, or delete it and "
            "give the settings as options"
        )
    return settings
