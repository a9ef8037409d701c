from itertools import chain

import pytest
import torch
from torch import nn

from scripts.networks import MPUNet, slabs
from scripts.networks.layers import Downsampling, InstanceNorm, PReLU
from scripts.networks.slabs import HALO, in_slabs, is_local

NARROW = (8, 8, 8, 8, 16)


@pytest.fixture
def thin_slabs(monkeypatch):
    """As if a slab had room for eight planes of 8 × 8 voxels."""
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 8 * 8 * 8)


def trained(**options):
    """A network in evaluation whose batch norms have seen something."""
    torch.manual_seed(0)
    network = MPUNet(channels=NARROW, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_slabs_of_local_functions_are_the_function_of_the_whole(thin_slabs):
    torch.manual_seed(0)
    convolutions = nn.Sequential(*(nn.Conv3d(2, 2, 3, padding=1) for _ in range(3)))
    up = nn.ConvTranspose3d(3, 2, 2, stride=2)
    down = Downsampling(2, 5, 2, "batch", 1.0).eval()
    coarse, fine = torch.randn(2, 3, 12, 4, 4), torch.randn(2, 2, 24, 8, 8)
    with torch.no_grad():
        for function, inputs in (
            (lambda x, y: convolutions(up(x) + y), (coarse, fine)),
            (up, (coarse,)),
            (down, (fine,)),
        ):
            torch.testing.assert_close(in_slabs(function, *inputs), function(*inputs), rtol=0, atol=1e-5)


def test_slabs_are_as_thin_as_is_asked_for(thin_slabs):
    seen = []

    def function(x):
        seen.append(x.shape[2])
        return x

    x = torch.arange(24.0).view(1, 1, 24, 1, 1).expand(1, 1, 24, 8, 8)
    torch.testing.assert_close(in_slabs(function, x), x)
    assert seen == [8 + HALO, HALO + 8 + HALO, HALO + 8]
    seen.clear()
    torch.testing.assert_close(in_slabs(function, x, slab_voxels=1), x)
    assert seen == [8 + HALO, HALO + 8 + HALO, HALO + 8]  # no thinner
    seen.clear()
    in_slabs(function, x, slab_voxels=24 * 8 * 8)
    assert seen == [24]


@pytest.mark.parametrize("options", [{}, {"multi_scale": True}, {"stage_norm": "batch", "out_channels": 3}])
def test_a_network_s_slabs_are_its_whole(monkeypatch, options):
    network = trained(**options)
    image = torch.randn(1, 1, 40, 16, 8)
    with torch.no_grad():
        whole = network(image)
        monkeypatch.setattr(slabs, "SLAB_VOXELS", 8 * 16 * 8)
        torch.testing.assert_close(network(image), whole, rtol=0, atol=1e-4)
        monkeypatch.setattr(slabs, "HALO", 0)
        assert (network(image) - whole).abs().max() > 1e-3  # it was in slabs


@pytest.mark.parametrize(
    "options", [{"norm": "instance"}, {"stage_norm": "instance"}, {"cross_attention": True}, {"attention_levels": [1]}]
)
def test_what_sees_the_whole_image_is_not_in_slabs(options):
    with torch.no_grad():
        assert trained().suits_slabs(torch.zeros(1, 1, 8, 8, 8))
        assert not trained(**options).suits_slabs(torch.zeros(1, 1, 8, 8, 8))
        assert not trained().train().suits_slabs(torch.zeros(1, 1, 8, 8, 8))
    assert not trained().suits_slabs(torch.zeros(1, 1, 8, 8, 8))  # gradients are wanted


def test_batch_norm_is_local_in_evaluation_and_instance_norm_is_not():
    assert is_local(nn.Sequential(nn.Conv3d(1, 1, 3), nn.BatchNorm3d(1), PReLU(1)))
    assert not is_local(nn.Sequential(nn.Conv3d(1, 1, 3), InstanceNorm(1)))
    assert not is_local(nn.Sequential(nn.Conv3d(1, 1, 3), nn.GroupNorm(1, 1)))


def test_checkpointed_slabs_have_the_gradients_of_the_whole(monkeypatch):
    image = torch.randn(1, 1, 24, 16, 8)
    gradients = []
    for voxels in (2**18, 8 * 16 * 8):
        monkeypatch.setattr("scripts.networks.mpunet.CHECKPOINTED_SLAB_VOXELS", voxels)
        torch.manual_seed(0)
        network = MPUNet(channels=NARROW, dropout=0.0, checkpointing=True).train()
        network(image).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for whole, of_slabs in zip(*gradients, strict=True):
        torch.testing.assert_close(of_slabs, whole, rtol=1e-3, atol=1e-5)
    assert any(gradient.abs().max() > 0 for gradient in chain(*gradients))
