"""Learning-rate schedules, as functions of the step. The module does not depend on the optimiser."""

from __future__ import annotations

import math

from foldserve.training.plan import Recipe


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of one step. step: the number of the step, counted from 0. steps: the number of all
    steps.

    PyTorch's CosineAnnealingLR and OneCycleLR give the same rates.

    cosine: the rate falls along half a cosine from the highest rate to 0 (Loshchilov and Hutter, 2017,
    arXiv:1608.03983). onecycle: the rate rises from 1/25 of the highest rate to the highest rate over the first 30% of
    the steps, and falls to 4e-6 of the highest rate over the remaining steps (Smith and Topin, 2018, arXiv:1708.07120).
    Both the rise and the fall follow half a cosine wave.
    """
    highest = recipe.learning_rate
    if recipe.schedule == "cosine":
        return _half_cosine(highest, 0.0, step / steps)
    top = 0.3 * steps - 1
    if step <= top:
        return _half_cosine(highest / 25, highest, step / top)
    return _half_cosine(highest, highest / 25 / 1e4, (step - top) / (steps - 1 - top))


def _half_cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * share))
