"""From many rows, the fit finds the true temperature. On few rows, the temperature stays near 1. A temperature changes
no predicted class.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from foldserve.training.fit.brent import minimise
from foldserve.training.fit.calibrate import fit_temperature


def drawn(rows, classes, known, seed=0):
    """Draw classes from log-probabilities. Return logits and classes. The logits are the log-probabilities times
    `known`.
    """
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 1.5, (rows, classes))
    y = (z + generator.gumbel(size=z.shape)).argmax(1)  # the Gumbel-max trick draws the class from softmax(z)
    return torch.from_numpy(known * z).float(), torch.from_numpy(y)


@pytest.mark.parametrize("known", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_known_temperature_is_recovered_from_many_rows(classes, known):
    assert fit_temperature(*drawn(20_000, classes, known)) == pytest.approx(known, rel=0.04)


def test_for_two_classes_the_temperature_is_the_inverse_slope_of_a_logistic_regression():
    logits, y = drawn(20_000, 2, 2.0)
    odds = (logits[:, 1] - logits[:, 0]).double().numpy()[:, None]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(odds, y.numpy()).coef_.item()
    assert fit_temperature(logits, y) == pytest.approx(1 / slope, rel=2e-3)


def test_a_few_confident_rows_change_the_temperature_little_if_right_or_wrong():
    sure = torch.eye(2).repeat(2, 1) * 4
    right = torch.tensor([0, 1, 0, 1])
    assert 0.9 < fit_temperature(sure, right) < 1
    assert 1 < fit_temperature(sure[:1], right[1:2]) < 2


def test_more_rows_of_the_same_kind_change_the_temperature_more():
    found = [fit_temperature(*drawn(rows, 3, 4.0)) for rows in (5, 50, 5000)]
    assert 1 < found[0] < found[1] < found[2] < 4.2


@settings(max_examples=300)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(-5, 5), st.floats(0.01, 9))
def test_the_minimum_is_scipy_s_bit_for_bit(roots, low, width):
    def cost(x):
        return sum(math.cosh(x - root) - 0.3 * abs(x - root) for root in roots) + math.sin(3 * x)

    found = minimise(cost, low, low + width)
    assert found == minimize_scalar(cost, bounds=(low, low + width), method="bounded").x


@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(2, 6), st.floats(1e-3, 1e4), st.integers(0, 1000))
def test_the_temperature_is_bounded_and_changes_no_argmax(rows, classes, known, seed):
    logits, y = drawn(rows, classes, known, seed)
    found = fit_temperature(logits, y)
    assert 1 / 8 <= found <= 8
    assert math.isfinite(found)
    assert torch.equal((logits / found).softmax(1).argmax(1), logits.argmax(1))
