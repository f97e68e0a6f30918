"""Gradient norms are compared with finite differences and theory.

Each sentence is tested with figures that support its claim, and with figures that contradict the claim.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.diagnose import gradients
from foldserve.training.diagnose.gradients import Depth
from foldserve.training.diagnose.tables import list_growth, list_scores
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture
from tests.training.diagnose.support import NAN, TINY, forward, log_loss, nothing, small_sample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_norms_are_those_of_finite_differences(activation, batch_norm):
    torch.manual_seed(3)
    sample = small_sample()
    network = build_mlp(
        3, 3, Architecture(hidden=(4, 4), activation=activation, batch_norm=batch_norm, dropout=0)
    ).double()
    x, y = sample.train.x.double().numpy(), sample.train.y.numpy()

    def loss():
        return log_loss(forward(network, x, training=True)[-1], y)

    expected = []
    for layer in [layer for layer in network if isinstance(layer, nn.Linear)][:-1]:
        squares = 0.0
        for value in layer.weight.detach().view(-1).split(1):
            was, step = value.item(), 1e-6
            value.fill_(was + step)
            above = loss()
            value.fill_(was - step)
            squares += ((above - loss()) / (2 * step)) ** 2
            value.fill_(was)
        expected.append(math.sqrt(squares))
    np.testing.assert_allclose(gradients.gradient_norms(network, sample, sample.train), expected, rtol=1e-5)


def test_growth_is_the_ratio_of_a_geometric_sequence():
    assert gradients.growth((999.0, 27.0, 9.0, 3.0, 1.0)) == pytest.approx(3)
    assert gradients.growth((999.0, 1.0, 2.0, 4.0)) == pytest.approx(0.5)
    for norms in ((1.0,), (1.0, 2.0), (1.0, 2.0, 0.0), (1.0, 2.0, NAN), (1.0, math.inf, 2.0)):
        assert math.isnan(gradients.growth(norms))


def test_digits_show_the_predicted_growth(digits):
    """With BN, each layer multiplies the squared gradient norm by 1.467 (Yang et al., 2019).

    Without BN, the initialisation of He et al. keeps the gradient norm constant across the layers.
    """
    measured = gradients.measure(digits, replace(TINY, depths=(48,), gradient_steps=1), nothing)
    growth = {(m.activation, m.batch_norm): gradients.growth(m.initial) for m in measured}
    assert growth["relu", True] ** 2 == pytest.approx(1.467, rel=0.06)
    assert growth["relu", False] == pytest.approx(1, abs=0.06)
    assert growth["sigmoid", False] < 0.2  # the steepest slope of the sigmoid is 1/4
    assert growth["sigmoid", True] == pytest.approx(1, abs=0.06)
    assert pytest.approx(1.467, rel=1e-3) == gradients.PREDICTED_GROWTH**2


def depths(sigmoid, sigmoid_bn, relu, relu_bn, trained_bn=1.0, diverged=None):
    def norms(rate, deep=16):
        return tuple(rate**-layer for layer in range(deep))

    return (
        Depth("sigmoid", False, 16, norms(sigmoid), norms(sigmoid), 0.1, None),
        Depth("sigmoid", True, 16, norms(sigmoid_bn), norms(sigmoid_bn), 0.9, None),
        Depth("relu", False, 16, norms(relu), (NAN,) * 16, NAN, 5),
        Depth("relu", True, 16, norms(relu_bn), norms(trained_bn), 0.8, diverged),
    )


def test_the_sentence_on_initial_gradients_follows_the_figures():
    usual = gradients.describe_initial(depths(0.2, 1.02, 1.0, 1.2))
    assert "sigmoid network vanishes without BN and stays about the same with it" in usual
    assert "with BN explodes, which agrees with the prediction." in usual
    other = gradients.describe_initial(depths(1.5, 0.5, 0.7, 0.9))
    assert "sigmoid network explodes without BN and vanishes with it" in other
    assert "with BN vanishes, which does not agree" in other
    assert "can't be followed" in gradients.describe_initial(depths(0.2, 1.0, 1.0, NAN))


def test_the_tables_of_gradients_have_the_factors_and_the_scores():
    measured = depths(0.2, 1.02, 1.0, 1.2, trained_bn=1.01)
    assert list_growth(measured)[1:] == (
        ("sigmoid, without BN", "0.2000", ""),
        ("sigmoid, with BN", "1.020", ""),
        ("relu, without BN", "1.000", ""),
        ("relu, with BN", "1.200", "1.211"),
    )
    scores = list_scores(measured, "accuracy")
    assert scores[0] == ("network", "factor per layer", "accuracy, 16 layers")
    assert scores[3:] == (("relu, without BN", "\N{EN DASH}", "diverged"), ("relu, with BN", "1.010", "0.80"))


def test_the_sentence_on_trained_gradients_follows_the_figures():
    def said(**changes):
        return gradients.describe_trained(depths(0.2, 1, 1, 1.2, **changes), 7)

    assert said(trained_bn=1.01).startswith("7 steps of training have levelled")
    assert "have not levelled" in said(trained_bn=1.19)
    assert "can't be followed" in said(trained_bn=NAN)
    assert "diverged at step 3" in said(diverged=3)
