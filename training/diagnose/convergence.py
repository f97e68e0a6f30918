"""Three layers of 100 sigmoids, with and without batch norm: how fast they learn, and what the sigmoids see meanwhile.

The experiment of figure 1 in Ioffe and Szegedy (2015, arXiv:1502.03167): batches of 60, plain SGD. They give no
learning rate; here it is several, since a network that prefers another rate is no worse for it. It knows no plot.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import Sample, Tick, descend
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

LAYERS = 3
_WIDTH = 100
_BATCH = 60
_LOOKS = 80  # how often a run is looked at
PERCENTILES = (15, 50, 85)

# Of the highest score of all runs: which network is there first?
_NEARLY = 0.95
# "Constant", of a mean in units of the sigmoid's input and of the ratio of two variances: what no plot would show.
_STILL_MEAN = 0.1
_STILL_RATIO = 1.1


@dataclass(frozen=True)
class Run:
    """One training, looked at after `steps` steps; every sequence has one entry a look.

    scores: on the held-out rows in evaluation mode. percentiles: the 15th, 50th and 85th of the inputs to one sigmoid
    of the last hidden layer, the one whose median moves a typical distance. means, variances: of the inputs to each
    layer's sigmoids, the variance over rows, both averaged over units. All inputs are those of the held-out rows as
    one batch in training mode, which is what the sigmoids see while they learn. After a divergence all are NaN.
    diverged: the step whose loss was not finite, or None.
    """

    batch_norm: bool
    rate: float
    steps: tuple[int, ...]
    scores: tuple[float, ...]
    percentiles: tuple[tuple[float, ...], ...]
    means: tuple[tuple[float, ...], ...]
    variances: tuple[tuple[float, ...], ...]
    diverged: int | None

    def first(self, score: float) -> int | None:
        """The first look, in steps, with at least this score."""
        return next((step for step, s in zip(self.steps, self.scores, strict=True) if s >= score), None)

    @property
    def movement(self) -> tuple[float, float, float]:
        """How far the median of the one sigmoid's inputs moved, and of all layers the one whose mean moved furthest
        and whose variance changed by the largest factor. NaN when the run diverged."""
        medians, means, variances = (np.array(v) for v in (self.percentiles, self.means, self.variances))
        smallest = np.maximum(variances.min(0), np.finfo(np.float64).tiny)
        return (
            float(np.ptp(medians[:, PERCENTILES.index(50)])),
            float(np.ptp(means, axis=0).max()),
            float((variances.max(0) / smallest).max()),
        )


def measure(sample: Sample, plan: DiagnosisPlan, tick: Tick) -> tuple[Run, ...]:
    """Train with and without batch norm at each of the plan's rates: rate by rate, without first."""
    runs: list[Run] = []
    of = 2 * len(plan.rates)
    for rate in plan.rates:
        for batch_norm in (False, True):
            tick("convergence", len(runs), of)
            runs.append(_run(sample, plan, batch_norm=batch_norm, rate=rate))
    tick("convergence", of, of)
    return tuple(runs)


def pair(runs: tuple[Run, ...], rate: float) -> tuple[Run, Run]:
    """Give the runs at this rate: without batch norm, with."""
    without, with_bn = (next(r for r in runs if r.rate == rate and r.batch_norm == bn) for bn in (False, True))
    return without, with_bn


