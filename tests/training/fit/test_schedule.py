"""Compares the learning-rate schedules with PyTorch's."""

import pytest
import torch

from foldserve.training.fit.schedule import learning_rate
from foldserve.training.plan import Recipe


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_the_rate_of_each_step_is_that_of_the_torch_scheduler(schedule, steps):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    oracle = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, steps, cycle_momentum=False)
    )
    recipe = Recipe(learning_rate=0.02, schedule=schedule)
    for step in range(steps):
        assert learning_rate(recipe, step, steps) == pytest.approx(oracle.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimiser.step()
        if step < steps - 1:
            oracle.step()
