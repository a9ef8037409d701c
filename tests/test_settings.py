import json

import pytest
from torch import nn

from scripts.errors import InputError
from scripts.networks import MPUNet
from scripts.settings import describe_training, read_settings, settings_file, write_settings


def test_settings_lie_beside_the_weights_and_come_back(tmp_path):
    settings = describe_training(MPUNet(channels=(8, 8, 8, 8, 16), norm="instance"), spacing=[2.5, 2.5, 2.5])
    write_settings(settings, tmp_path / "model.pt")
    assert settings_file(tmp_path / "model.pt") == tmp_path / "model.json"
    assert read_settings(tmp_path / "model.pt") == {
        "spacing": [2.5, 2.5, 2.5], "network": "MPUNet", "channels": [8, 8, 8, 8, 16], "dropout": 0.2,
        "norm": "instance", "stage_norm": None, "elu_alpha": 1.0, "fusion_weights": False,
    }  # fmt: skip


def test_another_network_has_no_settings_of_its_own():
    assert describe_training(nn.Identity(), target="liver") == {"target": "liver", "network": "Identity"}


@pytest.mark.parametrize("weights", [None, "", "none.pt"])
def test_weights_with_nothing_beside_them_have_no_settings(weights):
    assert read_settings(weights) == {}


@pytest.mark.parametrize("content", ["", "[1]", "{", json.dumps("model")])
def test_what_is_no_settings_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.json: is not the settings that model\.pt was trained with"):
        read_settings(tmp_path / "model.pt")
