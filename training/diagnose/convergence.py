"""Trains three layers of 100 sigmoids with and without batch norm.

The module measures the speed of the training and the inputs of the sigmoids.

The experiment repeats figure 1 of Ioffe and Szegedy (2015, arXiv:1502.03167), with batches of 60 rows and plain SGD.
The experiment runs at several learning rates, because the paper does not name one, and because networks with and
without batch norm may need different rates. The module does not draw plots.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foldserve.service.figures import count_of, format_figure
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import OnProgress, Sample, train_sgd
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

LAYERS = 3
_WIDTH = 100
_BATCH = 60
# The number of measurements during one training.
_MEASUREMENTS = 80
PERCENTILES = (15, 50, 85)

# A run reaches the goal when its score is at least this share of the highest score of all runs. A run counts as faster
# if it needs fewer steps to reach the goal.
_GOAL = 0.95
# BN counts as faster if the number of steps without BN, divided by the number of steps with BN, is more than this
# number.
_FASTER = 1.1
# A mean counts as constant if its range is at most `_CONSTANT_MEAN`, in units of the sigmoid's input. A variance counts
# as constant if its maximum divided by its minimum is at most `_CONSTANT_RATIO`. Changes below these limits are not
# visible in a plot.
_CONSTANT_MEAN = 0.1
_CONSTANT_RATIO = 1.1


@dataclass(frozen=True)
class Run:
    """One training of a network. The network is measured after each step in `steps`. Every sequence has one entry for
    each measurement.

    scores: the scores on the held-out rows in evaluation mode. percentiles: the 15th, 50th and 85th percentile of the
    inputs to one sigmoid of the last hidden layer. The sigmoids of the layer are sorted by the range of their median
    input, and the middle sigmoid is chosen. means, variances: for each layer, the mean and the variance of a sigmoid's
    inputs over the rows, averaged over all sigmoids of the layer. The inputs of the sigmoids are computed in training
    mode, with all held-out rows as one batch, because a network is in training mode during the training. If the
    training diverges, the last measurement has NaN for all figures. diverged: the number of the step whose loss was not
    finite; None if every loss was finite.
    """

    batch_norm: bool
    rate: float
    steps: tuple[int, ...]
    scores: tuple[float, ...]
    percentiles: tuple[tuple[float, ...], ...]
    means: tuple[tuple[float, ...], ...]
    variances: tuple[tuple[float, ...], ...]
    diverged: int | None

    def steps_to(self, score: float) -> int | None:
        """Return the number of steps after which a measurement first reached `score`. Return None if no measurement
        reached `score`.
        """
        return next((step for step, s in zip(self.steps, self.scores, strict=True) if s >= score), None)

    @property
    def movement(self) -> tuple[float, float, float]:
        """Three numbers that say how much the inputs of the sigmoids change during the training.

        The numbers are NaN if the training diverged.

        The first number is the range of a typical sigmoid's median input. The percentiles of the same sigmoid are in
        `percentiles`. The second number is the range of a layer's mean input, for the layer where this range is
        largest. The third number is the highest variance of a layer's inputs divided by their lowest variance, for the
        layer where this ratio is largest.
        """
        medians, means, variances = (np.array(v) for v in (self.percentiles, self.means, self.variances))
        smallest = np.maximum(variances.min(0), np.finfo(np.float64).tiny)
        return (
            float(np.ptp(medians[:, PERCENTILES.index(50)])),
            float(np.ptp(means, axis=0).max()),
            float((variances.max(0) / smallest).max()),
        )


def measure(sample: Sample, plan: DiagnosisPlan, on_progress: OnProgress) -> tuple[Run, ...]:
    """At each learning rate of the plan, train first without batch norm and then with batch norm."""
    runs: list[Run] = []
    count = 2 * len(plan.rates)
    for rate in plan.rates:
        for batch_norm in (False, True):
            on_progress("convergence", len(runs), count)
            runs.append(_measure_run(sample, plan, batch_norm=batch_norm, rate=rate))
    on_progress("convergence", count, count)
    return tuple(runs)


def select_pair(runs: tuple[Run, ...], rate: float) -> tuple[Run, Run]:
    """Return two runs at this learning rate: first the run without batch norm, then the run with batch norm."""
    without, with_bn = (next(r for r in runs if r.rate == rate and r.batch_norm == bn) for bn in (False, True))
    return without, with_bn


def _measure_run(sample: Sample, plan: DiagnosisPlan, *, batch_norm: bool, rate: float) -> Run:
    torch.manual_seed(plan.seed)
    architecture = Architecture(hidden=(_WIDTH,) * LAYERS, activation="sigmoid", batch_norm=batch_norm, dropout=0)
    network = build_mlp(sample.features, sample.outputs, architecture)
    # Most measurements are at the start of the training, because the network changes most at the start.
    measured_at = {round(plan.steps * (i / _MEASUREMENTS) ** 2) for i in range(_MEASUREMENTS + 1)}
    steps, diverged = [0], None
    scores, inputs = [_score(network, sample)], [sigmoid_inputs(network, sample.held_out.x)]
    for step, loss in train_sgd(network, sample, batch=_BATCH, rate=rate, steps=plan.steps, seed=plan.seed):
        diverged = None if math.isfinite(loss) else step
        if step in measured_at or diverged:
            steps.append(step)
            scores.append(_score(network, sample))
            inputs.append(sigmoid_inputs(network, sample.held_out.x))
    if diverged:
        scores[-1], inputs[-1] = math.nan, torch.full_like(inputs[-1], math.nan)
    stacked = np.stack([layers.double().numpy() for layers in inputs])  # of shape [measurements, layers, rows, units]
    # NumPy must not warn about NaN and infinity, which occur if the training diverges.
    with np.errstate(invalid="ignore", over="ignore"):
        # The percentiles of the last layer's inputs: [measurements, percentiles, units].
        last = np.moveaxis(np.percentile(stacked[:, -1], PERCENTILES, axis=1), 0, 1)
        typical = np.argsort(np.ptp(last[:, 1], axis=0), kind="stable")[_WIDTH // 2]
        means, variances = stacked.mean((2, 3)), stacked.var(2).mean(2)
    return Run(
        batch_norm,
        rate,
        tuple(steps),
        tuple(scores),
        tuple(map(tuple, last[:, :, typical].tolist())),
        tuple(map(tuple, means.tolist())),
        tuple(map(tuple, variances.tolist())),
        diverged,
    )


@torch.no_grad()
def _score(network: nn.Sequential, sample: Sample) -> float:
    return sample.score(network.eval()(sample.held_out.x), sample.held_out.y)


@torch.no_grad()
def sigmoid_inputs(network: nn.Sequential, x: Tensor) -> Tensor:
    """Compute the inputs of the sigmoids in each layer for x [rows, features]. Return a tensor of shape [layers, rows,
    units].

    The network is in training mode, and x is one batch. The running statistics of `network` do not change.
    """
    inputs = []
    for layer in copy.deepcopy(network).train():
        if isinstance(layer, nn.Sigmoid):
            inputs.append(x)
        x = layer(x)
    return torch.stack(inputs)


def find_goal(runs: tuple[Run, ...]) -> float:
    """Return the goal, which is 95% of the highest score of all runs. The speed of a network is the number of steps
    that it needs to reach the goal.
    """
    return _GOAL * max((s for run in runs for s in run.scores if math.isfinite(s)), default=0.0)


def describe_speed(runs: tuple[Run, ...], score_name: str) -> str:
    """Say how many steps each network needs to reach the goal at its best learning rate, and whether BN is faster."""
    goal, limit = find_goal(runs), max(run.steps[-1] for run in runs)
    if goal <= 0:
        return "No run learned anything in these steps, so this shows nothing."
    without, with_bn = (_fewest_steps(runs, goal, batch_norm=batch_norm) for batch_norm in (False, True))
    return (
        f"At the best learning rate of each, it takes {describe_steps(with_bn, limit)} with BN and "
        f"{describe_steps(without, limit)} without to reach {score_name} {format_figure(goal)}, which "
        f"{_verdict(without, with_bn)} the claim that BN speeds training up."
    )


def _fewest_steps(runs: tuple[Run, ...], goal: float, *, batch_norm: bool) -> int | None:
    reached = [run.steps_to(goal) for run in runs if run.batch_norm == batch_norm]
    return min((steps for steps in reached if steps is not None), default=None)


def describe_steps(steps: int | None, limit: int) -> str:
    """Write the number of steps as text. If `steps` is None, write that more than `limit` steps are needed."""
    return f"more than {limit:,} steps" if steps is None else count_of(steps, "step")


def _verdict(without: int | None, with_bn: int | None) -> str:
    faster = with_bn is not None and (without is None or without > _FASTER * max(with_bn, 1))
    return "supports" if faster else "does not support"


def describe_percentiles(without: Run, with_bn: Run) -> str:
    """Say whether the inputs of a typical sigmoid change less in the run with batch norm than in the run without batch
    norm.
    """
    plain, normed = without.movement[0], with_bn.movement[0]
    if not (math.isfinite(plain) and math.isfinite(normed)):
        return _describe_divergence(without, with_bn)
    less, verdict = ("less", "supports") if normed < plain else ("no less", "does not support")
    return (
        f"The median input of a typical sigmoid of the last hidden layer moves {less} with BN than without, which "
        f"{verdict} the claim that BN makes these inputs steadier."
    )


def describe_moments(without: Run, with_bn: Run) -> str:
    """Say whether batch norm keeps the mean and the variance of the sigmoids' inputs constant."""
    (_, mean, ratio), (_, plain_mean, plain_ratio) = with_bn.movement, without.movement
    if not all(map(math.isfinite, (mean, ratio, plain_mean, plain_ratio))):
        return _describe_divergence(without, with_bn)
    both = "the mean and the variance of the sigmoids' inputs"
    if mean <= _CONSTANT_MEAN and ratio <= _CONSTANT_RATIO:
        return f"BN keeps {both} constant here."
    if mean < plain_mean and ratio < plain_ratio:
        return f"BN keeps {both} steadier, but not constant, since gamma and beta learn."
    if mean < plain_mean or ratio < plain_ratio:
        return f"BN keeps only one of {both} steadier."
    return f"BN keeps neither of {both} steadier here."


def _describe_divergence(without: Run, with_bn: Run) -> str:
    which = " and ".join(
        f"{name} BN (step {run.diverged:,})" for name, run in (("without", without), ("with", with_bn)) if run.diverged
    )
    return f"Training diverged {which}, so there is nothing to compare at this learning rate."
