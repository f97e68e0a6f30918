"""The sample of a diagnosis: rows of the table, standardised and split. The module also trains networks on the sample
with plain SGD.

The module does not depend on the experiments.
"""

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

# A sample has at most this many rows. With more rows, the diagnosis would take longer but give the same result, because
# each network is trained for at most a few thousand steps.
MAX_ROWS = 20_000
_MIN_ROWS = 20
_HELD_OUT_SHARE = 0.25
# At most this many rows are held out. The number is small, because each network is measured on all held-out rows up to
# a hundred times, and because all held-out rows are one batch in training mode.
_MAX_HELD_OUT = 1_000

OnProgress = Callable[[str, int, int], None]
"""Called with the name of the experiment, the number of its parts that are done, and the number of its parts."""


@dataclass(frozen=True)
class Sample:
    """Training rows and held-out rows of a table. No row is in both sets. total: the number of rows of the table."""

    source: str
    classification: bool
    outputs: int
    train: Examples
    held_out: Examples
    total: int

    @property
    def features(self) -> int:
        """The number of columns of the network's input."""
        return self.train.x.shape[1]

    @property
    def score_name(self) -> str:
        """The name of the score that the method `score` computes."""
        return "accuracy" if self.classification else "R2"

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the mean loss: in a classification, the log loss in nats of logits [rows, classes]; in a regression,
        the squared error of values [rows, 1].
        """
        if self.classification:
            return functional.cross_entropy(output, y)
        return functional.mse_loss(output.squeeze(1), y)

    def score(self, output: Tensor, y: Tensor) -> float:
        """Compute the accuracy, or R2 in a regression. Return NaN if an output is not finite."""
        if not bool(output.isfinite().all()):
            return math.nan
        if self.classification:
            return float((output.argmax(1) == y).double().mean())
        residual = (output.squeeze(1) - y).double().square().mean()
        return float(1 - residual / y.double().var(correction=0).clamp(min=1e-12))


def draw_sample(table: Table, seed: int) -> Sample:
    """Draw at most `MAX_ROWS` rows of the table at random, and hold out a quarter of these rows.

    All rows are standardised with the statistics of the training rows.

    Raises `DataError` for a table of fewer than 20 rows.
    """
    if len(table.x) < _MIN_ROWS:
        raise DataError(f"{len(table.x)} rows are too few to diagnose: at least {_MIN_ROWS} are needed")
    order = np.random.default_rng(seed).permutation(len(table.x))[:MAX_ROWS]
    count = min(max(round(_HELD_OUT_SHARE * len(order)), 2), _MAX_HELD_OUT)
    held_out, train = order[:count], order[count:]
    preprocessing = fit_preprocessing(table.columns, table.x[train], bins=0)
    mean, std = (0.0, 1.0) if table.labels else (float(table.y[train].mean()), float(table.y[train].std()) or 1.0)

    def examples(rows: npt.NDArray[np.int64]) -> Examples:
        y: npt.NDArray[Any] = table.y[rows]
        y = y.astype(np.int64) if table.labels else ((y - mean) / std).astype(np.float32)
        return Examples(transform(preprocessing, table.x[rows]), torch.from_numpy(y))

    return Sample(table.source, bool(table.labels), table.outputs, examples(train), examples(held_out), len(table.x))


def train_sgd(
    network: nn.Module, sample: Sample, *, batch: int, rate: float, steps: int, seed: int
) -> Iterator[tuple[int, float]]:
    """Train `network` in place with plain SGD, without momentum. Yield the number and the loss of each step.

    The first step has number 1. Each pass over the training rows has a new random order, which is cut into batches of
    `batch` rows. The rows of an incomplete last batch are left out. If there are fewer than `batch` training rows, each
    batch has all training rows. The training ends when a loss is not finite. Each step puts the network into training
    mode again, so the caller may change the mode between two steps.
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
