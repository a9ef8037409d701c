"""How the authors' released checkpoints become state dicts of this bundle's networks.

python -m scripts.convert_released_weights --checkpoint best_model.pth --output models/released.pt --network mpunet
"""

import os
import re
from collections.abc import Mapping

from torch import Tensor

from scripts.commands import run_command
from scripts.errors import InputError
from scripts.files import read_checkpoint, write_weights
from scripts.networks import MPUNet, UNet
from scripts.settings import check_weights_name, settings_file

# (pattern of a released key, ours; None: a module that no forward pass of the release uses)
MPUNET_KEYS = (
    (r"(up1|decoder5|map5)\..*", None),
    (r"encoder(\d)\.encoder_stage\.(.*)", lambda m: f"encoders.{int(m[1]) - 1}.{m[2]}"),
    (r"down(\d)\.down_conv\.(.*)", lambda m: f"downs.{int(m[1]) - 1}.{m[2]}"),
    (r"PCL\.attn\.(\d)\.(query|key|value)_conv\.(.*)", r"context.\1.\2.\3"),
    (r"PCL\.attn\.(.*)", r"context.\1"),
    (r"decoder(\d)\.decoder_stage\.(.*)", lambda m: f"decoders.{int(m[1]) - 1}.stage.{m[2]}"),
    (r"Att(\d)\.Wx\.(.*)", lambda m: f"decoders.{4 - int(m[1])}.gate.project_x.{m[2]}"),
    (r"Att(\d)\.Wg\.(.*)", lambda m: f"decoders.{4 - int(m[1])}.gate.project_gate.{m[2]}"),
    (r"Att(\d)\.psi\.(.*)", lambda m: f"decoders.{4 - int(m[1])}.gate.coefficient.{m[2]}"),
    (r"up(\d)\.up_conv\.(.*)", lambda m: f"ups.{int(m[1]) - 1}.{m[2]}"),
    (r"map(\d)\.map_conv\.0\.(.*)", lambda m: f"heads.{int(m[1]) - 1}.{m[2]}"),
)
UNET_KEYS = (
    (r"encoder(\d)\.(.*)", lambda m: f"encoders.{int(m[1]) - 1}.{m[2]}"),
    (r"decoder(\d)\.(.*)", lambda m: f"decoders.{int(m[1]) - 1}.{m[2]}"),
    (r"map(\d)\.0\.(.*)", lambda m: f"heads.{int(m[1]) - 1}.{m[2]}"),
)
NETWORKS = {"mpunet": (MPUNET_KEYS, MPUNet), "unet": (UNET_KEYS, UNet)}


def convert_state_dict(released: Mapping[str, Tensor], network: str = "mpunet") -> dict[str, Tensor]:
    """Return a released state dict under this bundle's names, without the modules that no forward pass uses.

    Args:
        released: name → tensor, as in the release (a ``module.`` prefix of data parallelism is dropped).
        network: ``mpunet`` or ``unet``.

    Raises:
        InputError: for an unknown ``network``; for a state dict that is not that network's: the message names the
            first keys that are missing, unknown or of another shape.
    """
    if network not in NETWORKS:
        raise InputError(f"--network {network}: unknown; give one of {', '.join(NETWORKS)}")
    patterns, network_class = NETWORKS[network]
    converted: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in released.items():
        name = key.removeprefix("module.")
        pattern, replacement = next(((p, r) for p, r in patterns if re.fullmatch(p, name)), (None, None))
        if pattern is None:
            problems.append(f"{key} is not one of its keys")
        elif replacement is not None:
            converted[re.sub(pattern, replacement, name)] = value

    head = converted.get("heads.0.weight")
    expected = network_class(out_channels=2 if head is None else head.shape[0]).state_dict()
    problems += [f"{key} is missing" for key in expected if key not in converted]
    problems += [f"{key} is not one of its keys" for key in converted if key not in expected]
    problems += [
        f"{key} is {tuple(converted[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in converted and converted[key].shape != expected[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(f"these are not weights of the released {network}: {'; '.join(problems[:3])}{more}")
    return {key: converted[key] for key in expected}


def load_released_checkpoint(checkpoint: str | os.PathLike) -> dict[str, Tensor]:
    """Return the state dict in a released checkpoint, ``{"net": state dict, ...}`` or the state dict alone.

    Raises:
        InputError: if the file cannot be read (see `scripts.files.read_checkpoint`) or has no state dict.
    """
    content = read_checkpoint(checkpoint)
    state = content.get("net", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{checkpoint}: holds no state dict; expected {{'net': state dict}} or the state dict alone")
    return state


def convert(checkpoint: str, output: str, network: str = "mpunet") -> None:
    """Turn a released checkpoint into weights for ``configs/inference.json`` with ``configs/released.json``.

    Args:
        checkpoint: the authors' file.
        output: where the state dict is written, such as ``models/released.pt``; the folder is made.
        network: ``mpunet`` or ``unet``.
    """
    check_weights_name(output)
    released = load_released_checkpoint(checkpoint)
    try:
        state = convert_state_dict(released, network)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    write_weights(state, output)
    settings_file(output).unlink(missing_ok=True)  # of other weights, that were there before
    print(f"{output}: {len(state)} tensors, {sum(value.numel() for value in state.values()):,} values")


if __name__ == "__main__":
    run_command(convert)
