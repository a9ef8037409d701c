"""How does the network leave PyTorch? As TorchScript and ONNX files that carry the settings of their weights inside.

    python -m scripts.export --weights models/model.pt --output_dir models

MONAI's ``ckpt_export`` and ``onnx_export`` write them. They are given one config here, in which all that it would look
up beside the weights is written out, so the files give the same mask wherever they lie.
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from monai.bundle import ConfigParser, ckpt_export, onnx_export

from scripts.cases import read_json
from scripts.commands import run_command
from scripts.data import describe_classes
from scripts.errors import InputError
from scripts.files import read_weights, written_whole
from scripts.handlers import existing_file
from scripts.knobs import check_overrides
from scripts.manifest import merged_config
from scripts.networks.exported import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/inference.json"
METADATA = ROOT / "configs/metadata.json"
ONNX_PACKAGES = ("onnx", "onnxscript")
NETWORK = "network_def"
SIGNS = ("$", "@", "%")  # with which MONAI's expressions, references and macros begin


def _is_plain(value: Any) -> bool:
    """Return whether a value stays what it is when a config has it: no expression, no component."""
    if isinstance(value, Mapping):
        return not any(str(key).startswith("_") for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return not (isinstance(value, str) and value.startswith(SIGNS))


def setting_ids(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a config looks up beside the weights: name → id, such as ``network_def::norm``."""
    places = {"": config, f"{NETWORK}::": config[NETWORK]}
    return {
        name: prefix + name
        for prefix, items in places.items()
        for name, value in items.items()
        if isinstance(value, str) and f"@{SETTINGS}.get(" in value
    }


def resolve(
    weights: str | Path, config_file: str | Path | Sequence[str | Path], overrides: Mapping[str, Any]
) -> ConfigParser:
    """Return a config of an inference in which the settings of ``weights`` are plain values.

    Args:
        weights: with their settings, ``.json``, beside them; if there are none, they are the config's defaults.
        config_file: of the inference, and those that are laid over it.
        overrides: more keys and values.

    Raises:
        InputError: if there is no such file or key, or a setting is not a plain value.
    """
    files = [config_file] if isinstance(config_file, str | Path) else config_file
    parser = ConfigParser(
        ConfigParser.load_config_files([str(existing_file(file, "give others by --config_file")) for file in files])
    )
    ckpt_path = parser["ckpt_path"]
    check_overrides(overrides, parser, f"option of the export and no key of {files[0]}")
    parser.update(overrides)
    parser["ckpt_path"] = str(weights)
    ids = {name: id_ for name, id_ in setting_ids(read_json(CONFIG)).items() if id_ in parser}
    settings = {name: parser.get_parsed_content(id_) for name, id_ in ids.items()}
    for name, value in settings.items():
        if not _is_plain(value):
            raise InputError(f"{weights}: its setting {name} is {value!r}, which is no plain value; mend it")
        parser[ids[name]] = value
    parser[SETTINGS] = settings
    parser["ckpt_path"] = ckpt_path  # no path of somebody's computer
    return parser


def _check_weights(parser: ConfigParser, weights: Path) -> None:
    """Raise `InputError` unless the weights are whole, and those of the config's network."""
    network, state = parser.get_parsed_content(NETWORK), read_weights(weights)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{weights}: not weights of this network; give the --config_file, --target and network settings that they "
            "were trained with"
        ) from error


def _write_settings_into(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings into the metadata of an ONNX file."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {SETTINGS: json.dumps(settings)})
    onnx.save(model, path)


def export(
    weights: str | Path,
    output_dir: str | Path,
    config_file: str | Path | Sequence[str | Path] = CONFIG,
    onnx: bool = True,
    **overrides: Any,
) -> list[Path]:
    """Write ``NAME.ts`` and ``NAME.onnx`` for weights ``NAME.pt``; return their paths.

    The TorchScript file takes images of any size and holds ``inference.json`` and ``metadata.json``; the ONNX file
    takes one window, ``(1, 1, *roi_size)``, and holds the settings among its metadata.

    Args:
        weights: a state dict alone, such as ``models/model.pt``, with its settings beside it, if it has any.
        output_dir: where to write.
        config_file: see `resolve`.
        onnx: write the ONNX file too.
        overrides: see `resolve`.

    Raises:
        InputError: see `resolve`; if the weights are missing, damaged or another network's; if packages are missing.
    """
    weights = Path(existing_file(weights, "train first, or give others by --weights"))
    missing = [package for package in ONNX_PACKAGES if onnx and importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: not installed; pip install {' '.join(missing)} (versions in requirements-test.txt) "
            "or leave ONNX out by --onnx false"
        )
    parser = resolve(weights, config_file, overrides)
    _check_weights(parser, weights)
    settings, metadata = (
        parser[SETTINGS],
        describe_classes(read_json(METADATA), parser.get_parsed_content("class_names")),
    )
    script, model = (Path(output_dir) / f"{weights.stem}.{suffix}" for suffix in ("ts", "onnx"))
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(tempfile, "tempdir", name),
    ):  # MONAI leaves files there
        folder = Path(name)
        for file, content in ((CONFIG.name, merged_config(parser)), (METADATA.name, metadata)):
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
        arguments = {
            "net_id": NETWORK, "ckpt_file": str(weights), "meta_file": str(folder / METADATA.name),
            "config_file": str(folder / CONFIG.name),
        }  # fmt: skip
        ckpt_export(filepath=str(folder / script.name), **arguments)
        if onnx:
            window = [1, 1, *parser.get_parsed_content("roi_size")]
            onnx_export(filepath=str(folder / model.name), input_shape=window, **arguments)
            _write_settings_into(folder / model.name, settings)
        exported = [script, model] if onnx else [script]
        for path in exported:
            with written_whole(path) as temporary:
                shutil.copyfile(folder / path.name, temporary)
    return exported


def main(
    weights: str = "models/model.pt",
    output_dir: str = "models",
    config_file: str | Sequence[str] = str(CONFIG),
    onnx: bool = True,
    **overrides: Any,
) -> None:
    """Write the network with WEIGHTS (NAME.pt) as OUTPUT_DIR/NAME.ts and NAME.onnx.

    Args:
        weights: with their settings beside them.
        output_dir: where to write.
        config_file: inference.json, or a list of it and what is laid over it, such as configs/unet.json.
        onnx: false: TorchScript alone.
        overrides: any knob of the config, such as --target or --roi_size (of the ONNX file's one window).
    """
    exported = export(weights, output_dir, config_file, onnx, **overrides)
    print("\n".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in exported))


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # PyTorch's exporter prints signs that not every locale has
    run_command(main)
