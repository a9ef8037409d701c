"""The modules of the paper's text that the release does not have: each option of MPUNet, alone and all at once."""

import inspect
import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scripts.losses import TverskyCrossEntropyLoss
from scripts.networks import (
    CrossAttention,
    MPUNet,
    MultiScaleBlock,
    PatchSequence,
    PositionAttention,
    PyramidPoolingFusion,
    WeightedFusion,
    fuse_log_probabilities,
)
from scripts.networks.attention import pool_positions
from tests.test_networks import assert_log_probabilities_of_any_size

NARROW = {"channels": (8, 8, 8, 8, 16)}
OPTIONS = {
    "no position attention": {"position_attention": False},
    "no gates": {"attention_gates": False},
    "multi-head attention": {"attention_heads": 4, "attention_scaled": True, "attention_reduction": 1},
    "patch sequence": {"patch_size": 1, "embedding_size": (2, 2, 2)},
    "sequence of larger patches": {"patch_size": 2, "embedding_size": (2, 2, 2)},
    "multi-scale block": {"multi_scale": True},
    "cross-attention": {"cross_attention": True, "max_keys": 64},
    "attention at all levels": {"attention_levels": (1, 2, 3, 4, 5), "attention_scaled": True, "max_keys": 64},
    "learned fusion": {"fusion_weights": True},
    "pyramid pooling": {"pyramid_pooling": (1, 2, 3, 6)},
}
TEXT = {  # every module of the paper's text at once
    "attention_heads": 2,
    "attention_scaled": True,
    "attention_reduction": 1,
    "attention_levels": (3, 4),
    "cross_attention": True,
    "max_keys": 64,
    "patch_size": 1,
    "multi_scale": True,
    "pyramid_pooling": (1, 2, 3, 6),
}
ALL = OPTIONS | {"all of the text": TEXT}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name, **kwargs):
    """The narrow network with an option on, its attention switched on too: λ starts at 0."""
    network = MPUNet(**NARROW, **ALL[name], **kwargs)
    for module in network.modules():
        if isinstance(module, PositionAttention):
            nn.init.constant_(module.gamma, 0.5)
    return network


# --- the network with each option ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 9, 30)])
def test_any_size_comes_back_as_normalised_log_probabilities(name, size):
    assert_log_probabilities_of_any_size(build(name, out_channels=3), size)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient_and_a_step_lowers_the_loss(name):
    network = build(name, dropout=0.0).train()
    image = torch.randn(1, 1, 32, 16, 16)
    label = (image > 0.5).long()
    loss, optimizer = TverskyCrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=1e-3)
    before = loss(network(image), label)
    before.backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # biases in front of a batch norm, and of keys (all scores of a query grow alike), change nothing
    assert [key for key in without if not key.endswith("bias")] == []
    optimizer.step()
    assert loss(network(image), label) < before


@pytest.mark.parametrize("name", ALL)
def test_scripted_network_gives_the_same_numbers(name):
    network = build(name).eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((16, 16, 16), (17, 16, 24)):
            image = torch.randn(1, 1, *size)
            torch.testing.assert_close(scripted(image), network(image))


@pytest.mark.parametrize("name", ALL)
def test_onnx_runtime_gives_the_same_numbers(name, tmp_path):
    network = build(name).eval()
    image = torch.randn(1, 1, 24, 16, 16)
    torch.onnx.export(network, (image,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(result, network(image).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_an_option_makes_another_network(name):
    default, network = MPUNet(**NARROW), build(name)
    assert {key: p.shape for key, p in network.state_dict().items()} != {
        key: p.shape for key, p in default.state_dict().items()
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attention_levels": (0, 3)}, r"levels 1 to 5, got \[0, 3\]"),
        ({"attention_heads": 3}, "3 heads and reduction 8 needs channels divisible by 24, got 16"),
        ({"patch_size": 2, "position_attention": False}, "position_attention is off"),
        ({"fusion_weights": True, "pyramid_pooling": (1, 2)}, "got both"),
    ],
)
def test_options_that_contradict_or_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MPUNet(**NARROW, **options)


SWITCHES = [name for name, each in inspect.signature(MPUNet).parameters.items() if isinstance(each.default, bool)]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_may_be_text_as_the_command_line_gives_it(name):
    others = {"attention_heads": 2, "attention_reduction": 1} if name == "attention_scaled" else {}
    image = torch.randn(1, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0))

    def run(value):
        torch.manual_seed(0)
        network = MPUNet(**NARROW, **others, **{name: value}).eval()
        for module in network.modules():
            if hasattr(module, "gamma"):
                nn.init.constant_(module.gamma, 0.5)  # at 0, attention is without effect
        with torch.inference_mode():
            return network, network(image)

    if name == "attention_scaled":
        assert not torch.equal(run(True)[1], run(False)[1])
    for value in (True, False):
        (written, output), (meant, expected) = run(str(value).lower()), run(value)
        assert written.settings == meant.settings
        assert written.state_dict().keys() == meant.state_dict().keys()
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"^{name}: 'maybe': is no switch"):
        MPUNet(**NARROW, **{name: "maybe"})


