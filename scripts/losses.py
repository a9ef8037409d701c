"""The loss of the paper (Sec. 3.4, Eq. 19): Tversky loss plus class-balanced cross-entropy over all scales."""

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from monai.losses import TverskyLoss
from torch import Tensor, nn

CLASS_BALANCES = ("effective_number", "inverse_frequency", "none")


def class_weights(label: Tensor, num_classes: int, class_balance: str, beta: float = 0.9999) -> Tensor:
    """Return the float32 weight of each class in the cross-entropy, from the voxels of one batch, of all processes.

    With n voxels of a class, its weight is proportional to

    * ``effective_number``: (1 - β) / (1 - βⁿ), the inverse of the effective number of samples (Cui et al. 2019, the
      paper's [91]). 1 / (1 - β) is the number of voxels from which on more of them count no more;
    * ``inverse_frequency``: 1 / n;
    * ``none``: 1.

    The weights of the classes that occur sum to their number; a class that does not occur has weight 0.

    Args:
        label: class indices, any shape.
        num_classes: how many classes there are.
        class_balance: one of the three names above.
        beta: β, in [0, 1).

    Raises:
        ValueError: for another name.
    """
    counts = torch.bincount(label.flatten().long(), minlength=num_classes).double()
    if idist.get_world_size() > 1:
        counts = idist.all_reduce(counts)
    if class_balance == "effective_number":
        weights = (1 - beta) / (1 - beta**counts)
    elif class_balance == "inverse_frequency":
        weights = 1 / counts
    elif class_balance == "none":
        weights = torch.ones_like(counts)
    else:
        raise ValueError(f"class_balance must be one of {', '.join(CLASS_BALANCES)}, got {class_balance!r}")
    present = counts > 0
    weights = torch.where(present, weights, 0.0)
    return (weights * present.sum() / weights.sum()).float()


def share_of_mean(weights: Tensor) -> Tensor | float:
    """Return by what each process multiplies a weighted mean over its voxels, so that their mean is that over all.

    It is their part of all weights, times the number of processes: 1 for one.

    Args:
        weights: of this process's voxels.
    """
    if idist.get_world_size() == 1:
        return 1.0
    own = weights.sum(dtype=torch.float64)
    return (own * idist.get_world_size() / idist.all_reduce(own.clone())).float()


class TverskyCrossEntropyLoss(nn.Module):
    """Eq. 19: Tversky loss of the fused map + λ · class-balanced cross-entropy of every map.

    The cross-entropy of the fused map has weight 1, that of each coarse map `deep_supervision_weight`. In Eq. 19 it is
    written as a sum over classes of binary cross-entropies (with a slip: log(1 - log P) for log(1 - P)); here it is the
    usual categorical one, averaged over voxels with their class weights. The Tversky loss is averaged over the
    classes, background included, with 1 added above and below the fraction: defined on batches without foreground.

    All is computed in float32 whatever the precision of the network.

    Args:
        tversky_alpha: weight of false positives in the Tversky loss.
        tversky_beta: weight of false negatives.
        cross_entropy_weight: λ.
        class_balance: how the cross-entropy weighs classes, see `class_weights`.
        class_balance_beta: β of the effective number of samples.
        deep_supervision_weight: of each coarse map in the first epochs.
        deep_supervision_decay: factor on that weight after every ``deep_supervision_interval`` epochs.
        deep_supervision_interval: in epochs.

    Raises:
        ValueError: for a ``class_balance`` that does not exist.
    """

    def __init__(
        self,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        cross_entropy_weight: float = 1.0,
        class_balance: str = "effective_number",
        class_balance_beta: float = 0.9999,
        deep_supervision_weight: float = 0.4,
        deep_supervision_decay: float = 0.8,
        deep_supervision_interval: int = 30,
    ):
        super().__init__()
        if class_balance not in CLASS_BALANCES:
            raise ValueError(f"class_balance must be one of {', '.join(CLASS_BALANCES)}, got {class_balance!r}")
        self.tversky = TverskyLoss(
            softmax=True, to_onehot_y=True, alpha=tversky_alpha, beta=tversky_beta, smooth_nr=1.0, smooth_dr=1.0
        )
        self.cross_entropy_weight = cross_entropy_weight
        self.class_balance = class_balance
        self.class_balance_beta = class_balance_beta
        self.initial_weight = deep_supervision_weight
        self.decay = deep_supervision_decay
        self.interval = deep_supervision_interval
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch it is in, counted from 1."""
        self.epoch = epoch

    @property
    def deep_supervision_weight(self) -> float:
        """The weight of each coarse map's cross-entropy in the current epoch."""
        return self.initial_weight * self.decay ** ((self.epoch - 1) // self.interval)

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the scalar float32 loss.

        Args:
            pred: log-probabilities or logits, ``(B, C, H, W, D)``, or with deep supervision ``(B, scales, C, H, W, D)``
                with the fused map first, all of full size.
            label: class indices, ``(B, 1, H, W, D)``.
        """
        pred = pred.float()
        maps = pred.unbind(dim=1) if pred.ndim == 6 else (pred,)
        classes = label[:, 0].long()
        weights = class_weights(classes, maps[0].shape[1], self.class_balance, self.class_balance_beta)
        share = share_of_mean(weights[classes])
        cross_entropies = [F.cross_entropy(logits, classes, weight=weights) * share for logits in maps]
        coarse = sum(cross_entropies[1:], torch.zeros_like(cross_entropies[0]))
        cross_entropy = cross_entropies[0] + self.deep_supervision_weight * coarse
        return self.tversky(maps[0], label) + self.cross_entropy_weight * cross_entropy
