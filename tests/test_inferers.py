import logging
from contextlib import nullcontext

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from scripts import inferers
from scripts.inferers import CoarseToFineInferer, DeviceInferer
from scripts.networks import MPUNet, UNet
from tests.oracle import ThresholdOracle


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
    DeviceInferer(SimpleInferer())(torch.randn(2, 1, 48, 32, 32), network).square().mean().backward()
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


class Counted(nn.Module):
    """A network that counts the windows it sees, and can hold but so many of them at once."""

    def __init__(self, network, most=100, error=None):
        super().__init__()
        self.network, self.most, self.error = network, most, error
        self.windows = 0

    def forward(self, image):
        self.windows += len(image)
        if len(image) > self.most:
            raise self.error
        return self.network(image)


def sliding(cls=SlidingWindowInferer, batch=1, **kwargs):
    return cls(roi_size=(16, 16, 8), sw_batch_size=batch, overlap=0.25, mode="gaussian", cval=-1, **kwargs)


def image_amid_air():
    """Of its 5 x 4 x 4 windows, 2 x 1 x 4 touch what is not air: slices 0 to 15 of the first and the second axis."""
    image = torch.full((1, 1, 64, 48, 26), -1.0)
    image[:, :, 2:14, 3:11] = torch.rand(12, 8, 26, generator=torch.Generator().manual_seed(0))
    return image


def test_of_all_windows_of_air_the_network_sees_one_and_the_result_is_the_same_to_the_bit(network):
    image, counted = image_amid_air(), Counted(network).eval()
    with torch.no_grad():
        expected = DeviceInferer(sliding(), amp=False)(image, lambda window: network(window))
        result = DeviceInferer(sliding(), amp=False)(image, counted)
    assert counted.windows == 2 * 1 * 4 + 1
    assert torch.equal(result, expected)


def test_in_training_every_window_is_seen():
    counted = Counted(ThresholdOracle(0.5))
    DeviceInferer(sliding())(image_amid_air(), counted)
    assert counted.windows == 5 * 4 * 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_without_memory_for_as_many_windows_fewer_are_run_at_a_time_and_it_is_said_once(error, caplog):
    image = torch.rand(1, 1, 64, 48, 26, generator=torch.Generator().manual_seed(0))
    oracle = ThresholdOracle(0.5).eval()
    inferer = DeviceInferer(sliding(batch=8), amp=False)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        results = [inferer(image, Counted(oracle, most=4, error=error).eval()) for _ in range(2)]
        expected = sliding()(image, oracle)
    assert [record.getMessage() for record in caplog.records] == [
        "not enough memory for an image of (64, 48, 26) voxels: going on with 4 windows at a time"
    ]
    for result in results:
        torch.testing.assert_close(result, expected)


def test_on_a_gpu_without_memory_first_the_result_then_the_network_goes_to_the_cpu():
    inferer = DeviceInferer(sliding(batch=2))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert inferer._save_memory(gpu) == "going on with 1 windows at a time"
    assert inferer._save_memory(gpu) == "going on with the result in the memory of the CPU"
    assert (inferer.inferer.device, inferer.device) == (cpu, None)
    assert inferer._save_memory(gpu) == "going on with the network on the CPU"
    assert (inferer.inferer.device, inferer.device) == (cpu, cpu)
    assert inferer._save_memory(gpu) == ""
    assert inferer._save_memory(cpu) == ""


class Travelling(Counted):
    """At home on another device, it keeps where it is sent."""

    def __init__(self, *args):
        super().__init__(*args)
        self.home = nn.Parameter(torch.empty(1, device="meta"))
        self.sent = []

    def to(self, *args, **kwargs):
        self.sent += args
        return self


@pytest.mark.parametrize("depth, warned", [(8, True), (24, False), (40, False)])
def test_an_image_that_is_padded_to_the_one_window_of_a_network_is_said_to_be(depth, warned, caplog):
    inferer = DeviceInferer(SlidingWindowInferer(roi_size=(16, 16, 32)), amp=False, fit_windows=False)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        inferer(torch.rand(1, 1, 16, 16, depth), ThresholdOracle(0.5))
    assert ("is padded to the one window that this network takes, (16, 16, 32)" in caplog.text) == warned


@pytest.mark.parametrize("most", [1, 0])
def test_a_network_that_went_to_the_cpu_goes_back_when_the_image_is_done(most):
    network = Travelling(ThresholdOracle(0.5), most, RuntimeError("sizes do not match")).eval()
    inferer = DeviceInferer(sliding(), amp=False)
    inferer.device = torch.device("cpu")
    with torch.no_grad(), nullcontext() if most else pytest.raises(RuntimeError, match="sizes do not match"):
        inferer(torch.rand(1, 1, 32, 32, 16), network)
    assert network.sent == [torch.device("cpu"), torch.device("meta")]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("sizes do not match")])