def test_switches_of_training_are_not_text_inside():
    assert MPUNet(**NARROW, deep_supervision="false").deep_supervision is False
    assert MPUNet(**NARROW, checkpointing="false").checkpointing is False


# --- attention -----------------------------------------------------------------------------------------------------


def linear(convolution):
    """Weight (out, in) and bias of a 1×1×1 convolution."""
    return convolution.weight[:, :, 0, 0, 0], convolution.bias


def reference_attention(module, x, source):
    """PyTorch's own multi-head attention (Vaswani et al., Eq. 6-7) with the module's weights, λ and residual."""
    sequence, memory = x.flatten(2).permute(2, 0, 1), source.flatten(2).permute(2, 0, 1)
    weights, biases = zip(*map(linear, (module.query, module.key, module.value)), strict=True)
    attended, _ = F.multi_head_attention_forward(
        sequence, memory, memory, x.shape[1], module.heads, None, torch.cat(biases), None, None, False, 0.0,
        *linear(module.projection), use_separate_proj_weight=True,
        q_proj_weight=weights[0], k_proj_weight=weights[1], v_proj_weight=weights[2],
    )  # fmt: skip
    return module.gamma * attended.permute(1, 2, 0).reshape(x.shape) + x


@pytest.mark.parametrize("heads", [2, 4])
def test_multi_head_attention_equals_pytorch_s(heads):
    module = PositionAttention(8, heads=heads, scaled=True, reduction=1)
    nn.init.constant_(module.gamma, 0.7)
    x = 2 * torch.randn(2, 8, 3, 4, 5)
    torch.testing.assert_close(module(x), reference_attention(module, x, x))


def test_cross_attention_equals_pytorch_s_with_the_skip_as_keys_and_values():
    module = CrossAttention(8, heads=2, scaled=True, reduction=1, source_channels=6)
    nn.init.constant_(module.gamma, 0.7)
    x, skip = 2 * torch.randn(2, 8, 3, 4, 5), torch.randn(2, 6, 2, 3, 3)
    torch.testing.assert_close(module(x, skip), reference_attention(module, x, skip))


def test_heads_that_are_reduced_and_not_scaled_equal_the_plain_formula():
    module = PositionAttention(16, heads=2, reduction=4)
    nn.init.constant_(module.gamma, 0.7)
    x = torch.randn(1, 16, 2, 3, 2)
    flat = x.flatten(2)[0]
    query, key, value = (
        weight @ flat + bias[:, None] for weight, bias in map(linear, (module.query, module.key, module.value))
    )
    heads = []
    for head in range(2):  # queries and keys of 16 / 4 / 2 channels a head, values of 16 / 2
        scores = query[2 * head : 2 * head + 2].T @ key[2 * head : 2 * head + 2]
        heads.append(value[8 * head : 8 * head + 8] @ scores.softmax(dim=1).T)
    weight, bias = linear(module.projection)
    expected = 0.7 * (weight @ torch.cat(heads) + bias[:, None]) + flat
    torch.testing.assert_close(module(x)[0].flatten(1), expected)


def test_scaling_divides_the_scores_by_the_root_of_the_keys_width():
    plain, scaled = PositionAttention(16, reduction=4), PositionAttention(16, reduction=4, scaled=True)
    scaled.load_state_dict(plain.state_dict())
    for module in (plain, scaled):
        nn.init.ones_(module.gamma)
    with torch.no_grad():
        for part in (plain.query.weight, plain.query.bias):
            part /= 2  # √4
    x = torch.randn(1, 16, 3, 3, 3)
    torch.testing.assert_close(scaled(x), plain(x))


def test_positions_are_averaged_over_the_smallest_cubes_that_are_few_enough():
    x = torch.arange(12.0).reshape(1, 1, 3, 2, 2)
    torch.testing.assert_close(pool_positions(x, 12), x)
    pooled = pool_positions(x, 11)  # cubes of 2³: of 0 ... 7, and what is left, 8 ... 11
    torch.testing.assert_close(pooled, torch.tensor([3.5, 9.5]).reshape(1, 1, 2, 1, 1))
    torch.testing.assert_close(pool_positions(x, 1), torch.full((1, 1, 1, 1, 1), 5.5))
    assert pool_positions(x, None) is x


def test_attention_with_averaged_keys_is_attention_to_the_averages():
    module = PositionAttention(8, heads=2, scaled=True, reduction=1, max_keys=8)
    nn.init.constant_(module.gamma, 0.7)
    x = torch.randn(1, 8, 4, 4, 4)
    torch.testing.assert_close(module(x), reference_attention(module, x, F.avg_pool3d(x, 2)))


# --- patches -------------------------------------------------------------------------------------------------------


