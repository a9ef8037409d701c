import json
import math

import numpy as np
import pytest
import torch

from scripts.convert_released_weights import convert_state_dict
from scripts.networks import (
    AttentionGate,
    MPUNet,
    PositionAttention,
    UNet,
    fuse_log_probabilities,
    layers,
    pad_to_multiple,
)
from scripts.networks.layers import (
    Downsampling,
    InstanceNorm,
    MaxPool,
    PairConvolution,
    PReLU,
    convolution_stage,
    get_norm,
)
from tests import ROOT
from tests.golden import MAPS, golden_io, released_state_dict

NARROW = {"channels": (4, 8, 8, 8, 16)}
NETWORKS = {"mpunet": lambda **kwargs: MPUNet(**NARROW, **kwargs), "unet": lambda **kwargs: UNet(**kwargs)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def released_network(name):
    elu_alpha = json.loads((ROOT / "configs/released.json").read_text(encoding="utf-8"))["network_def::elu_alpha"]
    network = MPUNet(elu_alpha=elu_alpha) if name == "mpunet" else UNet()
    network.load_state_dict(convert_state_dict(released_state_dict(name), name))
    return network.eval()


def test_default_networks_have_the_live_parameters_of_table_6():
    assert parameter_count(MPUNet()) == 22_557_009 - 1_049_754 == 21_507_255
    assert parameter_count(UNet()) == 2_326_638


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 5e-5)])
@pytest.mark.parametrize("name", ["mpunet", "unet"])
def test_converted_weights_give_the_golden_numbers(name, dtype, tolerance):
    golden = golden_io(name)
    network = released_network(name).to(dtype)
    image = torch.from_numpy(golden["input"]).to(dtype)
    with torch.no_grad():
        result = network(image).exp().numpy()
        network.training = True  # of the outermost module alone: batch norm and dropout stay in evaluation
        all_maps = network(image).exp().numpy()
    np.testing.assert_allclose(result, golden["fused"], atol=tolerance, rtol=0)
    for position, name_of_map in enumerate(MAPS):
        np.testing.assert_allclose(all_maps[:, position], golden[name_of_map], atol=tolerance, rtol=0)


def test_golden_numbers_need_the_released_elu():
    network = MPUNet()
    network.load_state_dict(convert_state_dict(released_state_dict("mpunet")))
    golden = golden_io("mpunet")
    with torch.no_grad():
        result = network.eval()(torch.from_numpy(golden["input"])).exp().numpy()
    assert np.abs(result - golden["fused"]).max() > 0.01


def assert_log_probabilities_of_any_size(network, size):
    """Three classes come back, normalised, of the image's size: of the result, and in training of each of four maps."""
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        result = network.eval()(image)
        maps = network.train()(image)
    assert result.shape == (2, 3, *size)
    assert maps.shape == (2, 4, 3, *size)
    torch.testing.assert_close(result.exp().sum(dim=1), torch.ones(2, *size))
    torch.testing.assert_close(maps.exp().sum(dim=2), torch.ones(2, 4, *size))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 9, 23), (1, 30, 16)])
def test_any_size_comes_back_as_normalised_log_probabilities(name, size):
    assert_log_probabilities_of_any_size(NETWORKS[name](out_channels=3), size)


@pytest.mark.parametrize("name", NETWORKS)
def test_deep_supervision_is_for_training_only_and_can_be_left_out(name):
    image = torch.randn(1, 1, 16, 16, 16)
    assert NETWORKS[name]().eval()(image).ndim == 5
    assert NETWORKS[name](deep_supervision=False).train()(image).ndim == 5


def test_padding_repeats_the_last_plane_at_the_far_ends_only():
    image = torch.arange(2 * 3 * 4.0).reshape(1, 1, 2, 3, 4)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 4, 4, 4)
    torch.testing.assert_close(padded[:, :, :2, :3], image)
    torch.testing.assert_close(padded[0, 0, 3, 3], image[0, 0, 1, 2])
    assert pad_to_multiple(padded, 4) is padded


def test_fusion_averages_probabilities_not_logits():
    log_probabilities = [torch.log(torch.tensor([[p, 1 - p]])) for p in (0.9, 0.5, 0.1, 0.3)]
    fused = fuse_log_probabilities(log_probabilities).exp()
    torch.testing.assert_close(fused, torch.tensor([[0.45, 0.55]]))