def test_what_cannot_be_helped_is_raised(error):
    with torch.no_grad(), pytest.raises(RuntimeError, match=str(error)):
        DeviceInferer(sliding())(torch.rand(1, 1, 32, 32, 16), Counted(ThresholdOracle(0.5), most=0, error=error))


BALLS = {  # centres and radii in voxels of an image of 96 x 80 x 40; whether windows are left out
    "whole": ([((22, 24, 16), 9)], True),
    "cut off": ([((10, 24, 0), 14)], True),
    "of two livers": ([((16, 20, 8), 9), ((30, 20, 30), 8)], True),
    "not there": ([], False),
    "in a corner and seen in no coarse voxel": ([((70, 20, 20), 1)], False),
}


@pytest.mark.parametrize("case", BALLS)
def test_windows_far_from_what_a_coarse_pass_finds_are_left_out_and_the_mask_is_the_same(case):
    balls, leaves_out = BALLS[case]
    positions = torch.stack(torch.meshgrid(*map(torch.arange, (96, 80, 40)), indexing="ij"), dim=-1).float()
    image = 0.1 * torch.rand(1, 1, 96, 80, 40, generator=torch.Generator().manual_seed(0))
    for centre, radius in balls:
        image[0, 0, (positions - torch.tensor(centre, dtype=torch.float32)).norm(dim=-1) < radius] = 0.9
    oracle = ThresholdOracle(0.5, sharpness=5.0).eval()
    plain, coarse = Counted(oracle), Counted(oracle)
    expected = sliding()(image, plain)
    result = sliding(CoarseToFineInferer, coarse_pass=True, margin=4)(MetaTensor(image), coarse)
    assert torch.equal(result.as_tensor().argmax(dim=1), expected.argmax(dim=1))
    torch.testing.assert_close(result.exp().sum(dim=1).as_tensor(), torch.ones(1, 96, 80, 40), atol=0.3, rtol=0)
    assert (coarse.windows < plain.windows) == leaves_out


def test_an_image_too_thin_for_half_the_resolution_has_no_coarse_pass():
    image = image_amid_air()[..., :1]
    coarse = sliding(CoarseToFineInferer, coarse_pass=True)(image, ThresholdOracle(0.5))
    torch.testing.assert_close(coarse, sliding()(image, ThresholdOracle(0.5)))


def test_all_windows_are_run_if_the_fine_pass_finds_something_at_the_end_of_the_box():
    image = torch.zeros(1, 1, 96, 80, 40)
    image[:, :, 10:60, 20:30, 20:30] = 0.9
    oracle = ThresholdOracle(0.5, sharpness=5.0).eval()
    result = sliding(CoarseToFineInferer, coarse_pass=True, margin=0)(image, oracle)
    torch.testing.assert_close(result, sliding()(image, oracle))


def test_no_window_is_run_twice_if_the_fine_pass_finds_something_at_the_end_of_the_box():
    image = torch.zeros(1, 1, 96, 80, 40)
    image[:, :, 10:60, 20:30, 20:30] = 0.9
    oracle = ThresholdOracle(0.5, sharpness=5.0).eval()
    plain, coarse = Counted(oracle), Counted(oracle)
    sliding()(image, plain)
    sliding(CoarseToFineInferer, coarse_pass=True, margin=0)(image, coarse)
    assert plain.windows == 8 * 7 * 7  # of 16 x 16 x 8 voxels, every 12 x 12 x 6
    assert coarse.windows == plain.windows + 4 * 3 * 3  # of an image of 48 x 40 x 20


def test_all_windows_are_run_if_the_fine_pass_finds_nothing_where_the_coarse_one_did():
    image = torch.zeros(1, 1, 96, 80, 40)
    image[:, :, 60:90, 50:70, 20:30] = 0.9
    decoy = torch.zeros(1, 1, 48, 40, 20)
    decoy[:, :, 4:8, 4:8, 4:8] = 0.9
    oracle = ThresholdOracle(0.5, sharpness=5.0).eval()
    inferer = sliding(CoarseToFineInferer, coarse_pass=True, margin=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferers.functional, "interpolate", lambda image, **kwargs: decoy)
        result = inferer(image, oracle)
    torch.testing.assert_close(result, sliding()(image, oracle))