def _run(sample: Sample, plan: DiagnosisPlan, *, batch_norm: bool, rate: float) -> Run:
    torch.manual_seed(plan.seed)
    network = build_mlp(
        sample.features,
        sample.outputs,
        Architecture(hidden=(_WIDTH,) * LAYERS, activation="sigmoid", batch_norm=batch_norm, dropout=0),
    )
    # Close together at first, when most happens.
    looks = {round(plan.steps * (i / _LOOKS) ** 2) for i in range(_LOOKS + 1)}
    steps, diverged = [0], None
    scores, seen = [_score(network, sample)], [sigmoid_inputs(network, sample.held_out.x)]
    for step, loss in descend(network, sample, batch=_BATCH, rate=rate, steps=plan.steps, seed=plan.seed):
        diverged = None if math.isfinite(loss) else step
        if step in looks or diverged:
            steps.append(step)
            scores.append(_score(network, sample))
            seen.append(sigmoid_inputs(network, sample.held_out.x))
    if diverged:
        scores[-1], seen[-1] = math.nan, torch.full_like(seen[-1], math.nan)
    inputs = np.stack([layers.double().numpy() for layers in seen])  # [looks, layers, rows, units]
    with np.errstate(invalid="ignore", over="ignore"):  # a divergence is on record, no news
        last = np.moveaxis(np.percentile(inputs[:, -1], PERCENTILES, axis=1), 0, 1)  # [looks, percentiles, units]
        middle = np.argsort(np.ptp(last[:, 1], axis=0), kind="stable")[_WIDTH // 2]
        means, variances = inputs.mean((2, 3)), inputs.var(2).mean(2)
    return Run(
        batch_norm,
        rate,
        tuple(steps),
        tuple(scores),
        tuple(tuple(look) for look in last[:, :, middle].tolist()),
        tuple(tuple(look) for look in means.tolist()),
        tuple(tuple(look) for look in variances.tolist()),
        diverged,
    )


@torch.no_grad()
def _score(network: nn.Sequential, sample: Sample) -> float:
    return sample.score(network.eval()(sample.held_out.x), sample.held_out.y)


@torch.no_grad()
def sigmoid_inputs(network: nn.Sequential, x: Tensor) -> Tensor:
    """What each layer's sigmoids get from x [rows, features] as one batch in training mode: [layers, rows, units].

    The network's own running statistics stay as they are.
    """
    seen = []
    for layer in copy.deepcopy(network).train():
        if isinstance(layer, nn.Sigmoid):
            seen.append(x)
        x = layer(x)
    return torch.stack(seen)


def about_speed(runs: tuple[Run, ...], rate: float, score_name: str) -> str:
    """Say who nearly reaches the highest score first: at the same rate, and at the best rate of each."""
    highest = max((s for run in runs for s in run.scores if math.isfinite(s)), default=0.0)
    goal, limit = _NEARLY * highest, max(run.steps[-1] for run in runs)
    if goal <= 0:
        return f"No run learned anything in these steps (highest {score_name} {highest:.3f}), so this shows nothing."
    without, with_bn = (run.first(goal) for run in pair(runs, rate))
    best_without, best_with = (_best(runs, goal, batch_norm=bn) for bn in (False, True))
    diverged = [f"{run.rate:g} {'with' if run.batch_norm else 'without'} BN" for run in runs if run.diverged]
    return (
        f"To {score_name} {goal:.3f}, {_NEARLY:.0%} of the highest seen, training at a learning rate of {rate:g} takes "
        f"{_steps(with_bn, limit)} with BN and {_steps(without, limit)} without; at the best of the rates tried for "
        f"each {_steps(best_with, limit)} and {_steps(best_without, limit)}: that {_verdict(best_without, best_with)}"
        + (f"; training diverged at {', '.join(diverged)}." if diverged else ".")
    )


def _best(runs: tuple[Run, ...], goal: float, *, batch_norm: bool) -> int | None:
    reached = [run.first(goal) for run in runs if run.batch_norm == batch_norm]
    return min((steps for steps in reached if steps is not None), default=None)


def _steps(steps: int | None, limit: int) -> str:
    return f"more than {limit:,} steps" if steps is None else f"{steps:,} step{'s' * (steps != 1)}"


def _verdict(without: int | None, with_bn: int | None) -> str:
    if with_bn is None:
        return "is no support for the claim that BN speeds training up"
    if without is None:
        return "supports the claim that BN speeds training up"
    ratio = without / max(with_bn, 1)
    if ratio > 1.1:
        return f"supports the claim that BN speeds training up ({ratio:.1f} times as fast, in steps)"
    return f"does not support the claim that BN speeds training up ({ratio:.2f} times as fast, in steps)"


def about_percentiles(without: Run, with_bn: Run) -> str:
    """Say in which of the two the inputs of a sigmoid stay nearer to where they were."""
    plain, normed = without.movement[0], with_bn.movement[0]
    if not (math.isfinite(plain) and math.isfinite(normed)):
        return _diverged(without, with_bn)
    return (
        f"The median input of a typical sigmoid of the last hidden layer moves over a range of {normed:.2f} with BN "
        f"and of {plain:.2f} without, which "
        + (
            "supports the claim that BN makes these inputs steadier."
            if normed < plain
            else "does not support the claim that BN makes these inputs steadier."
        )
    )


def about_moments(without: Run, with_bn: Run) -> str:
    """Say whether batch norm keeps the mean and variance of each layer's activations constant."""
    (_, mean, ratio), (_, plain_mean, plain_ratio) = with_bn.movement, without.movement
    if not all(map(math.isfinite, (mean, ratio, plain_mean, plain_ratio))):
        return _diverged(without, with_bn)
    if mean <= _STILL_MEAN and ratio <= _STILL_RATIO:
        verdict = "BN keeps them constant here"
    elif mean < plain_mean and ratio < plain_ratio:
        verdict = "BN keeps them steadier, but not constant, since gamma and beta learn"
    elif mean < plain_mean or ratio < plain_ratio:
        verdict = "BN keeps one of the two steadier and the other not"
    else:
        verdict = "BN keeps neither steadier here"
    return (
        f"In the layer that changes most, the mean of the sigmoids' inputs moves over a range of {mean:.2f} with BN "
        f"({plain_mean:.2f} without), and their variance changes by a factor of {ratio:.3g} ({plain_ratio:.3g} "
        f"without): {verdict}."
    )


def _diverged(without: Run, with_bn: Run) -> str:
    which = " and ".join(
        f"{name} BN (step {run.diverged:,})" for name, run in (("without", without), ("with", with_bn)) if run.diverged
    )
    return f"Training diverged {which}, so there is nothing to compare at this learning rate."
