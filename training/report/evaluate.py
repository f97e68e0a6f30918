"""The quality of a model on rows whose targets are known: metrics, a baseline, classes, calibration, feature
importance.

The module works only on arrays. The module does not depend on networks, bundles or pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Decision, Task
from foldserve.training.report.curves import auc_by_class, mean_auc

METRIC_NAMES = {
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "auc": "AUC",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "cost": "cost",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
}
"""The metrics of `score` and their names on pages."""

_Part = Literal["validation", "test"]


def score(
    task: Task, y: npt.NDArray[Any], outputs: npt.NDArray[np.floating], decision: Decision | None = None
) -> dict[str, float]:
    """Score `outputs` [rows, outputs] against `y` [rows].

    In a classification, the result has `accuracy`, `log_loss` in nats, and `auc`, the area under the ROC curve. `auc`
    is NaN if the area under the curve is undefined. If `decision` has a threshold, the threshold decides the
    predictions, and the result also has `precision`, `recall`, `f1` and `cost`. In a regression, the result has `rmse`
    and `mae` in the target's units, and `r2`. decision: the decision rule; by default, a row is predicted as the class
    with the largest probability.
    """
    # The tests compare these metrics with scikit-learn's. This module does not import scikit-learn, because the import
    # takes a second.
    if task == "regression":
        residual = outputs[:, 0].astype(np.float64) - y
        squares = float(np.square(residual).mean())
        return {"rmse": math.sqrt(squares), "mae": float(abs(residual).mean()), "r2": _r2(squares, float(y.var()))}
    decision = decision or Decision(tuple(range(outputs.shape[1])))
    return {
        "accuracy": float((decision.classes(outputs) == y).mean()),
        "log_loss": _log_loss(y, outputs),
        "auc": mean_auc(y, outputs),
        **_score_threshold(decision, y, outputs),
    }


def _r2(squares: float, variance: float) -> float:
    """Compute R2 from the mean squared error and the variance of the targets.

    If all targets are equal, R2 is 1 for a model without any error, and 0 for every other model.
    """
    return 1 - squares / variance if variance else float(squares == 0)


def _log_loss(y: npt.NDArray[np.int64], outputs: npt.NDArray[np.floating]) -> float:
    of_true_class = np.take_along_axis(outputs, y[:, None], axis=1)[:, 0].astype(np.float64)
    # The sum of a row's float32 probabilities differs from 1 by up to 1e-7.
    of_true_class /= outputs.sum(1, dtype=np.float64)
    eps = np.finfo(np.float64).eps
    return float(-np.log(of_true_class.clip(eps, 1 - eps)).mean())


def keep_defined(scores: dict[_Part, dict[str, float]]) -> dict[_Part, dict[str, float]]:
    """Remove a metric from all parts of the table if it is undefined for one part. For example, the AUC is undefined
    for a part whose rows all have the same class.
    """
    undefined = {metric for values in scores.values() for metric, value in values.items() if math.isnan(value)}
    return {part: {m: v for m, v in values.items() if m not in undefined} for part, values in scores.items()}


def _score_threshold(decision: Decision, y: npt.NDArray[Any], outputs: npt.NDArray[np.floating]) -> dict[str, float]:
    """Return the `precision`, `recall` and `f1` of the positive class, and the mean `cost` per row.

    An undefined precision, recall or F1 is 0. The result has no `cost` if the threshold was not chosen by costs.
    """
    if decision.threshold is None:
        return {}
    found, true = decision.classes(outputs) == decision.positive, y == decision.positive
    both, predicted, positives = (int(np.count_nonzero(rows)) for rows in (found & true, found, true))
    scores = {
        "precision": both / max(predicted, 1),
        "recall": both / max(positives, 1),
        "f1": 2 * both / max(predicted + positives, 1),
    }
    if costs := decision.threshold.costs:
        scores["cost"] = (costs[0] * (predicted - both) + costs[1] * (positives - both)) / len(y)
    return scores


def score_baseline(task: Task, y: npt.NDArray[Any], outputs: int, decision: Decision | None = None) -> dict[str, float]:
    """Score the best constant answer with the metrics of `score`.

    A model that is not better than the best constant answer has learned nothing from the features.

    In a classification, the best constant answer is the share of each class in `y` [rows]. In a regression, the best
    constant answer is the mean of `y`. No other constant answer gets a better score on `y`. outputs: the number of
    outputs of the model. decision: the decision rule of the model; None means the default rule of `score`.
    """
    constant = np.full(1, y.mean()) if task == "regression" else np.bincount(y, minlength=outputs) / len(y)
    return score(task, y, np.tile(constant, (len(y), 1)), decision)


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class.

    rows: the number of rows of this class. predicted: the number of rows that were predicted as this class. An
    undefined figure is NaN. The precision is undefined if `predicted` is 0. The recall is undefined if `rows` is 0. The
    F1 is undefined if both `rows` and `predicted` are 0. baseline_f1: the F1 of the baseline that always answers the
    most frequent class. auc: the area under the ROC curve of this class against all other classes.
    """

    rows: int
    predicted: int
    precision: float
    recall: float
    f1: float
    baseline_f1: float
    auc: float