def test_fusion_is_finite_where_a_class_is_impossible():
    logits = torch.tensor([[-200.0, 0.0]])
    assert torch.isfinite(fuse_log_probabilities([logits.log_softmax(1)] * 4)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name):
    network = NETWORKS[name](dropout=0.1).train()
    for module in network.modules():
        if isinstance(module, PositionAttention):
            torch.nn.init.ones_(module.gamma)  # at its initial 0 no gradient reaches queries, keys and values
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias in front of batch norm has gradient 0 up to rounding, which may be exactly 0
    assert [key for key in without if not key.endswith("bias")] == []


def plain_position_attention(module, x):
    """Eq. 8-9, with the N × N matrix written out, in float64 NumPy."""
    flat = x.double().numpy().reshape(*x.shape[:2], -1)

    def project(convolution):
        weight = convolution.weight.detach().double().numpy()[:, :, 0, 0, 0]
        return np.einsum("oc,bcn->bon", weight, flat) + convolution.bias.detach().double().numpy()[:, None]

    scores = np.einsum("bci,bcj->bij", project(module.query), project(module.key))
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    attended = np.einsum("bij,bcj->bci", weights, project(module.value))
    return (module.gamma.item() * attended + flat).reshape(x.shape)


@pytest.mark.parametrize("size", [(3, 4, 5), (1, 1, 1)])
def test_position_attention_equals_the_plain_formula(size):
    module = PositionAttention(16)
    torch.nn.init.constant_(module.gamma, 0.7)
    x = 2 * torch.randn(2, 16, *size)
    with torch.no_grad():
        result = module(x).numpy()
    np.testing.assert_allclose(result, plain_position_attention(module, x), atol=1e-5)


def test_position_attention_starts_as_the_identity():
    x = torch.randn(1, 16, 3, 3, 3)
    torch.testing.assert_close(PositionAttention(16)(x), x)


def test_position_attention_stores_no_matrix_of_all_pairs():
    positions = 32**3  # all pairs in float32 would be 4.3 GB for one head, 34 GB for all
    module = PositionAttention(64)
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        module(torch.randn(1, 64, 32, 32, 32))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 50 * 64 * positions


def test_attention_gate_equals_its_equation():
    gate = AttentionGate(2, "batch").eval()
    x, g = torch.randn(1, 2, 2, 2, 2), torch.randn(1, 2, 2, 2, 2)

    def project(sequence, tensor):
        convolution, norm = sequence
        weight = convolution.weight.detach()[:, :, 0, 0, 0]
        linear = torch.einsum("oc,bcxyz->boxyz", weight, tensor) + convolution.bias[None, :, None, None, None]
        return linear / math.sqrt(1 + norm.eps)  # a fresh batch norm: mean 0, variance 1

    with torch.no_grad():
        inner = torch.relu(project(gate.project_x, x) + project(gate.project_gate, g))
        expected = x * torch.sigmoid(project(gate.coefficient, inner))
        torch.testing.assert_close(gate(x, g), expected)
        assert gate(x, g, in_place=True) is x
        torch.testing.assert_close(x, expected)


def test_several_input_channels_add_their_mean_to_the_first_level():
    network = MPUNet(in_channels=2, **NARROW).eval()
    with torch.no_grad():
        for parameter in network.encoders[0].parameters():
            parameter.zero_()
    skips, _ = network.encode(torch.stack([torch.ones(1, 8, 8, 8), torch.full((1, 8, 8, 8), 3.0)], dim=1))
    torch.testing.assert_close(skips[-1], torch.full((1, 4, 8, 8, 8), 2.0))


@pytest.mark.parametrize("name", NETWORKS)
def test_scripted_network_gives_the_same_numbers(name):
    network = NETWORKS[name]().eval()
    scripted = torch.jit.script(network)
    image = torch.randn(1, 1, 17, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image))


def test_norm_can_be_any_of_monai():
    network = MPUNet(**NARROW, norm=("group", {"num_groups": 1}))
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())
    assert torch.isfinite(network(torch.randn(1, 1, 16, 16, 16))).all()


