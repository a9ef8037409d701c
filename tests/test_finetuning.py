"""Weights of matching shape are taken, all else stays new; what is frozen stays as it was."""

import logging

import pytest
import torch
from torch import nn

from scripts.errors import InputError
from scripts.finetuning import PretrainedWeights, freeze, take_weights
from scripts.networks import MPUNet, UNet

CHANNELS = [4, 4, 8, 8, 8]


def test_all_but_the_heads_of_other_classes_is_taken(caplog):
    two, three = MPUNet(channels=CHANNELS, out_channels=2), MPUNet(channels=CHANNELS, out_channels=3)
    before = {name: value.clone() for name, value in three.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="scripts.finetuning"):
        new = take_weights(three, two.state_dict(), "model.pt")
    assert new == [f"heads.{level}.{kind}" for level in range(4) for kind in ("bias", "weight")]
    for name, value in three.state_dict().items():
        expected = before[name] if name in new else two.state_dict()[name]
        assert torch.equal(value, expected), name
    total = len(before)
    assert f"model.pt: {total - 8} of {total} tensors taken; new: heads.0.bias (3,), not (2,); " in caplog.text


def test_a_tensor_that_the_weights_lack_stays_new(caplog):
    network = MPUNet(channels=CHANNELS, fusion_weights=True)
    with caplog.at_level(logging.INFO, logger="scripts.finetuning"):
        assert take_weights(network, MPUNet(channels=CHANNELS).state_dict(), "model.pt") == ["fusion.weights"]
    assert caplog.text.strip().endswith("new: fusion.weights (4,)")


@pytest.mark.parametrize(
    "weights, message",
    [
        (UNet(channels=[4, 4, 4, 4]).state_dict(), r"^model\.pt: only \d+ of the network's \d+ tensors are there"),
        (MPUNet(channels=[8, 8, 16, 16, 16]).state_dict(), r"^model\.pt: only \d+ of the network's \d+ tensors are"),
        ({"model": MPUNet(channels=CHANNELS).state_dict()}, r"^model\.pt: is no state dict of a network; give weights"),
        ([1, 2], r"^model\.pt: is no state dict of a network"),
    ],
    ids=["another network", "another width", "a checkpoint", "a list"],
)
def test_weights_of_another_network_are_refused(weights, message):
    network = MPUNet(channels=CHANNELS)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=message):
        take_weights(network, weights, "model.pt")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pt: no such file; give weights to begin with by --pretrained$"):
        PretrainedWeights(nn.Linear(1, 1), tmp_path / "none.pt")


def test_averaged_weights_begin_with_the_same(tmp_path):
    network, averaged, given = (nn.Linear(1, 1) for _ in range(3))
    torch.save(given.state_dict(), tmp_path / "model.pt")
    PretrainedWeights(network, tmp_path / "model.pt", averaged)(None)
    assert network.weight == averaged.weight == given.weight
    PretrainedWeights(network, tmp_path / "model.pt", network)(None)


def test_what_is_frozen_gets_no_gradient():
    network = MPUNet(channels=CHANNELS)
    freeze(network, r"^(encoders|downs)\.")
    frozen = {name.split(".")[0] for name, value in network.named_parameters() if not value.requires_grad}
    trained = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
    assert frozen == {"encoders", "downs"}
    assert trained == {"context", "decoders", "ups", "heads"}


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"frozen_layers: '\^encoder\\\\.' matches no parameter of UNet; mend it"):
        freeze(UNet(), r"^encoder\.")
