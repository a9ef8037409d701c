"""How the learning rate goes from epoch to epoch, where MONAI has no schedule that can be resumed with more epochs."""

from typing import Any

from monai.optimizers import WarmupCosineSchedule


class ResumableWarmupCosine(WarmupCosineSchedule):
    """MONAI's warm-up and cosine, whose lengths are as given, not as in the checkpoint that a run goes on from.

    A run that is resumed with more epochs then follows the longer cosine, as all else of it does; by the lengths of the
    checkpoint the rate would rise again beyond its end.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the epoch of ``state_dict``; load the optimizer's own state before."""
        lengths = {"warmup_steps": self.warmup_steps, "t_total": self.t_total}
        super().load_state_dict(state_dict | lengths)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
