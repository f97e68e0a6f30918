"""What a model is worth on rows with known targets: metrics, a baseline, classes, calibration, what each feature gives.

It knows arrays alone: no network, no bundle on disk, no page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
)

from foldserve.service.bundle import Task


def metrics(task: Task, y: npt.NDArray[Any], outputs: npt.NDArray[np.floating]) -> dict[str, float]:
    """Score `outputs` [rows, outputs] against `y` [rows].

    Classification: `accuracy`, and `log_loss` in nats. Regression, in the target's units: `rmse`, and `r2`.
    """
    if task == "regression":
        values = outputs[:, 0].astype(np.float64)
        return {"rmse": float(root_mean_squared_error(y, values)), "r2": float(r2_score(y, values))}
    # float32 rows sum to 1 within 1e-7 only; scikit-learn warns at less than float64's precision.
    probabilities = outputs.astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    classes = np.arange(outputs.shape[1])
    return {
        "accuracy": float(accuracy_score(y, outputs.argmax(1))),
        "log_loss": float(log_loss(y, probabilities, labels=classes)),
    }


def baseline(task: Task, y: npt.NDArray[Any], outputs: int) -> dict[str, float]:
    """Score the best answer that looks at no feature, as `metrics` does: what a model must beat to be of any use.

    It is the shares of the classes, and so the most frequent one, or the mean, of `y` [rows] itself: no constant does
    better on these rows. outputs: columns of the model.
    """
    constant = np.full(1, y.mean()) if task == "regression" else np.bincount(y, minlength=outputs) / len(y)
    return metrics(task, y, np.tile(constant, (len(y), 1)))


@dataclass(frozen=True)
class ClassFigures:
    """One class on the rows that were scored: how many are of it, how many were taken for it, and how well.

    NaN is undefined: a precision where no row was taken for it, a recall without rows, an F1 where both are.
    baseline_f1: of always answering the most frequent class.
    """

    rows: int
    predicted: int
    precision: float
    recall: float
    f1: float
    baseline_f1: float


def per_class(y: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int) -> tuple[ClassFigures, ...]:
    """Score every class of `classes` by `y` and `predicted`, indices [rows]."""
    majority = np.full_like(y, np.bincount(y).argmax())
    labels = np.arange(classes)
    precision, recall, f1, rows = precision_recall_fscore_support(y, predicted, labels=labels, zero_division=np.nan)
    baseline_f1 = f1_score(y, majority, labels=labels, average=None, zero_division=np.nan)
    counts = np.bincount(predicted, minlength=classes)
    columns = (rows, counts, precision, recall, f1, baseline_f1)
    return tuple(ClassFigures(*figures) for figures in zip(*(c.tolist() for c in columns), strict=True))


@dataclass(frozen=True)
class Calibration:
    """Whether a confidence, the largest probability of a row, is the probability of being right.

    edges: [bins + 1], equal in width; share of the rows, mean confidence and accuracy of each bin: [bins], the latter
    two NaN where a bin is empty. error: the expected calibration error, the mean of |accuracy - confidence| over the
    rows, by bins (Guo and others, 2017, arXiv:1706.04599).
    """

    edges: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    error: float


def calibration(y: npt.NDArray[np.int64], outputs: npt.NDArray[np.floating], bins: int = 10) -> Calibration:
    """Measure the calibration of `outputs` [rows, classes], probabilities, against the classes `y` [rows]."""
    confidence = outputs.max(1).astype(np.float64).clip(0, 1)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], confidence, side="left")  # a bin holds its upper edge
    rows = np.bincount(bin_of, minlength=bins).astype(np.float64)
    sums = (np.bincount(bin_of, values, bins) for values in (confidence, outputs.argmax(1) == y))
    mean, right = (np.divide(total, rows, out=np.full(bins, np.nan), where=rows > 0) for total in sums)
    share = rows / len(y)
    return Calibration(edges, share, mean, right, float(np.nansum(share * abs(right - mean))))


@dataclass(frozen=True)
class Importances:
    """How much worse `metric` gets on `rows` rows when one feature's values are shuffled among them.

    mean, std: [features], over `repeats` shuffles, in the metric's units.
    """

    metric: Literal["log_loss", "rmse"]
    rows: int
    repeats: int
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


# Rows that are put through the model in all: about the work of one epoch over a third as many. A count leaves the
# figure the same from run to run, as a clock would not. Of a wide table fewer rows are shuffled, and less often.
_PREDICTIONS = 60_000
_FEWEST, _MOST = 64, 2_000


def permutation_importance(
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    task: Task,
    seed: int,
    repeats: int = 5,
) -> Importances:
    """Shuffle one feature after the other, and see what the model loses (Breiman, 2001; Fisher and others, 2019).

    predict: float32 [any rows, features] -> [rows, outputs]. x: [rows, features]; y: [rows]. Of many rows at most
    2,000 are drawn with `seed`; of a wide table fewer, and fewer `repeats`: at least 64 rows, twice. Two features that
    say the same hide each other: neither is missed alone.
    """
    # scikit-learn's own calls the model once a shuffle, on an estimator; a batch of all shuffles is several times as
    # fast on a small network.
    generator = np.random.default_rng(seed)
    features = x.shape[1]
    repeats = min(repeats, max(2, _PREDICTIONS // (features * _FEWEST)))
    count = min(len(x), max(_FEWEST, min(_MOST, _PREDICTIONS // (features * repeats))))
    drawn = np.sort(generator.choice(len(x), count, replace=False))
    x, y = x[drawn], y[drawn]
    before = _loss(task, y, predict(x))
    shuffled = np.tile(x, (repeats, 1))
    increase = np.empty((features, repeats))
    for feature, column in enumerate(x.T):
        shuffled[:, feature] = np.concatenate([generator.permutation(column) for _ in range(repeats)])
        outputs = predict(shuffled).reshape(repeats, count, -1)
        increase[feature] = [_loss(task, y, output) - before for output in outputs]
        shuffled[:, feature] = np.tile(column, repeats)
    metric: Literal["log_loss", "rmse"] = "rmse" if task == "regression" else "log_loss"
    return Importances(metric, count, repeats, increase.mean(1), increase.std(1))


def _loss(task: Task, y: npt.NDArray[Any], outputs: npt.NDArray[np.floating]) -> float:
    if task == "regression":
        return float(root_mean_squared_error(y, outputs[:, 0].astype(np.float64)))
    # Not scikit-learn's: its checks of the whole matrix cost more than the network does.
    of_truth = np.take_along_axis(outputs, y[:, None], axis=1).astype(np.float64)
    return float(-np.log(of_truth.clip(np.finfo(np.float32).eps, 1)).mean())
