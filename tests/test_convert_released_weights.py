import subprocess
import sys

import pytest
import torch

from scripts.convert_released_weights import convert, convert_state_dict, load_released_checkpoint
from scripts.errors import InputError
from scripts.networks import MPUNet, UNet
from tests import ROOT
from tests.golden import released_state_dict


@pytest.mark.parametrize("network, build", [("mpunet", MPUNet), ("unet", UNet)])
def test_every_released_tensor_ends_up_in_the_network_or_was_never_used(network, build):
    released = released_state_dict(network)
    converted = convert_state_dict(released, network)
    build().load_state_dict(converted, strict=True)
    dead = [key for key in released if key.split(".")[0] in ("up1", "decoder5", "map5")]
    assert len(converted) == len(released) - len(dead)
    kept = sum(value.double().sum() for key, value in released.items() if key not in dead)
    torch.testing.assert_close(sum(value.double().sum() for value in converted.values()), kept)


def test_prefix_of_data_parallel_training_is_dropped():
    released = released_state_dict("unet")
    prefixed = {f"module.{key}": value for key, value in released.items()}
    expected = convert_state_dict(released, "unet")
    converted = convert_state_dict(prefixed, "unet")
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_number_of_classes_is_that_of_the_checkpoint():
    released = released_state_dict("unet")
    for key in list(released):
        if key.startswith(("map", "decoder4")):
            released[key] = torch.zeros(3, *released[key].shape[1:])
        if key == "map4.0.weight":
            released[key] = torch.zeros(3, 3, 1, 1, 1)
    UNet(out_channels=3).load_state_dict(convert_state_dict(released, "unet"))


def _without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: _without(s, "encoder1.bias"), r"encoders\.0\.bias is missing"),
        (lambda s: s | {"fancy.weight": torch.zeros(1)}, r"fancy\.weight is not one of its keys"),
        (lambda s: s | {"encoder1.bias": torch.zeros(5)}, r"encoders\.0\.bias is \(5,\) instead of \(32,\)"),
        (lambda s: {}, r"encoders\.0\.weight is missing.*and \d+ more"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(InputError, match=f"not weights of the released unet: .*{message}"):
        convert_state_dict(change(released_state_dict("unet")), "unet")


def test_weights_of_the_other_network_are_refused():
    with pytest.raises(InputError, match="not weights of the released unet"):
        convert_state_dict(released_state_dict("mpunet"), "unet")


def test_unknown_network_is_refused():
    with pytest.raises(InputError, match="--network resnet: unknown; give one of mpunet, unet"):
        convert_state_dict({}, "resnet")


class _Exploit:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"net": _Exploit()}, path)
    with pytest.raises(InputError, match=r"evil\.pth: cannot be read as a PyTorch file of tensors alone"):
        load_released_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_damaged_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth: no such file"):
        load_released_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello", encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.pth: cannot be read"):
        load_released_checkpoint(tmp_path / "text.pth")
    torch.save({"net": released_state_dict("unet")}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"cut\.pth: cannot be read"):
        load_released_checkpoint(tmp_path / "cut.pth")
    torch.save({"net": {}, "epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(InputError, match=r"empty\.pth: holds no state dict"):
        load_released_checkpoint(tmp_path / "empty.pth")


def test_a_file_that_does_not_fit_is_named_and_writes_nothing(tmp_path):
    torch.save({"net": released_state_dict("mpunet")}, tmp_path / "mpunet.pth")
    with pytest.raises(InputError, match=r"mpunet\.pth: these are not weights of the released unet"):
        convert(str(tmp_path / "mpunet.pth"), str(tmp_path / "out" / "model.pt"), "unet")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_plain_state_dict(tmp_path):
    checkpoint, output = tmp_path / "best_model.pth", tmp_path / "models" / "unet.pt"
    torch.save({"net": released_state_dict("unet"), "optimizer": {"state": {}}, "epoch": 7}, checkpoint)
    command = [sys.executable, "-m", "scripts.convert_released_weights", "--network", "unet"]
    done = subprocess.run(
        [*command, "--checkpoint", str(checkpoint), "--output", str(output)],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert "24 tensors" in done.stdout
    UNet().load_state_dict(torch.load(output, weights_only=True))
