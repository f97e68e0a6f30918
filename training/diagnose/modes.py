"""Measures the gap between training mode and evaluation mode for several batch sizes.

In training mode, batch norm uses the statistics of a batch.

The network is the reference topology. The module measures the network in both modes on the same held-out rows. Only the
statistics in the BNs of the network differ between the modes. The module does not draw plots.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import OnProgress, Sample, train_sgd
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

_RATE = 0.1
# The number of times that the held-out rows are cut into random batches.
_DRAWS = 5


@dataclass(frozen=True)
class Gap:
    """The losses and scores of one network in training mode and in evaluation mode. The network was trained with
    batches of `batch` rows.

    The losses are measured on the held-out rows. In a classification, the loss is the log loss in nats; in a
    regression, it is the squared error of the standardised target. All figures are NaN if training diverged.
    """

    batch: int
    training_loss: float
    evaluation_loss: float
    training_score: float
    evaluation_score: float

    @property
    def loss(self) -> float:
        """The loss in evaluation mode minus the loss in training mode."""
        return self.evaluation_loss - self.training_loss

    @property
    def score(self) -> float:
        """The score in evaluation mode minus the score in training mode."""
        return self.evaluation_score - self.training_score


def measure(sample: Sample, plan: DiagnosisPlan, on_progress: OnProgress) -> tuple[Gap, ...]:
    """Train a network with each batch size, always for the same number of steps.

    A batch size is skipped if the table has too few rows.
    """
    sizes = [n for n in plan.batch_sizes if n <= min(len(sample.train), len(sample.held_out))]
    gaps = []
    for i, batch in enumerate(sizes):
        on_progress("batch sizes", i, len(sizes))
        torch.manual_seed(plan.seed)
        network = build_mlp(sample.features, sample.outputs, Architecture(dropout=0))
        for _ in train_sgd(network, sample, batch=batch, rate=_RATE, steps=plan.mode_steps, seed=plan.seed):
            pass
        gaps.append(measure_gap(network, sample, batch, plan.seed))
    on_progress("batch sizes", len(sizes), len(sizes))
    return tuple(gaps)


@torch.no_grad()
def measure_gap(network: nn.Sequential, sample: Sample, batch: int, seed: int) -> Gap:
    """Score `network` on the held-out rows in both modes. Training mode uses random batches of `batch` rows.

    In training mode, the rows of an incomplete last batch are left out. The running statistics of `network` do not
    change.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, training = sample.held_out, copy.deepcopy(network).train()
    losses, scores = [], []
    for _ in range(_DRAWS):
        order = torch.randperm(len(rows), generator=generator)
        order = order[: len(rows) // batch * batch]
        output = torch.cat([training(rows.x[chosen]) for chosen in torch.split(order, batch)])
        losses.append(float(sample.loss(output, rows.y[order])))
        scores.append(sample.score(output, rows.y[order]))
    output = copy.deepcopy(network).eval()(rows.x)
    return Gap(
        batch,
        float(np.mean(losses)),
        float(sample.loss(output, rows.y)),
        float(np.mean(scores)),
        sample.score(output, rows.y),
    )


def describe_gap(gaps: tuple[Gap, ...]) -> str:
    """Say whether the gap between training mode and evaluation mode is smaller for larger batches."""
    known = [g for g in gaps if math.isfinite(g.loss)]
    diverged = [str(g.batch) for g in gaps if not math.isfinite(g.loss)]
    also = f"; training diverged with batches of {', '.join(diverged)}" if diverged else ""
    if len(known) < 2:
        return f"Fewer than two batch sizes gave a figure, so there is nothing to compare{also}."
    small, large = known[0], known[-1]
    closes = abs(large.loss) < abs(small.loss) / 2
    return (
        f"The gap between the two modes {'closes' if closes else 'does not close'} as batches grow from {small.batch} "
        f"to {large.batch} rows{also}."
    )