def test_dropout_acts_in_training_only():
    network = MPUNet(**NARROW, dropout=0.5)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network.train()(image), network(image))
        torch.testing.assert_close(network.eval()(image), network(image))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: MPUNet(channels=(8, 16, 32)), r"five levels, got channels \[8, 16, 32\]"),
        (lambda: MPUNet(elu_alpha=(1.0, 2.0)), r"five levels.*elu_alpha \[1.0, 2.0\]"),
        (lambda: MPUNet(channels=(8, 16, 16, 16, 20)), "divisible by 8, got 20"),
        (lambda: UNet(channels=(8, 16)), r"four levels, got channels \[8, 16\]"),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def step(checkpointing):
    """Train one step; return the loss, the gradients, the state and the bytes that were kept for the backward pass."""
    torch.manual_seed(0)
    network = MPUNet(channels=(4, 8, 8, 16, 16), checkpointing=checkpointing).train()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(torch.randn(2, 1, 32, 32, 32)).square().mean()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return loss, gradients, network.state_dict(), sum(kept.values())


def test_checkpointing_changes_no_result_and_keeps_less():
    loss, gradients, state, kept = step(checkpointing=False)
    same_loss, same_gradients, same_state, kept_less = step(checkpointing=True)
    assert torch.equal(same_loss, loss)
    for name, gradient in gradients.items():
        assert torch.equal(same_gradients[name], gradient), name
    assert same_state.keys() == state.keys()
    for name, tensor in state.items():  # running statistics, too, are those of one pass
        assert torch.equal(same_state[name], tensor), name
    assert kept_less < 0.6 * kept


