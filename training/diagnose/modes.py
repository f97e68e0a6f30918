"""Batch size against the gap between training mode, with the batch's own statistics, and evaluation mode.

One network, the reference topology, in both modes on the same held-out rows: what differs is the statistics alone. It
knows no plot.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import Sample, Tick, descend
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

_RATE = 0.1
_DRAWS = 5  # how often the held-out rows are cut into batches anew


@dataclass(frozen=True)
class Gap:
    """A network trained with batches of `batch` rows, then scored on held-out rows in both modes.

    Losses are log loss in nats, or squared error of the standardised target. NaN when it diverged.
    """

    batch: int
    training_loss: float
    evaluation_loss: float
    training_score: float
    evaluation_score: float

    @property
    def loss(self) -> float:
        """How much higher the loss is in evaluation mode than in training mode."""
        return self.evaluation_loss - self.training_loss

    @property
    def score(self) -> float:
        """How much higher the score is in evaluation mode than in training mode."""
        return self.evaluation_score - self.training_score


def measure(sample: Sample, plan: DiagnosisPlan, tick: Tick) -> tuple[Gap, ...]:
    """Train once for each batch size that the table has the rows for, all for the same number of steps."""
    sizes = [n for n in plan.batch_sizes if n <= min(len(sample.train), len(sample.held_out))]
    gaps = []
    for i, batch in enumerate(sizes):
        tick("batch sizes", i, len(sizes))
        torch.manual_seed(plan.seed)
        network = build_mlp(sample.features, sample.outputs, Architecture(dropout=0))
        for _ in descend(network, sample, batch=batch, rate=_RATE, steps=plan.mode_steps, seed=plan.seed):
            pass
        gaps.append(gap(network, sample, batch, plan.seed))
    tick("batch sizes", len(sizes), len(sizes))
    return tuple(gaps)


@torch.no_grad()
def gap(network: nn.Sequential, sample: Sample, batch: int, seed: int) -> Gap:
    """Score `network` on the held-out rows in both modes; in training mode in random batches of `batch` rows.

    What is left of a permutation is left out there. `network`'s running statistics stay as they are.
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


def about(gaps: tuple[Gap, ...], score_name: str) -> str:
    """Say whether the gap closes as batches grow."""
    known = [g for g in gaps if math.isfinite(g.loss)]
    lost = [str(g.batch) for g in gaps if not math.isfinite(g.loss)]
    also = f"; training diverged with batches of {', '.join(lost)}" if lost else ""
    if len(known) < 2:
        return f"Fewer than two batch sizes gave a figure, so there is nothing to compare{also}."
    small, large = known[0], known[-1]
    closes = abs(large.loss) < abs(small.loss) / 2
    return (
        f"With batches of {small.batch} rows the loss is {_than(small.loss)} in evaluation mode than in training mode "
        f"and the {score_name} {_than(small.score)}, with batches of {large.batch} rows {_than(large.loss)} and "
        f"{_than(large.score)}: the gap "
        + ("closes as batches grow" if closes else "does not close as batches grow")
        + f"{also}."
    )


def _than(difference: float) -> str:
    return f"{abs(difference):.3f} {'lower' if difference < 0 else 'higher'}"
