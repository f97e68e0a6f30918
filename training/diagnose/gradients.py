"""The norm of the gradient, layer by layer, in networks of growing depth: does it vanish, or explode?

Batch norm keeps a sigmoid's gradients from vanishing. That it makes gradients explode with depth at initialisation is
less often said: for Dense - BN - ReLU, wide layers and large batches, the squared norm grows by pi / (pi - 1) a layer
towards the input (Yang and others, 2019, arXiv:1902.08129). It knows no plot.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import nn

from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import Sample, Tick, descend
from foldserve.training.fit.loop import Examples
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

PREDICTED_GROWTH = math.sqrt(math.pi / (math.pi - 1))
"""Of the norm, a layer towards the input, for Dense - BN - ReLU at initialisation: about 1.211."""

Activation = Literal["sigmoid", "relu"]
ACTIVATIONS: tuple[Activation, ...] = ("sigmoid", "relu")
_WIDTH = 128
_MEASURED_ROWS = 256
_BATCH = 60
_RATE = 0.1
_AGREES = 0.05  # of the prediction, which is for infinite width
_STEADY = 0.05  # a growth this near to 1 is neither vanishing nor exploding: over 64 layers it is a factor of 23


@dataclass(frozen=True)
class Depth:
    """One network of `depth` hidden layers.

    initial, trained: the Frobenius norm of the loss's gradient with respect to the weights of each hidden Dense, from
    the input on, over the same 256 training rows (or all, if fewer) as one batch in training mode. score: on
    these rows in that mode, after training. diverged: the step whose loss was not finite, or None; then `trained` and
    `score` are NaN.
    """

    activation: Activation
    batch_norm: bool
    depth: int
    initial: tuple[float, ...]
    trained: tuple[float, ...]
    score: float
    diverged: int | None


def measure(sample: Sample, plan: DiagnosisPlan, tick: Tick) -> tuple[Depth, ...]:
    """Measure each activation and depth without and with batch norm, at initialisation and after training."""
    cases = list(product(ACTIVATIONS, (False, True), plan.depths))
    measured = []
    done, of = 0, sum(depth for *_, depth in cases)
    for activation, batch_norm, depth in cases:
        tick("gradients", done, of)
        measured.append(_depth(sample, plan, activation, batch_norm=batch_norm, depth=depth))
        done += depth
    tick("gradients", of, of)
    return tuple(measured)


def growth(norms: tuple[float, ...]) -> float:
    """By what factor the norm changes a layer towards the input: the slope of its logarithm, by least squares.

    norms: of each hidden Dense, from the input on. The first is left out, since its width is the table's. NaN when
    fewer than two are left, or one is 0 or not finite.
    """
    rest = np.array(norms[1:])
    if len(rest) < 2 or not np.isfinite(rest).all() or (rest <= 0).any():
        return math.nan
    return float(np.exp(-np.polyfit(np.arange(len(rest)), np.log(rest), 1)[0]))


def gradient_norms(network: nn.Sequential, sample: Sample, rows: Examples) -> tuple[float, ...]:
    """Frobenius norm of the loss's gradient for each hidden Dense's weights, `rows` being one batch in training mode.

    In float64: over 64 sigmoid layers a gradient falls below what float32 can hold. `network` stays as it is.
    """
    network = copy.deepcopy(network).double().train()
    y = rows.y.double() if rows.y.is_floating_point() else rows.y
    weights = [layer.weight for layer in network if isinstance(layer, nn.Linear)][:-1]
    return tuple(float(g.norm()) for g in torch.autograd.grad(sample.loss(network(rows.x.double()), y), weights))


def _depth(sample: Sample, plan: DiagnosisPlan, activation: Activation, *, batch_norm: bool, depth: int) -> Depth:
    torch.manual_seed(plan.seed)
    hidden = (_WIDTH,) * depth
    network = build_mlp(
        sample.features,
        sample.outputs,
        Architecture(hidden=hidden, activation=activation, batch_norm=batch_norm, dropout=0),
    )
    if activation == "relu":  # PyTorch's own initialisation shrinks a ReLU layer's gradient to 0.41 by itself
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    rows = Examples(sample.train.x[:_MEASURED_ROWS], sample.train.y[:_MEASURED_ROWS])
    initial = gradient_norms(network, sample, rows)
    for step, loss in descend(network, sample, batch=_BATCH, rate=_RATE, steps=plan.gradient_steps, seed=plan.seed):
        if not math.isfinite(loss):
            return Depth(activation, batch_norm, depth, initial, (math.nan,) * depth, math.nan, step)
    with torch.no_grad():
        score = sample.score(copy.deepcopy(network).train()(rows.x), rows.y)
    return Depth(activation, batch_norm, depth, initial, gradient_norms(network, sample, rows), score, None)


def deepest(measured: tuple[Depth, ...], activation: Activation, *, batch_norm: bool) -> Depth:
    """Give the deepest network of the kind."""
    return max(
        (m for m in measured if m.activation == activation and m.batch_norm == batch_norm), key=lambda m: m.depth
    )


def about_initial(measured: tuple[Depth, ...]) -> str:
    """Say what becomes of the gradient on its way through the deepest networks, and what was predicted."""
    rate = {
        (activation, batch_norm): growth(deepest(measured, activation, batch_norm=batch_norm).initial)
        for activation, batch_norm in product(ACTIVATIONS, (False, True))
    }
    with_bn = rate["relu", True]
    off = with_bn / PREDICTED_GROWTH - 1
    agreement = (
        f"which agrees with the predicted {PREDICTED_GROWTH:.3f} ({off:+.1%})"
        if abs(off) <= _AGREES
        else f"which does not agree with the predicted {PREDICTED_GROWTH:.3f}"
        + (f" ({off:+.1%})" if math.isfinite(off) else "")
    )
    return (
        f"At initialisation, over {max(m.depth for m in measured)} layers towards the input, the gradient norm of a "
        f"sigmoid network {_course(rate['sigmoid', False])} without BN and {_course(rate['sigmoid', True])} with it, "
        f"that of a ReLU network with He's initialisation {_course(rate['relu', False])} without BN and "
        f"{_course(with_bn)} with it, {agreement}."
    )


def _course(rate: float) -> str:
    if not math.isfinite(rate):
        return "can't be followed (0 or not finite)"
    if rate < 1 - _STEADY:
        return f"vanishes (x {rate:.3f} a layer)"
    return f"explodes (x {rate:.3f} a layer)" if rate > 1 + _STEADY else f"stays about the same (x {rate:.3f} a layer)"


def about_trained(measured: tuple[Depth, ...], steps: int, score_name: str) -> str:
    """Say whether the gradient of the deepest ReLU network with batch norm still explodes, and who has learned."""
    relu = deepest(measured, "relu", batch_norm=True)
    before, after = growth(relu.initial), growth(relu.trained)
    if relu.diverged:
        course = f"the deepest ReLU network with BN has diverged at step {relu.diverged}"
    elif not (math.isfinite(before) and math.isfinite(after)):
        course = "the gradient of the deepest ReLU network with BN can't be followed"
    else:
        calmed = abs(math.log(after)) < abs(math.log(before)) / 2
        course = (
            f"the gradient norm of the deepest ReLU network with BN changes by x {after:.3f} a layer, from "
            f"{before:.3f}: " + ("training has levelled it" if calmed else "training has not levelled it")
        )
    best = [
        f"{activation} {'with' if batch_norm else 'without'} BN {_reach(measured, activation, batch_norm=batch_norm)}"
        for activation, batch_norm in product(ACTIVATIONS, (False, True))
    ]
    return (
        f"After {steps} steps {course}; {score_name} on the measured training rows, by depth, is for {'; '.join(best)}."
    )


def _reach(measured: tuple[Depth, ...], activation: Activation, *, batch_norm: bool) -> str:
    chosen = [m for m in measured if m.activation == activation and m.batch_norm == batch_norm]
    return ", ".join(f"{m.depth}: " + ("diverged" if m.diverged else f"{m.score:.2f}") for m in chosen)