@pytest.mark.parametrize("size", [(8, 8, 8), (1, 2, 3), (1, 1, 1), (16, 9, 5)])
def test_max_pooling_and_its_gradient_are_pytorch_s(size):
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, requires_grad=True)
    weights = torch.randn(2, 3, *size)
    result, expected = MaxPool()(image), torch.nn.MaxPool3d(3, stride=1, padding=1)(image)
    assert torch.equal(result, expected)
    (gradient,) = torch.autograd.grad((result * weights).sum(), image)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), image)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("order", [torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_max_pooling_is_the_same_piece_by_piece(monkeypatch, dtype, order):
    torch.manual_seed(0)
    image = torch.randint(9, (2, 3, 6, 5, 4)).to(dtype).contiguous(memory_format=order).requires_grad_()
    weights = torch.randn(2, 3, 6, 5, 4, dtype=dtype)
    (whole,) = torch.autograd.grad((MaxPool()(image) * weights).sum(), image)
    monkeypatch.setattr(layers, "PIECE", 50)
    (in_pieces,) = torch.autograd.grad((MaxPool()(image) * weights).sum(), image)
    assert torch.equal(in_pieces, whole)
    torch.testing.assert_close(whole.sum(), weights.sum(), rtol=0, atol=0.5 if dtype == torch.bfloat16 else 1e-4)


def kept_bytes(module, *inputs):
    """Return the bytes of the tensors, parameters aside, that a module keeps for the gradient, its inputs included."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(*inputs)  # noqa: F841 (alive, so that no address is used twice)
    return sum(size for address, size in kept.items() if address not in own)


def channels_last(*size):
    torch.manual_seed(0)
    return torch.randn(size).contiguous(memory_format=torch.channels_last_3d).requires_grad_()


def gradients_of(function, *tensors):
    """Return the result and the gradients of a weighted sum of it."""
    result = function(*tensors)
    torch.manual_seed(1)
    return result, torch.autograd.grad((result * torch.randn(result.shape)).sum(), tensors)


def test_down_sampling_keeps_neither_what_is_pooled_nor_an_index():
    image = channels_last(1, 16, 16, 16, 16)
    down = Downsampling(16, 32, stride=2, norm="batch", elu_alpha=1.0)
    eighth = 2 * image.nbytes // 8  # twice the channels
    assert kept_bytes(down, image) <= image.nbytes + 3 * eighth  # before the norm, after it, after the ELU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("channels", [1, 3, 32])
def test_prelu_and_its_gradient_are_pytorch_s_in_any_order_of_memory(channels, order, dtype):
    ours, pytorchs = PReLU(channels, in_place=False), torch.nn.PReLU(channels).to(dtype)
    image = torch.randn(2, channels, 4, 5, 6, dtype=dtype).contiguous(memory_format=order).requires_grad_()
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(-0.25, 3, channels))
        pytorchs.weight.copy_(ours.weight)
    with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        result, gradients = gradients_of(lambda x, _: ours(x), image, ours.weight)
    expected, expected_gradients = gradients_of(lambda x, _: pytorchs(x), image, pytorchs.weight)
    assert torch.equal(result, expected) and result.is_contiguous(memory_format=order)
    assert torch.equal(gradients[0], expected_gradients[0])
    tolerance = {"atol": 0.2, "rtol": 0.02} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-5}
    torch.testing.assert_close(gradients[1], expected_gradients[1].float(), **tolerance)


def test_prelu_in_place_has_pytorch_s_result_and_gradient():
    ours, pytorchs, image = PReLU(3), torch.nn.PReLU(3), channels_last(2, 3, 4, 5, 6)
    with torch.no_grad():
        for module in (ours, pytorchs):
            module.weight.copy_(torch.tensor([0.25, 0.02, 3.0]))
    result, gradients = gradients_of(lambda x, _: ours(x * 2), image, ours.weight)
    expected, expected_gradients = gradients_of(lambda x, _: pytorchs(x * 2), image, pytorchs.weight)
    assert torch.equal(result, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)

    stage = convolution_stage(3, 3, depth=3)  # of three convolutions: their inputs, and what the last PReLU gets
    assert kept_bytes(stage, image) == 4 * image.nbytes
    with torch.no_grad():
        doubled = image * 2
        assert ours(doubled).data_ptr() == doubled.data_ptr() and torch.equal(doubled, expected)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("norm", ["instance", ("instance", {"affine": True, "eps": 0.1})])
def test_instance_norm_is_pytorch_s_and_leaves_the_channels_of_an_image_last(norm, images):
    ours, image = get_norm(norm, 6), channels_last(images, 6, 4, 5, 3)
    pytorchs = torch.nn.InstanceNorm3d(6, **({} if norm == "instance" else norm[1]))
    for parameter, expected in zip(ours.parameters(), pytorchs.parameters(), strict=True):
        torch.nn.init.normal_(parameter)
        expected.data = parameter.data
    result, gradients = gradients_of(lambda x: ours(x), image)
    expected, expected_gradients = gradients_of(lambda x: pytorchs(x), image)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradients[0], expected_gradients[0])
    assert images > 1 or result.is_contiguous(memory_format=torch.channels_last_3d)

    bias = 0.0 if norm == "instance" else ours.bias.view(1, -1, 1, 1, 1)
    assert torch.equal(ours(image[..., :1, :1, :1]), torch.zeros(images, 6, 1, 1, 1) + bias)


@pytest.mark.parametrize("options, in_decoders", [({}, 4 * 3), ({"multi_scale": True}, 4 * 2 * 2)])
def test_stage_norm_follows_each_convolution_of_the_stages(options, in_decoders):
    network = MPUNet(**NARROW, norm="instance", stage_norm="instance", **options).eval()
    of_encoders = [type(layer) for encoder in network.encoders for layer in encoder]
    assert of_encoders == [torch.nn.Conv3d, InstanceNorm, PReLU] * 10
    stages = [module for decoder in network.decoders for module in decoder.stage.modules()]
    assert sum(isinstance(module, InstanceNorm) for module in stages) == in_decoders
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_prelu_whose_result_does_not_tell_its_input_has_pytorch_s_gradient(slope):
    ours, pytorchs, image = PReLU(1, slope), torch.nn.PReLU(1, slope), channels_last(2, 1, 4, 5, 6)
    _, gradients = gradients_of(lambda x, _: ours(x), image, ours.weight)
    _, expected_gradients = gradients_of(lambda x, _: pytorchs(x), image, pytorchs.weight)
    assert torch.equal(gradients[0], expected_gradients[0])
    torch.testing.assert_close(gradients[1], expected_gradients[1])


def test_pair_convolution_is_that_of_the_concatenation_which_it_does_not_keep():
    one, other, ours = channels_last(2, 5, 4, 3, 6), channels_last(2, 3, 4, 3, 6), PairConvolution(8, 4)
    result, gradients = gradients_of(lambda x, y, *_: ours(x, y), one, other, ours.weight, ours.bias)
    expected, expected_gradients = gradients_of(
        lambda x, y, *_: ours(torch.cat([x, y], dim=1)), one, other, ours.weight, ours.bias
    )
    torch.testing.assert_close(result, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)
    assert kept_bytes(ours, one, other) <= one.nbytes + other.nbytes + ours.weight.nbytes
