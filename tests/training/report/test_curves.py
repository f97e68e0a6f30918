"""Curves over all thresholds are compared with scikit-learn's, on scores with many ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from foldserve.training.report.curves import auc_by_class, mean_auc, trace_curve

# Few different scores give many ties.
ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(positive for positive, _ in rows) < len(rows)
)


def arrays(rows):
    positive, scores = zip(*rows, strict=True)
    return np.array(positive), np.array(scores, np.float32) / 8


@given(ROWS)
def test_the_roc_curve_is_scikit_learn_s(rows):
    positive, scores = arrays(rows)
    curve = trace_curve(positive, scores)
    fpr, tpr, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, fpr)
    np.testing.assert_allclose(curve.recall, tpr)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert curve.auc == pytest.approx(roc_auc_score(positive, scores))


@given(ROWS)
def test_precision_and_recall_are_scikit_learn_s(rows):
    positive, scores = arrays(rows)
    curve = trace_curve(positive, scores)
    precision, recall, _ = precision_recall_curve(positive, scores)
    np.testing.assert_allclose(curve.precision[::-1], precision)
    np.testing.assert_allclose(curve.recall[::-1], recall)
    assert curve.average_precision == pytest.approx(average_precision_score(positive, scores))


@given(ROWS, st.integers(0, 8))
def test_the_point_of_a_threshold_is_that_of_the_rows_at_or_above_it(rows, eighths):
    positive, scores = arrays(rows)
    curve, threshold = trace_curve(positive, scores), eighths / 8
    place, predicted = curve.at(threshold), scores >= threshold
    assert curve.recall[place] == pytest.approx(recall_score(positive, predicted))
    if predicted.any():
        assert curve.precision[place] == pytest.approx(precision_score(positive, predicted))
    assert curve.predicted_share[place] == pytest.approx(predicted.mean())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)), min_size=8, max_size=40))
def test_the_auc_of_each_class_is_scikit_learn_s_and_nan_where_it_is_undefined(rows):
    y, *columns = (np.array(column) for column in zip(*rows, strict=True))
    scores = np.stack([*columns, np.ones(len(y)), -columns[0]], axis=1)
    found = auc_by_class(y, scores)
    for place, area in enumerate(found):
        own = y == place
        if own.all() or not own.any():
            assert np.isnan(area)
        else:
            assert area == pytest.approx(roc_auc_score(own, scores[:, place]))
    if set(y) == {0, 1, 2, 3}:
        assert mean_auc(y, scores) == pytest.approx(np.mean([roc_auc_score(y == k, scores[:, k]) for k in range(4)]))


def test_for_two_classes_the_auc_is_that_of_the_second():
    y, second = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.8, 0.7])
    outputs = np.stack([np.zeros(4), second], axis=1)
    assert mean_auc(y, outputs) == pytest.approx(roc_auc_score(y, second))
    assert np.isnan(mean_auc(np.zeros(4, np.int64), outputs))


def test_the_share_found_is_the_mean_over_all_orders_of_rows_with_equal_scores():
    positive, scores = np.array([1, 1, 0, 0, 0], bool), np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    curve = trace_curve(positive, scores)
    assert curve.found_in_first(0.2) == pytest.approx(1 / 2)
    # Three rows have the score 0.5. The row in second place is one of these three rows, so it is positive with a
    # probability of 1/3.
    assert curve.found_in_first(0.4) == pytest.approx((1 + 1 / 3) / 2)
    assert curve.found_in_first(1.0) == 1


@pytest.mark.parametrize("positive", [[False, False], [True, True]])
def test_rows_of_one_kind_have_no_curve(positive):
    assert trace_curve(np.array(positive), np.array([0.1, 0.2])) is None
