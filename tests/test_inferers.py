import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from scripts import inferers
from scripts.inferers import DeviceInferer
from scripts.networks import MPUNet, UNet


@pytest.fixture
def bfloat16(monkeypatch):
    """As on a CPU that has bfloat16, whether this one does or not."""
    monkeypatch.setattr(inferers, "half_precision", lambda device: torch.bfloat16)


@pytest.fixture(params=[MPUNet, UNet])
def network(request):
    torch.manual_seed(0)
    return request.param(channels=(4, 8, 8, 8, 16) if request.param is MPUNet else (4, 8, 8, 8)).eval()


class Spy(nn.Module):
    """Keeps what it is given."""

    def forward(self, image):
        self.image = image
        return image.to(torch.bfloat16)


def test_in_full_precision_the_result_is_that_of_the_plain_network(network):
    image = torch.randn(1, 1, 32, 40, 24)
    with torch.no_grad():
        plain = network(image)
        assert plain.is_contiguous()
        result = DeviceInferer(SimpleInferer(), amp=False)(image, network)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.exp(), plain.exp(), atol=1e-5, rtol=0)


def test_in_mixed_precision_probabilities_stay_close_and_float32(network, bfloat16):
    image = torch.randn(1, 1, 32, 40, 24)
    with torch.no_grad():
        plain = network(image)
        result = DeviceInferer(SimpleInferer(), amp=True)(image, network)
    assert result.dtype == torch.float32
    assert not torch.equal(result, plain)
    torch.testing.assert_close(result.exp(), plain.exp(), atol=0.02, rtol=0)
    torch.testing.assert_close(result.exp().sum(dim=1), torch.ones(1, 32, 40, 24), atol=1e-5, rtol=0)


def test_mixed_precision_trains_every_parameter(network, bfloat16):
    network.train()
    DeviceInferer(SimpleInferer())(torch.randn(2, 1, 32, 32, 32), network).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


def test_windows_are_plain_tensors_laid_out_channels_last_and_the_result_knows_its_image():
    spy = Spy()
    image = MetaTensor(torch.randn(1, 2, 16, 16, 16), meta={"filename_or_obj": "scan.nii"})
    result = DeviceInferer(SlidingWindowInferer(roi_size=8, overlap=0))(image, spy)
    assert type(spy.image) is torch.Tensor
    assert spy.image.is_contiguous(memory_format=torch.channels_last_3d)
    assert result.meta["filename_or_obj"] == "scan.nii"
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.as_tensor(), image.as_tensor().to(torch.bfloat16).float())


def test_a_function_can_stand_for_the_network():
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(DeviceInferer(SimpleInferer())(image, lambda x: 2 * x), 2 * image)
