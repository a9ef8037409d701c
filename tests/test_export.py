"""The exports' config has the settings of the weights written out; what cannot be exported is refused in one line."""

import importlib.util
import json
import re

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata

from scripts.errors import InputError, find_input_error
from scripts.export import CONFIG, export, resolve, setting_ids
from scripts.networks import MPUNet
from scripts.settings import describe_training, write_settings
from tests import ROOT

SETTINGS = {
    "target": "liver_and_tumor", "spacing": [2.5, 2.5, 2.5], "plane_size": None, "window_hu": [-150, 250],
    "roi_size": [32, 32, 16], "min_liver_share": 0.1,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    """Weights that are not the bundle's default in any setting, as a training leaves them."""
    network = MPUNet(channels=[4, 4, 8, 8, 8], out_channels=3, norm="instance", elu_alpha=0.5)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    write_settings(describe_training(network, **SETTINGS), tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def test_the_config_looks_up_all_that_a_network_and_a_training_say_of_themselves():
    told = describe_training(MPUNet(channels=[4, 4, 8, 8, 8]), **SETTINGS).keys() - {"network"}
    assert setting_ids(json.loads(CONFIG.read_text(encoding="utf-8"))).keys() == told


def test_the_config_inside_has_every_setting_as_a_plain_value_and_looks_nothing_up(weights, tmp_path):
    (path,) = export(weights, tmp_path / "out", onnx=False)
    assert path == tmp_path / "out/mine.ts"
    _, metadata, files = load_net_with_metadata(str(path), more_extra_files=["inference.json"])
    config = json.loads(files["inference.json"])
    network = {"channels": [4, 4, 8, 8, 8], "norm": "instance", "dropout": 0.2, "stage_norm": None, "elu_alpha": 0.5}
    network["fusion_weights"] = False
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    assert {key: config["network_def"][key] for key in network} == network
    assert config["trained_with"] == SETTINGS | network
    assert "@trained_with" not in files["inference.json"].decode()
    assert str(tmp_path) not in files["inference.json"].decode()
    assert ConfigParser(config).get_parsed_content("network_def").heads[0].out_channels == 3
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "tumor"
    assert not list((tmp_path / "out").glob(".*"))


def test_weights_without_settings_are_exported_with_the_defaults(tmp_path):
    parser = resolve(tmp_path / "model.pt", CONFIG, {})
    assert (parser["target"], parser["spacing"]) == ("liver", [1.5, 1.5, 1.0])
    assert parser["network_def::channels"] == [16, 32, 64, 128, 256]


def test_an_overlay_and_an_option_win_over_the_settings(weights):
    files = [CONFIG, ROOT / "configs/unet.json"]
    parser = resolve(weights, files, {"roi_size": [64, 64, 32], "network_def#channels": [4, 8, 8, 8]})
    assert parser["network_def"]["_target_"] == "scripts.networks.UNet"
    assert parser["network_def"]["channels"] == [4, 8, 8, 8]
    assert parser["roi_size"] == parser["trained_with"]["roi_size"] == [64, 64, 32]
    assert parser["target"] == "liver_and_tumor"


@pytest.mark.parametrize("value", ["$__import__('os').abort()", ["@bundle_root"], {"_target_": "os.abort"}])
def test_a_setting_that_a_config_would_evaluate_is_refused(weights, value):
    write_settings(SETTINGS | {"window_hu": value}, weights)
    with pytest.raises(InputError, match=r"mine\.pt: its setting window_hu is .*, which is no plain value"):
        resolve(weights, CONFIG, {})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"weights": "none.pt"}, r"^none\.pt: no such file; train first, or give others by --weights"),
        ({"config_file": "none.json"}, r"^none\.json: no such file; give others by --config_file"),
        ({"targets": "liver"}, r"^--targets: is no option of the export and no key of "),
        ({"roi_size": 96}, r"^--roi_size: expected three whole numbers of at least 1"),
        ({"target": "tumor"}, r"mine\.pt: not weights of this network; give the --config_file, --target and network"),
        ({"target": "spleen"}, r"^target: 'spleen' is unknown"),
    ],
)
def test_what_cannot_be_exported_is_refused(weights, tmp_path, overrides, message):
    with pytest.raises(Exception) as caught:
        export(**{"weights": weights, "output_dir": tmp_path / "out"} | overrides)
    assert re.search(message, str(find_input_error(caught.value)))
    assert not (tmp_path / "out").exists()


def test_without_the_packages_of_onnx_it_says_which_before_it_begins(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"^onnxscript: not installed; pip install onnxscript .* or .* --onnx false"):
        export(weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()