def test_patches_are_projected_one_by_one_and_get_their_position():
    sequence = PatchSequence(3, 2, (2, 1, 2), nn.Identity())
    x = torch.randn(1, 3, 4, 2, 4)
    tokens = sequence.embed(x)
    assert tokens.shape == (1, 3, 2, 1, 2)  # Eq. 4: each size over P
    flattened = x[:, :, 2:4, 0:2, 0:2].reshape(-1)  # Eq. 1: the patch (1, 0, 0) as a vector of P³ · C
    projected = sequence.projection.weight.reshape(3, -1) @ flattened + sequence.projection.bias
    expected = projected + sequence.position_embedding[0, :, 1, 0, 0]
    torch.testing.assert_close(tokens[0, :, 1, 0, 0], expected)


def test_position_embedding_is_interpolated_to_other_grids():
    sequence = PatchSequence(1, 1, (2, 1, 1), nn.Identity())
    with torch.no_grad():
        sequence.position_embedding.copy_(torch.tensor([0.0, 4.0]).reshape(1, 1, 2, 1, 1))
        position = sequence.embed(torch.zeros(1, 1, 4, 1, 1)) - sequence.projection.bias
    torch.testing.assert_close(position.flatten(), torch.tensor([0.0, 1.0, 3.0, 4.0]))


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 3, 4)])
def test_patches_go_back_to_where_they_came_from(size):
    sequence = PatchSequence(2, 2, (1, 1, 1), nn.Identity())
    with torch.no_grad():
        for parameter in sequence.restore.parameters():
            parameter.zero_()
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(sequence(x), x)
        sequence.restore.weight.fill_(1.0)
        sequence.norm.bias[:] = torch.tensor([1.0, 2.0])
        added = sequence(x) - x  # the sum over normalised channels is that of the biases
    torch.testing.assert_close(added, torch.full_like(x, 3.0), atol=1e-4, rtol=0)


# --- multi-scale block ---------------------------------------------------------------------------------------------


def test_branches_of_the_multi_scale_block_see_5_and_9_voxels_and_are_joined():
    block = MultiScaleBlock(1, 2)
    for module in block.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    impulse = torch.zeros(1, 1, 13, 13, 13)
    impulse[..., 6, 6, 6] = 1
    with torch.no_grad():
        near, far, joined = block.near(impulse), block.far(impulse), block(impulse)
    assert [math.prod(_extent(branch[0, 0])) for branch in (near, far)] == [5**3, 9**3]
    # at the centre: Σ over all pairs of steps that come back, 3³ paths of each of 2 inner channels, per branch
    assert near[0, 0, 6, 6, 6] == far[0, 0, 6, 6, 6] == 27 * 2
    assert joined[0, 0, 6, 6, 6] == 2 * 54 + 2 * 54  # Eq. 16-17: two channels of each branch, all weights 1


def _extent(response):
    found = response.nonzero()
    return (found.max(dim=0).values - found.min(dim=0).values + 1).tolist()


# --- fusion --------------------------------------------------------------------------------------------------------


def log_maps(*first_class):
    return [torch.log(torch.tensor([p, 1 - p])).reshape(1, 2, 1, 1, 1) for p in first_class]


def test_learned_fusion_starts_as_the_mean():
    maps = log_maps(0.9, 0.5, 0.1, 0.3)
    torch.testing.assert_close(WeightedFusion(4)(maps), fuse_log_probabilities(maps))


def test_learned_fusion_weighs_probabilities():
    fusion = WeightedFusion(2)
    with torch.no_grad():
        fusion.weights.copy_(torch.tensor([math.log(3), 0.0]))  # 3/4 and 1/4
        fused = fusion(log_maps(0.9, 0.1)).exp().flatten()
    torch.testing.assert_close(fused, torch.tensor([0.7, 0.3]))


def test_pyramid_pooling_equals_its_formula():
    fusion = PyramidPoolingFusion(2, 2, bins=(1, 2))
    maps = [torch.randn(1, 2, 4, 4, 4).log_softmax(1) for _ in range(2)]
    probabilities = torch.cat(maps, dim=1).exp()[0].numpy()
    levels = [probabilities]
    for bins, convolution in zip((1, 2), fusion.projections, strict=True):
        cell = 4 // bins
        means = probabilities.reshape(4, bins, cell, bins, cell, bins, cell).mean(axis=(2, 4, 6))
        weight, bias = (tensor.detach().numpy() for tensor in linear(convolution))
        projected = np.einsum("oc,cxyz->oxyz", weight, means) + bias[:, None, None, None]
        # trilinear enlargement, corners not aligned: of cells at 0.5 and 1.5, voxels at 0.25, 0.75, 1.25, 1.75
        along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]) if bins == 2 else np.ones((4, 1))
        levels.append(np.einsum("oxyz,ix,jy,kz->oijk", projected, along, along, along))
    expected = fusion.classify(torch.from_numpy(np.concatenate(levels)).float()[None]).log_softmax(dim=1)
    torch.testing.assert_close(fusion(maps), expected)
