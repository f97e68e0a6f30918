"""Measures the norm of the gradient in each layer, for networks of several depths.

Batch norm keeps the gradients of sigmoid networks from vanishing, but makes gradients explode in deep networks at
initialisation. In networks of Dense - BN - ReLU with wide layers and large batches, the squared norm of the gradient
grows by the factor pi / (pi - 1) from each layer to the layer before it (Yang and others, 2019, arXiv:1902.08129). The
module does not draw plots.
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

from foldserve.service.figures import count_of
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import OnProgress, Sample, train_sgd
from foldserve.training.fit.loop import Examples
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

PREDICTED_GROWTH = math.sqrt(math.pi / (math.pi - 1))
"""The factor, about 1.211, by which the norm of the gradient grows per layer towards the input. The factor is for
networks of Dense - BN - ReLU at initialisation.
"""

Activation = Literal["sigmoid", "relu"]
ACTIVATIONS: tuple[Activation, ...] = ("sigmoid", "relu")
_WIDTH = 128
_MEASURED_ROWS = 256
_BATCH = 60
_RATE = 0.1
# The measured growth agrees with the predicted growth if their relative difference is at most this number. The
# prediction is exact only for layers of infinite width.
_AGREES = 0.05
# The gradient neither vanishes nor explodes if its growth per layer differs from 1 by at most this number. A growth of
# 1.05 per layer is a factor of about 23 over 64 layers.
_STEADY = 0.05


@dataclass(frozen=True)
class Depth:
    """The measurements of one network with `depth` hidden layers.

    initial, trained: the gradient norms before and after training, one for each hidden Dense. The first norm is that of
    the Dense next to the input. Each norm is the Frobenius norm of the gradient of the loss with respect to the weights
    of one Dense. `initial` and `trained` are measured in training mode on the same batch. The batch has 256 training
    rows, or all training rows if there are fewer. score: the score after training, measured in training mode on the
    same batch as the gradients. diverged: the number of the step whose loss was not finite; None if every loss was
    finite. If the training diverged, `trained` and `score` are NaN.
    """

    activation: Activation
    batch_norm: bool
    depth: int
    initial: tuple[float, ...]
    trained: tuple[float, ...]
    score: float
    diverged: int | None


def measure(sample: Sample, plan: DiagnosisPlan, on_progress: OnProgress) -> tuple[Depth, ...]:
    """Measure a network for each activation and depth, first without and then with batch norm.

    Each network is measured at initialisation and after training.
    """
    cases = list(product(ACTIVATIONS, (False, True), plan.depths))
    measured = []
    done, total = 0, sum(depth for *_, depth in cases)
    for activation, batch_norm, depth in cases:
        on_progress("gradients", done, total)
        measured.append(_measure_depth(sample, plan, activation, batch_norm=batch_norm, depth=depth))
        done += depth
    on_progress("gradients", total, total)
    return tuple(measured)


def growth(norms: tuple[float, ...]) -> float:
    """Estimate the factor by which the gradient norm grows from each layer to the layer before it.

    The function fits a line to the logarithms of the norms, and computes the factor from the slope of the line. norms:
    one norm for each hidden Dense, in the order from the input to the output. The first Dense is left out, because its
    number of inputs depends on the table. The result is NaN if `norms` has fewer than three entries, or if an entry
    after the first is 0 or not finite.
    """
    rest = np.array(norms[1:])
    if len(rest) < 2 or not np.isfinite(rest).all() or (rest <= 0).any():
        return math.nan
    return float(np.exp(-np.polyfit(np.arange(len(rest)), np.log(rest), 1)[0]))


def gradient_norms(network: nn.Sequential, sample: Sample, rows: Examples) -> tuple[float, ...]:
    """For each hidden Dense, compute the Frobenius norm of the gradient of the loss with respect to its weights.

    rows: the batch for computing the gradient. The network is in training mode. The computation uses float64, because a
    gradient that passes through 64 sigmoid layers becomes smaller than the smallest float32. `network` does not change.
    """
    network = copy.deepcopy(network).double().train()
    y = rows.y.double() if rows.y.is_floating_point() else rows.y
    weights = [layer.weight for layer in network if isinstance(layer, nn.Linear)][:-1]
    return tuple(float(g.norm()) for g in torch.autograd.grad(sample.loss(network(rows.x.double()), y), weights))


def _measure_depth(
    sample: Sample, plan: DiagnosisPlan, activation: Activation, *, batch_norm: bool, depth: int
) -> Depth:
    torch.manual_seed(plan.seed)
    architecture = Architecture(hidden=(_WIDTH,) * depth, activation=activation, batch_norm=batch_norm, dropout=0)
    network = build_mlp(sample.features, sample.outputs, architecture)
    if activation == "relu":  # with PyTorch's default initialisation, each layer would multiply the gradient by 0.41
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    rows = Examples(sample.train.x[:_MEASURED_ROWS], sample.train.y[:_MEASURED_ROWS])
    initial = gradient_norms(network, sample, rows)
    for step, loss in train_sgd(network, sample, batch=_BATCH, rate=_RATE, steps=plan.gradient_steps, seed=plan.seed):
        if not math.isfinite(loss):
            return Depth(activation, batch_norm, depth, initial, (math.nan,) * depth, math.nan, step)
    with torch.no_grad():
        score = sample.score(copy.deepcopy(network).train()(rows.x), rows.y)
    return Depth(activation, batch_norm, depth, initial, gradient_norms(network, sample, rows), score, None)


def deepest(measured: tuple[Depth, ...], activation: Activation, *, batch_norm: bool) -> Depth:
    """Return the measurements of the deepest network with this activation and this choice of batch norm."""
    chosen = [m for m in measured if m.activation == activation and m.batch_norm == batch_norm]
    return max(chosen, key=lambda m: m.depth)


def describe_initial(measured: tuple[Depth, ...]) -> str:
    """Say how the gradient changes from the output to the input of the deepest networks, and whether the predicted
    growth is right.
    """
    sigmoid, sigmoid_bn, _, relu_bn = (
        growth(deepest(measured, activation, batch_norm=batch_norm).initial)
        for activation, batch_norm in product(ACTIVATIONS, (False, True))
    )
    agreement = "agrees" if abs(relu_bn / PREDICTED_GROWTH - 1) <= _AGREES else "does not agree"
    return (
        f"At initialisation, on its way to the input, the gradient of a deep sigmoid network "
        f"{_describe_growth(sigmoid)} without BN and {_describe_growth(sigmoid_bn)} with it, and that of a deep ReLU "
        f"network with BN {_describe_growth(relu_bn)}, which {agreement} with the prediction."
    )


def _describe_growth(rate: float) -> str:
    if not math.isfinite(rate):
        return "can't be followed"
    if abs(rate - 1) <= _STEADY:
        return "stays about the same"
    return "vanishes" if rate < 1 else "explodes"


def describe_trained(measured: tuple[Depth, ...], steps: int) -> str:
    """Say whether the gradient of the deepest ReLU network with batch norm still explodes after training."""
    relu = deepest(measured, "relu", batch_norm=True)
    before, after = growth(relu.initial), growth(relu.trained)
    if relu.diverged:
        return f"The deepest ReLU network with BN has diverged at step {relu.diverged}."
    if not (math.isfinite(before) and math.isfinite(after)):
        return "The gradient of the deepest ReLU network with BN can't be followed."
    levelled = abs(math.log(after)) < abs(math.log(before)) / 2
    return (
        f"{count_of(steps, 'step')} of training have {'' if levelled else 'not '}levelled the gradient of the deepest "
        "ReLU network with BN."
    )
