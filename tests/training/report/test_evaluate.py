"""Tests the scores of arrays. Each score is compared with scikit-learn's score, or with the definition of the score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.inspection import permutation_importance as scikit_learn_importance
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from foldserve.service.bundle import Decision
from foldserve.training.report.evaluate import (
    keep_defined,
    measure_calibration,
    permutation_importance,
    score,
    score_baseline,
    score_classes,
)

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(400, 3)).astype(np.float32)
VALUES = X @ np.array([3.0, 1.0, 0.0]) + GENERATOR.normal(size=400)
CLASSES = np.digitize(VALUES, [-2, 2])


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(6, 60), st.sampled_from([1, 4, 50]))
def test_the_metrics_of_a_classification_are_scikit_learn_s(seed, classes, rows, scale):
    generator = np.random.default_rng(seed)
    logits = scale * generator.integers(-3, 4, (rows, classes))  # small integers, so that some probabilities are equal
    outputs = softmax(logits, 1).astype(np.float32)
    y = np.append(np.arange(classes), generator.integers(0, classes, rows - classes))
    exact = outputs.astype(np.float64) / outputs.sum(1, dtype=np.float64, keepdims=True)
    areas = [roc_auc_score(y == k, outputs[:, k]) for k in range(classes)]
    assert score("classification", y, outputs) == pytest.approx(
        {
            "accuracy": accuracy_score(y, outputs.argmax(1)),
            "log_loss": log_loss(y, exact, labels=range(classes)),
            "auc": areas[1] if classes == 2 else np.mean(areas),
        },
        rel=1e-9,
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([1e-6, 1.0, 1e9]))
def test_the_metrics_of_a_regression_are_scikit_learn_s(seed, rows, scale):
    generator = np.random.default_rng(seed)
    y = scale * generator.normal(size=rows)
    outputs = (y + scale * generator.normal(size=rows))[:, None].astype(np.float32)
    assert score("regression", y, outputs) == pytest.approx(
        {
            "rmse": root_mean_squared_error(y, outputs[:, 0]),
            "mae": mean_absolute_error(y, outputs[:, 0]),
            "r2": r2_score(y, outputs[:, 0]),
        },
        rel=1e-6,
    )


def test_a_metric_that_one_part_can_t_have_is_left_out_of_both():
    one_class = score("classification", np.zeros(3, np.int64), np.full((3, 2), 0.5))
    both = score("classification", np.array([0, 1]), np.full((2, 2), 0.5))
    kept = keep_defined({"validation": one_class, "test": both})
    assert {part: list(values) for part, values in kept.items()} == {
        "validation": ["accuracy", "log_loss"],
        "test": ["accuracy", "log_loss"],
    }


@pytest.mark.parametrize(("task", "y"), [("classification", CLASSES), ("regression", VALUES)])
def test_the_baseline_is_the_score_of_a_dummy_model_fitted_to_the_test_rows(task, y):
    if task == "classification":
        outputs = DummyClassifier(strategy="prior").fit(X, y).predict_proba(X)
    else:
        outputs = DummyRegressor().fit(X, y).predict(X)[:, None]
    assert score_baseline(task, y, outputs.shape[1]) == pytest.approx(score(task, y, outputs), abs=1e-12)


def test_a_baseline_without_rows_of_a_class_is_defined():
    assert score_baseline("classification", np.array([0, 0, 3]), 5)["accuracy"] == pytest.approx(2 / 3)


def test_a_class_without_rows_and_predictions_has_no_scores():
    always_2 = np.tile(np.eye(4)[2], (3, 1))
    absent, never, taken = (
        score_classes(np.array([1, 1, 1]), always_2, Decision(tuple(range(always_2.shape[1]))))[i] for i in (0, 1, 2)
    )
    assert (absent.rows, absent.predicted) == (0, 0)
    assert np.isnan([absent.precision, absent.recall, absent.f1, absent.baseline_f1]).all()
    assert np.isnan(never.precision)
    assert (never.recall, never.f1, never.baseline_f1) == (0, 0, 1)
    assert np.isnan(taken.recall)
    assert (taken.precision, taken.f1) == (0, 0)


def test_the_calibration_error_follows_its_definition():
    confidence = GENERATOR.uniform(0.5, 1, 1000)
    outputs = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)
    y = (GENERATOR.uniform(size=1000) > 0.8).astype(np.int64)
    found = measure_calibration(y, outputs)
    largest, right = outputs.max(1).astype(float), outputs.argmax(1) == y
    expected = 0.0
    for low, high in zip(found.edges[:-1], found.edges[1:], strict=True):
        inside = (largest > low) & (largest <= high)
        if inside.any():
            expected += inside.mean() * abs(largest[inside].mean() - right[inside].mean())
    assert found.error == pytest.approx(expected)
    assert found.share.sum() == pytest.approx(1)
    assert np.isnan(found.confidence[found.share == 0]).all()


def test_a_model_that_is_always_right_and_confident_is_calibrated():
    found = measure_calibration(np.array([0, 1, 2]), np.eye(3, dtype=np.float32))
    assert found.error == 0
    assert found.share[-1] == 1


def test_importance_agrees_with_scikit_learn():
    model = LogisticRegression().fit(X, CLASSES)
    found = permutation_importance(model.predict_proba, X, CLASSES, "classification", seed=1, repeats=30)
    expected = scikit_learn_importance(model, X, CLASSES, scoring="neg_log_loss", n_repeats=30, random_state=0)
    assert (found.metric, found.rows, found.repeats) == ("log_loss", 400, 30)
    np.testing.assert_allclose(found.mean, expected.importances_mean, rtol=0.05, atol=0.01)
    np.testing.assert_allclose(found.std, expected.importances_std, rtol=0.5, atol=0.01)


def test_importance_of_a_regression_is_in_the_target_s_units():
    model = LinearRegression().fit(X, VALUES)
    found = permutation_importance(
        lambda rows: model.predict(rows)[:, None], X, VALUES, "regression", seed=1, repeats=30
    )
    expected = scikit_learn_importance(
        model, X, VALUES, scoring="neg_root_mean_squared_error", n_repeats=30, random_state=0
    )
    assert found.metric == "rmse"
    np.testing.assert_allclose(found.mean, expected.importances_mean, rtol=0.05, atol=0.01)


def test_importance_leaves_the_rows_unchanged_and_depends_only_on_the_seed():
    before = X.copy()
    first, again, other = (
        permutation_importance(lambda rows: rows[:, :1], X, VALUES, "regression", seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(X, before)
    assert np.array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other.mean)
    assert first.mean[1:].tolist() == first.std[1:].tolist() == [0, 0]  # the model does not read these features


@pytest.mark.parametrize(("features", "rows"), [(1, 10_000), (50, 10_000), (2000, 10_000), (3, 5)])
def test_importance_predicts_a_bounded_number_of_rows(features, rows):
    predicted = []

    def predict(batch):
        predicted.append(len(batch))
        return batch[:, :1]

    x = np.zeros((rows, features), np.float32)
    found = permutation_importance(predict, x, np.zeros(rows), "regression", seed=0)
    assert sum(predicted) == found.rows * (1 + found.repeats * features)
    assert found.rows <= min(rows, 2000)
    assert sum(predicted) <= max(202_000, 64 * (1 + 2 * features))
