"""The losses in training mode and in evaluation mode are compared with NumPy.

The sentence is tested with figures that support its claim, and with figures that contradict the claim.
"""

from dataclasses import replace

import pytest

from foldserve.training.diagnose import modes
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.sample import train_sgd
from foldserve.training.diagnose.tables import list_gaps
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture
from tests.training.diagnose.support import NAN, forward, log_loss, small_sample

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_losses_match_numpy():
    sample = small_sample()
    network = build_mlp(3, 3, Architecture(hidden=(4, 4), dropout=0))
    for _ in train_sgd(network, sample, batch=4, rate=0.1, steps=5, seed=0):
        pass
    measured = modes.measure_gap(network, sample, len(sample.held_out), 0)
    x, y = sample.held_out.x.double().numpy(), sample.held_out.y.numpy()
    evaluation, training = (forward(network, x, training=t)[-1] for t in (False, True))
    assert measured.evaluation_loss == pytest.approx(log_loss(evaluation, y), rel=1e-5)
    assert measured.training_loss == pytest.approx(log_loss(training, y), rel=1e-5)
    assert measured.evaluation_score == pytest.approx((evaluation.argmax(1) == y).mean())
    assert measured.training_score == pytest.approx((training.argmax(1) == y).mean())


def test_without_batch_norm_there_is_no_gap():
    measured = modes.measure_gap(build_mlp(3, 3, Architecture(batch_norm=False, dropout=0)), small_sample(), 4, 0)
    assert measured.loss == pytest.approx(0, abs=1e-6)
    assert measured.score == 0


def test_the_sentence_on_the_gap_follows_the_figures():
    wide, narrow, lost = Gap(2, 1.5, 1.0, 0.5, 0.75), Gap(64, 0.4, 0.5, 0.9, 0.88), Gap(8, NAN, NAN, NAN, NAN)
    usual = modes.describe_gap((wide, lost, narrow))
    assert "closes as batches grow from 2 to 64 rows; training diverged with batches of 8." in usual
    assert "does not close" in modes.describe_gap((replace(wide, batch=2, evaluation_loss=1.45), narrow))
    assert "nothing to compare" in modes.describe_gap((lost, narrow))
    assert "nothing to compare" in modes.describe_gap(())
    assert list_gaps((wide, narrow), "accuracy")[1:] == (
        ("2", "1.500", "1.000", "0.5000", "0.7500"),
        ("64", "0.4000", "0.5000", "0.9000", "0.8800"),
    )