def count_confusions(y: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Count the rows by true and predicted class: [classes, classes]. y, predicted: class indices [rows]."""
    return np.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)


def score_classes(
    y: npt.NDArray[np.int64], outputs: npt.NDArray[np.floating], decision: Decision
) -> tuple[ClassScores, ...]:
    """Return the scores of each class. y: the true class indices [rows]. outputs: probabilities [rows, classes]."""
    predicted, classes = decision.classes(outputs), outputs.shape[1]
    rows, counts = (np.bincount(values, minlength=classes) for values in (y, predicted))
    right = np.bincount(y[y == predicted], minlength=classes)
    # The number of rows that the baseline predicts as each class.
    always = np.where(np.arange(classes) == np.bincount(y).argmax(), len(y), 0)
    columns = (
        rows,
        counts,
        _ratio(right, counts),
        _ratio(right, rows),
        _ratio(2 * right, rows + counts),
        _ratio(2 * np.minimum(always, rows), rows + always),
        auc_by_class(y, outputs),
    )
    return tuple(ClassScores(*scores) for scores in zip(*(c.tolist() for c in columns), strict=True))


@dataclass(frozen=True)
class Calibration:
    """The calibration of a model compares the confidence of its answers with the share of right answers. The confidence
    of an answer is the largest probability of the row.

    edges: [bins + 1], the edges of bins of equal width. share: [bins], the share of the rows in each bin. confidence,
    accuracy: [bins], the mean confidence and the accuracy in each bin. `confidence` and `accuracy` are NaN for an empty
    bin. error: the expected calibration error (Guo and others, 2017, arXiv:1706.04599). The expected calibration error
    is the mean of |accuracy - confidence| over the bins, weighted by the share of the rows in each bin.
    """

    edges: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    error: float


def measure_calibration(y: npt.NDArray[np.int64], outputs: npt.NDArray[np.floating], bins: int = 10) -> Calibration:
    """Measure the calibration of the probabilities `outputs` [rows, classes]. The true classes are `y` [rows]."""
    confidence = outputs.max(1).astype(np.float64).clip(0, 1)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], confidence, side="left")  # the upper edge belongs to the bin
    rows = np.bincount(bin_of, minlength=bins).astype(np.float64)
    sums = (np.bincount(bin_of, values, bins) for values in (confidence, outputs.argmax(1) == y))
    mean, right = (np.divide(total, rows, out=np.full(bins, np.nan), where=rows > 0) for total in sums)
    share = rows / len(y)
    return Calibration(edges, share, mean, right, float(np.nansum(share * abs(right - mean))))


@dataclass(frozen=True)
class Importances:
    """The importance of each feature. The importance is the increase of the loss `metric` after the values of the
    feature are shuffled among `rows` rows.

    mean, std: [features], the mean and the standard deviation over `repeats` shuffles, in the units of the metric.
    """

    metric: Literal["log_loss", "rmse"]
    rows: int
    repeats: int
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


# To compute the importances, the model predicts at most this number of rows, which takes about as long as one training
# epoch over 20,000 rows. The limit is a number of rows, because a limit on the time would give different figures in
# every run. For a table with many columns, the computation uses fewer rows and fewer shuffles.
_MAX_PREDICTIONS = 60_000
_MIN_ROWS, _MAX_ROWS = 64, 2_000


def permutation_importance(
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    task: Task,
    seed: int,
    repeats: int = 5,
) -> Importances:
    """Shuffle one feature after the other, and measure the model's loss (Breiman, 2001; Fisher and others, 2019).

    predict: a function that maps float32 [n, features] to [n, outputs] for any n. x: [rows, features]; y: [rows]. The
    function uses at most 2,000 rows, which are drawn at random with `seed`. For a table with many columns, the function
    uses fewer rows and fewer repeats, but at least 64 rows and 2 repeats. If two features have the same information,
    both importances are too low, because the model can use one of the features while the other is shuffled.
    """
    # scikit-learn's `permutation_importance` needs an estimator, and calls the estimator once per shuffle. This
    # function puts all shuffles of a feature into one batch. For a small network, one call with all shuffles is several
    # times faster than one call per shuffle.
    generator = np.random.default_rng(seed)
    features = x.shape[1]
    repeats = min(repeats, max(2, _MAX_PREDICTIONS // (features * _MIN_ROWS)))
    count = min(len(x), max(_MIN_ROWS, min(_MAX_ROWS, _MAX_PREDICTIONS // (features * repeats))))
    drawn = np.sort(generator.choice(len(x), count, replace=False))
    x, y = x[drawn], y[drawn]
    loss_before = _loss(task, y, predict(x))
    shuffled = np.tile(x, (repeats, 1))
    increase = np.empty((features, repeats))
    for feature, column in enumerate(x.T):
        shuffled[:, feature] = np.concatenate([generator.permutation(column) for _ in range(repeats)])
        outputs = predict(shuffled).reshape(repeats, count, -1)
        increase[feature] = [_loss(task, y, output) - loss_before for output in outputs]
        shuffled[:, feature] = np.tile(column, repeats)
    metric: Literal["log_loss", "rmse"] = "rmse" if task == "regression" else "log_loss"
    return Importances(metric, count, repeats, increase.mean(1), increase.std(1))


def _loss(task: Task, y: npt.NDArray[Any], outputs: npt.NDArray[np.floating]) -> float:
    if task == "regression":
        return math.sqrt(float(np.square(outputs[:, 0].astype(np.float64) - y).mean()))
    of_true_class = np.take_along_axis(outputs, y[:, None], axis=1).astype(np.float64)
    return float(-np.log(of_true_class.clip(np.finfo(np.float32).eps, 1)).mean())


def _ratio(counts: npt.NDArray[np.int64], of: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Divide `counts` by `of`, element by element. 0 / 0 is NaN."""
    ratio: npt.NDArray[np.float64] = np.divide(counts, of, out=np.full(len(counts), np.nan), where=of > 0)
    return ratio
