"""The rows that a diagnosis learns from and looks at, standardised, and plain SGD on them. It knows no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from foldserve.training.errors import DataError
from foldserve.training.fit.loop import Examples
from foldserve.training.network.preprocessing import fit_preprocessing, transform
from foldserve.training.table.schema import Table

# More rows would take longer and show the same: no network here takes more than some thousand steps.
MAX_ROWS = 20_000
_MIN_ROWS = 20
_HELD_OUT_SHARE = 0.25
# The score is taken some hundred times, and what a BN sees in training mode is taken from these rows as one batch.
_MAX_HELD_OUT = 1_000

Tick = Callable[[str, int, int], None]
"""Called with what is being measured, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Sample:
    """Rows to learn from and rows to look at, disjoint; `total` is how many the table has."""

    source: str
    classification: bool
    outputs: int
    train: Examples
    held_out: Examples
    total: int

    @property
    def features(self) -> int:
        """How many columns x has."""
        return self.train.x.shape[1]

    @property
    def score_name(self) -> str:
        """What `score` gives."""
        return "accuracy" if self.classification else "R2"

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean log loss in nats of logits [rows, classes], or mean squared error of a value [rows, 1]."""
        if self.classification:
            return functional.cross_entropy(output, y)
        return functional.mse_loss(output.squeeze(1), y)

    def score(self, output: Tensor, y: Tensor) -> float:
        """Share of rows whose class is the likeliest, or R2; NaN when an output is not finite."""
        if not bool(output.isfinite().all()):
            return math.nan
        if self.classification:
            return float((output.argmax(1) == y).double().mean())
        residual = (output.squeeze(1) - y).double().square().mean()
        return float(1 - residual / y.double().var(correction=0).clamp(min=1e-12))


def draw(table: Table, seed: int) -> Sample:
    """Take at most `MAX_ROWS` rows at random, a quarter of them held out, encoded and standardised by the others.

    Raises `DataError` for a table of fewer rows than show anything.
    """
    if len(table.x) < _MIN_ROWS:
        raise DataError(f"{len(table.x)} rows are too few to diagnose: at least {_MIN_ROWS} are needed")
    order = np.random.default_rng(seed).permutation(len(table.x))[:MAX_ROWS]
    held_out = min(max(round(_HELD_OUT_SHARE * len(order)), 2), _MAX_HELD_OUT)
    look, learn = order[:held_out], order[held_out:]
    front = fit_preprocessing(table.columns, table.x[learn], bins=0)
    target, scale = (0.0, 1.0) if table.labels else (float(table.y[learn].mean()), float(table.y[learn].std()) or 1.0)

    def rows(chosen: npt.NDArray[np.int64]) -> Examples:
        y: npt.NDArray[Any] = table.y[chosen]
        y = y.astype(np.int64) if table.labels else ((y - target) / scale).astype(np.float32)
        return Examples(transform(front, table.x[chosen]), torch.from_numpy(y))

    return Sample(table.source, bool(table.labels), table.outputs, rows(learn), rows(look), len(table.x))


def descend(
    network: nn.Module, sample: Sample, *, batch: int, rate: float, steps: int, seed: int
) -> Iterator[tuple[int, float]]:
    """Train `network` in place with plain SGD, no momentum, and yield each step's number, from 1, and loss.

    Batches are cut from one permutation of the training rows after the other; what is left of one is left out, so
    that every batch has `batch` rows, or all of a table with fewer. Ends with the first loss that is not finite.
    The network is in training mode at each step, whatever the caller did between two.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(network.parameters())
    batch = min(batch, len(sample.train))
    waiting = torch.empty(0, dtype=torch.int64)
    for step in range(1, steps + 1):
        if len(waiting) < batch:
            waiting = torch.randperm(len(sample.train), generator=generator)
        chosen, waiting = waiting[:batch], waiting[batch:]
        network.train()
        loss = sample.loss(network(sample.train.x[chosen]), sample.train.y[chosen])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=rate)
        yield step, float(loss.detach())
        if not math.isfinite(float(loss.detach())):
            return
