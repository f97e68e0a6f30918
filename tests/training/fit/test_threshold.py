"""No threshold is better than the chosen threshold. Among equally good thresholds, the one that suits calibrated
probabilities is chosen.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from foldserve.service.bundle import Decision
from foldserve.training.fit.threshold import choose_threshold
from foldserve.training.plan import DecisionOptions

LABELS = ("no", "yes")
rows = st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=2, max_size=12)
costs = st.sampled_from(["1", "0.5", "2", "10"])


def choose(rule, y, probabilities, positive=1):
    outputs = np.empty((len(y), 2), np.float32)
    outputs[:, positive], outputs[:, 1 - positive] = probabilities, 1 - np.array(probabilities)
    classes = np.where(y, positive, 1 - positive)
    return choose_threshold(DecisionOptions(threshold=rule), LABELS, positive, classes, outputs), outputs


def candidates(probabilities):
    """List enough thresholds to produce every possible set of predictions."""
    return sorted(
        {0.0, 1.0, *map(float, probabilities), *(float(np.nextafter(p, np.float32(2))) for p in probabilities)}
    )


@given(rows, st.sampled_from([0, 1]))
def test_no_threshold_has_a_larger_f1(drawn, positive):
    y, probabilities = np.array([row[0] for row in drawn]), np.array([row[1] for row in drawn], np.float32)
    found, outputs = choose("f1", y, probabilities, positive)
    assert (found.positive, found.rule) == (LABELS[positive], "f1")
    predicted = Decision(LABELS, found).classes(outputs) == positive
    reached = f1_score(y, predicted, zero_division=0)
    assert reached >= max(f1_score(y, probabilities >= t, zero_division=0) for t in candidates(probabilities) if t <= 1)


@given(rows, costs, costs)
def test_no_threshold_costs_less(drawn, false_positive, false_negative):
    y, probabilities = np.array([row[0] for row in drawn]), np.array([row[1] for row in drawn], np.float32)
    found, outputs = choose(f"cost:{false_positive},{false_negative}", y, probabilities)
    assert found.costs == (float(false_positive), float(false_negative))

    def cost(predicted):
        return float(false_positive) * np.sum(predicted & ~y) + float(false_negative) * np.sum(~predicted & y)

    predicted = Decision(LABELS, found).classes(outputs) == 1
    assert cost(predicted) <= min(cost(probabilities >= t) for t in candidates(probabilities) if t <= 1)


@pytest.mark.parametrize(("rule", "expected"), [("cost:1,1", 0.5), ("cost:1,4", 0.2), ("cost:9,1", 0.9)])
def test_costs_give_the_best_threshold_of_calibrated_probabilities(rule, expected):
    generator = np.random.default_rng(0)
    probabilities = generator.random(200_000).astype(np.float32)
    found, _ = choose(rule, generator.random(200_000) < probabilities, probabilities)
    assert found.value == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("rule", "expected"), [("f1", 0.5), ("cost:1,4", 0.2), ("cost:1,99", 0.46)])
def test_among_equally_good_thresholds_the_one_for_calibrated_probabilities_is_chosen(rule, expected):
    # For calibrated probabilities, the costs 1 and 99 give the threshold 0.01. Here, 0.01 is not among the best
    # thresholds, so the middle of the best thresholds is chosen.
    found, _ = choose(rule, np.array([False, False, True]), np.array([0.01, 0.016, 0.9], np.float32))
    assert found.value == expected


def test_a_given_threshold_is_kept_with_the_digits_of_a_float32():
    found, _ = choose("0.123456789012", np.array([True, False]), np.array([0.5, 0.5], np.float32))
    assert (found.value, found.rule) == (float(str(np.float32(0.123456789012))), "value")


@pytest.mark.parametrize("rule", ["f2", "", "cost:", "cost:1", "cost:1,2,3", "cost:0,1", "cost:1,inf", "cost:nan,1"])
def test_another_rule_is_refused(rule):
    with pytest.raises(ValueError, match="--threshold must be"):
        DecisionOptions(threshold=rule)


@pytest.mark.parametrize("rule", ["-0.1", "1.5", "nan", "inf"])
def test_a_threshold_that_is_no_probability_is_refused(rule):
    with pytest.raises(ValueError, match="--threshold must be"):
        DecisionOptions(threshold=rule)
