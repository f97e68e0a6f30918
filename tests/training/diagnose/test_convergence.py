"""The inputs of the sigmoids are compared with NumPy.

Each sentence is tested with figures that support its claim, and with figures that contradict the claim.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.diagnose import convergence, gradients, modes
from foldserve.training.diagnose.convergence import Run
from foldserve.training.diagnose.tables import list_medians, list_moments, list_speeds
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture
from tests.training.diagnose.support import NAN, TINY, forward, nothing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_percentiles_means_and_variances_are_numpy_s(digits, batch_norm):
    plan = replace(TINY, steps=1, rates=(0.5,))
    measured = convergence.select_pair(convergence.measure(digits, plan, nothing), 0.5)[batch_norm]
    torch.manual_seed(plan.seed)
    architecture = Architecture(hidden=(100,) * 3, activation="sigmoid", batch_norm=batch_norm, dropout=0)
    network = build_mlp(64, 10, architecture)
    seen = forward(network, digits.held_out.x.double().numpy(), training=True)
    inputs = [x for layer, x in zip(network, seen, strict=False) if isinstance(layer, nn.Sigmoid)]
    np.testing.assert_allclose(measured.means[0], [x.mean() for x in inputs], atol=1e-6)
    np.testing.assert_allclose(measured.variances[0], [x.var(0).mean() for x in inputs], rtol=1e-4)
    of_units = np.percentile(inputs[-1], (15, 50, 85), axis=0).T
    assert np.abs(of_units - measured.percentiles[0]).max(1).min() < 1e-5
    assert measured.steps == (0, 1)


def test_measurements_leave_the_running_statistics_unchanged(digits):
    network = build_mlp(64, 10, Architecture(hidden=(5, 5, 5), activation="sigmoid", dropout=0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    convergence.sigmoid_inputs(network, digits.held_out.x)
    modes.measure_gap(network, digits, 16, 0)
    gradients.gradient_norms(network, digits, digits.train)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_batch_norm_learns_digits_before_a_plain_network_does(digits):
    plan = replace(TINY, steps=100, rates=(0.1,))
    without, with_bn = convergence.select_pair(convergence.measure(digits, plan, nothing), 0.1)
    assert with_bn.scores[-1] > 0.9
    assert without.scores[-1] < 0.3


def made(batch_norm, scores, rate=1.0, medians=(0.0, 0.0), means=(0.0, 0.0), variances=(1.0, 1.0), diverged=None):
    steps = tuple(range(0, 10 * len(scores), 10))
    return Run(
        batch_norm,
        rate,
        steps,
        scores,
        tuple((m - 1, m, m + 1) for m in medians),
        tuple((m,) * 3 for m in means),
        tuple((v,) * 3 for v in variances),
        diverged,
    )


def test_the_sentence_on_speed_follows_the_figures():
    slow, fast, never = (0.1, 0.2, 0.4, 0.9), (0.1, 0.9, 0.9, 0.9), (0.1, 0.1, 0.1, 0.1)

    def said(without, with_bn):
        return convergence.describe_speed((made(False, without), made(True, with_bn)), "accuracy")

    assert "takes 10 steps with BN and 30 steps without to reach accuracy 0.8550, which supports" in said(slow, fast)
    assert "does not support the claim" in said(fast, slow)
    assert "does not support the claim" in said(fast, fast)
    assert "more than 30 steps without" in said(never, fast)
    assert "which supports" in said(never, fast)
    assert "does not support" in said(fast, never)
    assert "shows nothing" in said((-1.0, -2.0), (-3.0, -4.0))


def test_each_network_is_compared_at_its_best_rate():
    """With equal learning rates, only the network with BN learns. With a better learning rate, the network without BN
    is as fast as the network with BN.
    """
    never, fast = (0.1, 0.1), (0.1, 0.9)
    runs = (made(False, never), made(True, fast), made(False, fast, rate=2.0), made(True, never, rate=2.0))
    sentence = convergence.describe_speed(runs, "accuracy")
    assert "10 steps with BN and 10 steps without" in sentence
    assert "does not support" in sentence


def test_the_table_of_speeds_has_every_run():
    lost = made(False, (0.1, NAN), rate=9.0, diverged=3)
    rows = list_speeds((made(False, (0.1, 0.2)), made(True, (0.1, 0.9)), lost, made(True, (0.1, 0.9), rate=9.0)), "R2")
    assert rows == (
        ("learning rate", "to R2 0.8550", "best R2"),
        ("1, without BN", "more than 10 steps", "0.2000"),
        ("1, with BN", "10 steps", "0.9000"),
        ("9, without BN", "diverged at step 3", "0.1000"),
        ("9, with BN", "10 steps", "0.9000"),
    )


def test_the_sentences_on_sigmoid_inputs_follow_the_figures():
    still, moved = made(True, (0.1, 0.9)), made(False, (0.1, 0.9), medians=(0, 3), means=(0, 2), variances=(1, 4))
    assert "does not" not in convergence.describe_percentiles(moved, still)
    assert list_medians((moved, still))[1:] == (("without BN", "3.0"), ("with BN", "0"))
    assert list_moments((moved, still))[1:] == (("without BN", "2.0", "4.0"), ("with BN", "0", "1.0"))
    assert "does not support" in convergence.describe_percentiles(still, moved)
    assert "constant here" in convergence.describe_moments(moved, still)
    drifting = made(True, (0.1, 0.9), means=(0, 1), variances=(1, 2))
    assert "steadier, but not constant" in convergence.describe_moments(moved, drifting)
    mixed = made(True, (0.1, 0.9), means=(0, 1), variances=(1, 9))
    assert "only one of" in convergence.describe_moments(moved, mixed)
    assert "neither of" in convergence.describe_moments(still, drifting)
    lost = made(False, (0.1, NAN), medians=(0, NAN), means=(0, NAN), variances=(1, NAN), diverged=7)
    for about in (convergence.describe_percentiles, convergence.describe_moments):
        assert "diverged without BN (step 7)" in about(lost, still)


def test_a_divergence_is_a_result(digits):
    plan = replace(TINY, rates=(1e38,))
    for measured in convergence.measure(digits, plan, nothing):
        assert measured.diverged
        assert measured.steps[-1] == measured.diverged
        assert math.isnan(measured.scores[-1])
        assert all(map(math.isnan, measured.movement))
