"""The rows of a diagnosis, its scores, and plain SGD are each compared with an oracle."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from foldserve.training.diagnose.sample import MAX_ROWS, draw_sample, train_sgd
from foldserve.training.diagnose.sections import (
    describe_rows,
)
from foldserve.training.fit.loop import Examples
from foldserve.training.table import schema
from tests.training.diagnose.support import small_sample

pytestmark = pytest.mark.usefixtures("one_thread")


def table(x, y, labels=()):
    columns = tuple(
        schema.Column(f"c{place}", "numeric", missing=bool(np.isnan(values).any())) for place, values in enumerate(x.T)
    )
    return schema.Table("made", "classification" if labels else "regression", "y", columns, x.astype("f4"), y, labels)


def test_a_sample_is_drawn_from_a_large_table_and_reported():
    rows = 3 * MAX_ROWS
    sample = draw_sample(table(np.arange(2 * rows).reshape(rows, 2), np.arange(rows, dtype="f8")), 1)
    assert len(sample.train) + len(sample.held_out) <= MAX_ROWS
    assert describe_rows(sample) == "20,000 of 60,000 rows, drawn at random: 19,000 for training, 1,000 held out"
    both = torch.cat([sample.train.x, sample.held_out.x])[:, 0]
    assert len(both.unique()) == MAX_ROWS  # no row is drawn twice


def test_columns_are_standardised_by_the_training_rows():
    x = np.random.default_rng(0).normal(3, 5, (200, 3))
    x[:, 1] = 7
    x[::4, 2] = np.nan
    sample = draw_sample(table(x, x[:, 0]), 0)
    assert sample.features == 4  # the third column has missing values, so it gives two features
    assert torch.allclose(sample.train.x.mean(0), torch.zeros(4), atol=1e-6)
    first = sample.train.x[:, 0].numpy()
    assert max(first.std(), np.ptp(first) / 6) == pytest.approx(1, abs=1e-5)
    assert (sample.train.x[:, 1] == 0).all()
    assert sample.train.x.isfinite().all()
    assert sample.held_out.x.isfinite().all()
    assert abs(float(sample.train.y.mean())) < 1e-6


def test_the_scores_are_scikit_learn_s():
    output, y = torch.randn(50, 3), torch.randint(3, (50,))
    assert small_sample().score(output, y) == pytest.approx(accuracy_score(y, output.argmax(1)))
    regression = replace(small_sample(), classification=False)
    value, target = torch.randn(50, 1), torch.randn(50)
    assert regression.score(value, target) == pytest.approx(r2_score(target, value[:, 0]))
    assert math.isnan(regression.score(torch.full((2, 1), torch.nan), torch.zeros(2)))


def test_sgd_is_plain_and_uses_every_row_once_per_pass():
    """For one Dense layer and squared error, the test computes the gradient by hand."""
    sample = replace(small_sample(), classification=False, outputs=1)
    y = torch.arange(12.0)
    sample = replace(sample, train=Examples(sample.train.x, y))
    network = nn.Linear(3, 1, bias=False)
    weight, x = network.weight.detach().double().numpy().copy(), sample.train.x.double().numpy()
    losses = [loss for _, loss in train_sgd(network, sample, batch=99, rate=0.1, steps=4, seed=0)]
    for loss in losses:  # each batch has all rows, in any order
        error = x @ weight[0] - y.numpy()
        assert loss == pytest.approx(np.mean(error**2), rel=1e-5)
        weight = weight - 0.1 * 2 * (error @ x) / len(x)
    np.testing.assert_allclose(network.weight.detach().numpy(), weight, rtol=1e-4)


def test_sgd_stops_at_a_loss_that_is_not_finite():
    steps = list(train_sgd(nn.Linear(3, 3), small_sample(), batch=4, rate=1e38, steps=50, seed=0))
    assert len(steps) < 50
    assert not math.isfinite(steps[-1][1])
    assert all(math.isfinite(loss) for _, loss in steps[:-1])