@pytest.mark.parametrize(("fits", "seen"), [(True, {(32, 16, 16), (16, 16, 16)}), (False, {(32, 16, 16)})])
def test_windows_of_the_coarse_pass_are_no_larger_than_its_image_needs(fits, seen):
    shapes = set()

    def network(windows):
        shapes.add(tuple(windows.shape[2:]))
        return torch.cat([-windows, windows], dim=1)

    inferer = CoarseToFineInferer((32, 16, 16), coarse_pass=True, fit_windows=fits)
    inferer(torch.ones(1, 1, 32, 32, 16), network)
    assert shapes == seen


def test_without_a_coarse_pass_the_result_is_that_of_monais_sliding_window():
    image = torch.rand(1, 1, 40, 12, 20, generator=torch.Generator().manual_seed(0))  # smaller than a window, too
    oracle = ThresholdOracle(0.5)
    assert torch.equal(sliding(CoarseToFineInferer)(image, oracle), sliding()(image, oracle))


@pytest.mark.parametrize(
    ("size", "expected"), [((16, 32, 32), True), ((32, 16, 16), False), ((9, 32, 32), True), ((24, 24, 24), False)]
)
def test_pairs_of_slices_are_seen_wherever_the_network_makes_them(size, expected):
    """MPU-Net halves three times, and pads to multiples of 8: of 9 to 16 slices it makes 2."""
    network = MPUNet(channels=(4, 8, 8, 8, 16)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert inferers.convolves_pairs_of_slices(network, torch.zeros(1, 1, *size)) is expected
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_that_convolves_pairs_of_slices_is_trained_in_float32(bfloat16, caplog):
    network = MPUNet(channels=(4, 8, 8, 8, 16), dropout=0.0).train()
    image = torch.randn(1, 1, 16, 32, 32)
    inferer = DeviceInferer(SimpleInferer())
    assert torch.equal(inferer(image, network), DeviceInferer(SimpleInferer(), amp=False)(image, network))
    inferer(image, network)
    assert [record.getMessage() for record in caplog.records] == [
        "training in float32: bfloat16 is not safe on crops of (16, 32, 32) voxels"
    ]


def test_a_network_in_training_that_is_asked_for_a_mask_has_its_dropout_on_and_nothing_else():
    """As MONAI Label asks for the disagreement of networks with dropout."""
    image = torch.randn(1, 1, 32, 32, 16)
    results = {}
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        network = MPUNet(channels=(4, 4, 8, 8, 8), dropout=dropout)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        inferer = DeviceInferer(SlidingWindowInferer([32, 32, 16]), amp=False)
        with torch.no_grad():
            expected = network.eval()(image)
            network.train()
            results[dropout] = [inferer(image, network), inferer(image, network), expected]
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    first, second, expected = results[0.0]
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)
    first, second, expected = results[0.5]
    assert first.shape == expected.shape  # the fused map alone
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    "roi, size, overlap, fitted",
    [
        (128, 10, 0.25, 16),  # one window: as small as the image
        (128, 128, 0.25, 128),
        (128, 186, 0.25, 112),  # 112 + 84 are enough, and 112 is an eighth less than 128
        (128, 238, 0.25, 112),  # 96 + 72 + 72 would be enough too
        (128, 220, 0.25, 128),  # two of 128 reach 224, of 112 only 196
        (96, 140, 0.25, 96),  # 80 + 60 would be enough, but is a sixth less
        (48, 96, 0.5, 48),
        (40, 39, 0.25, 40),
    ],
)
def test_windows_are_up_to_an_eighth_smaller_where_no_more_of_them_are_needed(roi, size, overlap, fitted):
    inferer = SlidingWindowInferer(roi_size=(roi, 16, 16), overlap=(overlap, 0.0, 0.0))
    assert inferers.fit_windows(inferer, (size, 16, 16)).roi_size == [fitted, 16, 16]


@pytest.mark.parametrize(
    "size, fits, seen",
    [
        ((40, 20, 10), True, {(32, 32, 16)}),  # no more air than up to the next 16
        ((40, 20, 10), False, {(32, 32, 48)}),
        ((64, 64, 64), True, {(32, 32, 48)}),
    ],
)
def test_windows_are_no_larger_than_the_image_needs(size, fits, seen):
    shapes = set()

    def network(windows):
        shapes.add(tuple(windows.shape[2:]))
        return windows

    image = torch.randn(1, 1, *size)
    inferer = SlidingWindowInferer(roi_size=(32, 32, 48), cval=-1)
    torch.testing.assert_close(DeviceInferer(inferer, amp=False, fit_windows=fits)(image, network), image)
    assert shapes == seen
    assert inferer.roi_size == (32, 32, 48)
