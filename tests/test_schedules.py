"""A schedule goes on from a checkpoint with the lengths that it is given now."""

import math

import pytest
from torch import nn, optim

from scripts.schedules import ResumableWarmupCosine


def start(epochs):
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    return optimizer, ResumableWarmupCosine(optimizer, warmup_steps=2, t_total=epochs, warmup_multiplier=0.5)


def run(optimizer, schedule, epochs):
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_a_run_resumed_with_more_epochs_follows_the_longer_cosine():
    earlier_optimizer, earlier_schedule = start(4)
    run(earlier_optimizer, earlier_schedule, epochs=4)
    optimizer, schedule = start(8)
    optimizer.load_state_dict(earlier_optimizer.state_dict())
    schedule.load_state_dict(earlier_schedule.state_dict())
    # warm-up in epochs 1 and 2, of the six epochs of the cosine two are done
    expected = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(2, 6)]
    assert run(optimizer, schedule, epochs=4) == pytest.approx(expected)
