"""The loss is Eq. 19 as its docstring reads it, against NumPy in float64, and finite wherever training may take it."""

import numpy as np
import pytest
import torch

from scripts.losses import CLASS_BALANCES, TverskyCrossEntropyLoss, class_weights

SHAPE = (3, 4, 2)  # (H, W, D)


def label_of(counts):
    """Class indices (n,) with ``counts[c]`` voxels of class c."""
    return torch.cat([torch.full((count,), index) for index, count in enumerate(counts)])


def random_case(num_classes, scales, seed=0):
    """Logits ``(2, scales, C, H, W, D)`` and class indices ``(2, 1, H, W, D)``, as NumPy arrays."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (2, scales, num_classes, *SHAPE)).astype(np.float32)
    return logits, generator.integers(0, num_classes, (2, 1, *SHAPE))


def confident_logits(foreground):
    """Logits ``(1, 2, H, W, D)`` that are certain of the boolean mask ``foreground``."""
    mask = torch.as_tensor(foreground).float()
    return 200 * torch.stack([1 - mask, mask])[None] - 100


def numpy_class_weights(label, num_classes, class_balance, beta):
    counts = [int((label == index).sum()) for index in range(num_classes)]
    rule = {
        "effective_number": lambda n: (1 - beta) / (1 - beta**n),
        "inverse_frequency": lambda n: 1 / n,
        "none": lambda n: 1.0,
    }[class_balance]
    weights = np.array([rule(n) if n else 0.0 for n in counts])
    return weights / weights.sum() * np.count_nonzero(counts)


def numpy_loss(logits, label, class_balance, coarse_weight, alpha=0.3, beta=0.7, weight=1.0, class_balance_beta=0.9999):
    """Eq. 19 in float64, of logits ``(B, scales, C, H, W, D)`` and class indices ``(B, 1, H, W, D)``."""
    logits = logits.astype(np.float64)
    num_classes = logits.shape[2]
    prob = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    truth = np.moveaxis(np.eye(num_classes)[label[:, 0]], -1, 1)

    fused, axes = prob[:, 0], (2, 3, 4)
    tp = (fused * truth).sum(axes)
    fp = (fused * (1 - truth)).sum(axes)
    fn = ((1 - fused) * truth).sum(axes)
    tversky = np.mean(1 - (tp + 1) / (tp + alpha * fp + beta * fn + 1))

    of_class = numpy_class_weights(label, num_classes, class_balance, class_balance_beta)
    of_voxel = of_class[label[:, 0]]
    log_prob_of_truth = (np.log(prob) * truth[:, None]).sum(axis=2)  # (B, scales, H, W, D)
    entropies = [-(of_voxel * log_prob_of_truth[:, m]).sum() / of_voxel.sum() for m in range(logits.shape[1])]
    return tversky + weight * (entropies[0] + coarse_weight * sum(entropies[1:]))


# --- class weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_balance", "counts", "expected"),
    [
        ("none", (6, 2), (1, 1)),
        ("inverse_frequency", (6, 2), (1 / 2, 3 / 2)),  # 1/6 : 1/2 = 1 : 3, of sum 2
        ("effective_number", (1, 2), (6 / 5, 4 / 5)),  # β = ½: ½ / (1 - ½) = 1, ½ / (1 - ¼) = 2/3: 3 : 2, of sum 2
        ("effective_number", (3, 1), (8 / 11, 14 / 11)),  # ½ / (1 - ⅛) = 4/7 : 1 = 4 : 7, of sum 2
    ],
)
def test_class_weights_follow_their_rule(class_balance, counts, expected):
    weights = class_weights(label_of(counts), 2, class_balance, beta=0.5)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("class_balance", CLASS_BALANCES)
def test_an_absent_class_has_weight_zero_and_the_others_are_as_without_it(class_balance):
    without = class_weights(label_of((6, 2)), 2, class_balance)
    assert class_weights(label_of((6, 0, 2)), 3, class_balance).tolist() == [without[0], 0, without[1]]


@pytest.mark.parametrize("class_balance", CLASS_BALANCES)
@pytest.mark.parametrize("counts", [(7, 0, 0), (0, 5, 0), (900, 3, 0), (900, 30, 1)])
def test_class_weights_sum_to_the_number_of_classes_present(class_balance, counts):
    weights = class_weights(label_of(counts), 3, class_balance)
    assert float(weights.sum()) == pytest.approx(np.count_nonzero(counts), rel=1e-6)


@pytest.mark.parametrize("class_balance", CLASS_BALANCES)
def test_classes_of_equal_count_have_equal_weight(class_balance):
    assert class_weights(label_of((4, 4, 4)), 3, class_balance).tolist() == [1, 1, 1]


def test_effective_number_is_inverse_frequency_for_few_voxels_and_no_weight_for_many():
    # the bend is at 1 / (1 - β) voxels; e.g. β = 0.99: at 100
    few = class_weights(label_of((6, 2)), 2, "effective_number", beta=1 - 1e-9)
    many = class_weights(label_of((9000, 3000)), 2, "effective_number", beta=0.99)
    assert few.tolist() == pytest.approx([1 / 2, 3 / 2], rel=1e-6)
    assert many.tolist() == pytest.approx([1, 1], rel=1e-6)


# --- the whole loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_balance", CLASS_BALANCES)
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(("epoch", "coarse_weight"), [(1, 0.4), (31, 0.32)])
def test_loss_with_deep_supervision_is_equation_19(class_balance, num_classes, epoch, coarse_weight):
    logits, label = random_case(num_classes, scales=4)
    loss = TverskyCrossEntropyLoss(class_balance=class_balance)
    loss.set_epoch(epoch)
    result = loss(torch.from_numpy(logits), torch.from_numpy(label))
    assert float(result) == pytest.approx(numpy_loss(logits, label, class_balance, coarse_weight), rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_loss_of_a_single_map_is_equation_19_without_coarse_maps(num_classes):
    logits, label = random_case(num_classes, scales=1)
    result = TverskyCrossEntropyLoss()(torch.from_numpy(logits[:, 0]), torch.from_numpy(label))
    assert float(result) == pytest.approx(numpy_loss(logits, label, "effective_number", coarse_weight=0), rel=1e-5)


def test_every_setting_of_the_loss_is_that_of_equation_19():
    logits, label = random_case(3, scales=4)
    loss = TverskyCrossEntropyLoss(
        tversky_alpha=0.9,
        tversky_beta=0.2,
        cross_entropy_weight=2.5,
        class_balance_beta=0.8,
        deep_supervision_weight=0.6,
        deep_supervision_decay=0.5,
        deep_supervision_interval=10,
    )
    loss.set_epoch(21)
    expected = numpy_loss(
        logits, label, "effective_number", 0.6 * 0.5**2, alpha=0.9, beta=0.2, weight=2.5, class_balance_beta=0.8
    )
    assert float(loss(torch.from_numpy(logits), torch.from_numpy(label))) == pytest.approx(expected, rel=1e-5)


def test_log_probabilities_and_logits_have_the_same_loss():
    logits, label = (torch.from_numpy(array) for array in random_case(3, scales=4))
    loss = TverskyCrossEntropyLoss()
    assert float(loss(logits.log_softmax(dim=2), label)) == pytest.approx(float(loss(logits, label)), rel=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        # of 24 voxels 2 are foreground and 4 predicted, so foreground: TP 2, FP 2; background: TP 20, FN 2
        (1, 0, (2 / 5 + 0) / 2),  # 1 - 3 / (3 + 2) and 1 - 21 / 21
        (0, 1, (0 + 2 / 23) / 2),  # 1 - 3 / 3 and 1 - 21 / (21 + 2)
        (0.3, 0.7, (0.6 / 3.6 + 1.4 / 22.4) / 2),
    ],
)
def test_alpha_weighs_false_positives(alpha, beta, expected):
    label, pred = torch.zeros(SHAPE, dtype=torch.bool), torch.zeros(SHAPE, dtype=torch.bool)
    label[0, 0] = True
    pred[0, :2] = True
    loss = TverskyCrossEntropyLoss(alpha, beta, cross_entropy_weight=0)
    assert float(loss(confident_logits(pred), label[None, None].long())) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        # of 24 voxels 4 are foreground and 2 predicted, so foreground: TP 2, FN 2; background: TP 20, FP 2
        (1, 0, (0 + 2 / 23) / 2),  # 1 - 3 / 3 and 1 - 21 / (21 + 2)
        (0, 1, (2 / 5 + 0) / 2),  # 1 - 3 / (3 + 2) and 1 - 21 / 21
        (0.3, 0.7, (1.4 / 4.4 + 0.6 / 21.6) / 2),
    ],
)
def test_beta_weighs_false_negatives(alpha, beta, expected):
    label, pred = torch.zeros(SHAPE, dtype=torch.bool), torch.zeros(SHAPE, dtype=torch.bool)
    label[0, :2] = True
    pred[0, 0] = True
    loss = TverskyCrossEntropyLoss(alpha, beta, cross_entropy_weight=0)
    assert float(loss(confident_logits(pred), label[None, None].long())) == pytest.approx(expected, abs=1e-6)


def test_loss_of_a_perfect_prediction_is_zero():
    label = torch.from_numpy(random_case(2, scales=1)[1])[:1]
    logits = confident_logits(label[0, 0] == 1)
    deeply_supervised = logits[:, None].expand(-1, 4, -1, -1, -1, -1)
    assert float(TverskyCrossEntropyLoss()(logits, label)) == pytest.approx(0, abs=1e-6)
    assert float(TverskyCrossEntropyLoss()(deeply_supervised, label)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("epoch", "weight"), [(1, 0.4), (30, 0.4), (31, 0.32), (60, 0.32), (61, 0.256), (90, 0.256), (91, 0.2048)]
)
def test_deep_supervision_weight_decays_after_every_thirty_epochs(epoch, weight):
    loss = TverskyCrossEntropyLoss()
    loss.set_epoch(epoch)
    assert loss.deep_supervision_weight == pytest.approx(weight)


def test_loss_begins_in_the_first_epoch():
    assert TverskyCrossEntropyLoss().deep_supervision_weight == 0.4


# --- where training may take it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("class_balance", CLASS_BALANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 1e4], ids=["usual logits", "extreme logits"])
@pytest.mark.parametrize("classes", [(0,), (1,), (0, 1)], ids=["no foreground", "only foreground", "both"])
def test_loss_and_gradient_are_finite_and_the_gradient_reaches_every_map(class_balance, dtype, scale, classes):
    logits, label = random_case(2, scales=4)
    label = np.asarray(classes)[label % len(classes)]
    pred = torch.from_numpy(logits.clip(-1, 1) * scale).to(dtype).requires_grad_()
    result = TverskyCrossEntropyLoss(class_balance=class_balance)(pred, torch.from_numpy(label))
    result.backward()
    assert result.dtype == torch.float32
    assert torch.isfinite(result)
    assert torch.isfinite(pred.grad).all()
    assert (pred.grad.abs().amax(dim=(0, 2, 3, 4, 5)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_computed_in_float32_whatever_the_precision_of_the_network(dtype):
    logits, label = (torch.from_numpy(array) for array in random_case(2, scales=4))
    logits, loss = logits.to(dtype), TverskyCrossEntropyLoss()
    expected = loss(logits.float(), label)
    assert loss(logits, label) == expected
    with torch.autocast("cpu", dtype=dtype):
        assert loss(logits, label) == expected


def test_an_unknown_class_balance_is_refused():
    message = "class_balance must be one of effective_number, inverse_frequency, none, got 'balanced'"
    with pytest.raises(ValueError, match=message):
        TverskyCrossEntropyLoss(class_balance="balanced")
