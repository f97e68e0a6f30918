"""Chooses the decision threshold of a model with two classes, on rows that the network was not trained on.

The module works only on arrays. The module service/bundle/decision.py applies the threshold.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Label, Threshold
from foldserve.training.plan import DecisionOptions

_Probabilities = npt.NDArray[np.float32]


def choose_threshold(
    options: DecisionOptions,
    labels: tuple[Label, ...],
    positive: int,
    y: npt.NDArray[np.int64],
    outputs: _Probabilities,
) -> Threshold:
    """Return the threshold that follows from the options.

    y: int64 [rows], true classes. outputs: float32 [rows, 2], probabilities. positive: the index of the positive class.
    With the rule `f1`, the function chooses the threshold that gives the largest F1 of the positive class. With the
    rule `cost:FP,FN`, it chooses the threshold that gives the smallest total cost of the errors. If several intervals
    of thresholds are equally good, the function chooses the interval nearest to a preferred threshold. The preferred
    threshold is 0.5 for the rule `f1`. For the rule `cost:FP,FN`, the preferred threshold is FP / (FP + FN), which is
    the best threshold if the probabilities are calibrated (Elkan, 2001, "The foundations of cost-sensitive learning").
    If the preferred threshold is in the chosen interval, the function returns the preferred threshold. If the preferred
    threshold is outside the interval, the function returns a number with few digits near the middle of the interval.
    """
    chosen = options.value
    rule = "value"
    if chosen is None:
        costs = options.costs
        rule = "f1" if costs is None else "cost:{:.9g},{:.9g}".format(*costs)
        preferred = 0.5 if costs is None else costs[0] / sum(costs)
        low, high, gains = _intervals(y == positive, outputs[:, positive], costs)
        best = np.flatnonzero(gains >= gains.max())
        distance = np.maximum(low[best] - preferred, preferred - high[best])
        place = best[distance.argmin()]
        chosen = _value_in(np.float32(low[place]), np.float32(high[place]), preferred)
    # The stored threshold is the shortest decimal text of the float32 nearest to `chosen`, so that every program that
    # reads the threshold gets the same float32.
    return Threshold(positive=labels[positive], value=float(str(np.float32(chosen))), rule=rule)


def _intervals(
    is_positive: npt.NDArray[np.bool_], probabilities: _Probabilities, costs: tuple[float, float] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return all intervals of thresholds as three arrays: the lower ends, the upper ends and the gains.

    All thresholds t with low < t <= high lead to the same predictions. With the rule `f1`, the gain of an interval is
    the F1 of its predictions; with the rule `cost:FP,FN`, it is minus their total cost.
    """
    edges, group = np.unique(probabilities, return_inverse=True)
    rows = np.bincount(group, minlength=len(edges))
    positives = np.bincount(group, weights=is_positive, minlength=len(edges))
    # predicted[k] counts the rows whose probability is at least edges[k]. The last entry of `predicted` is for a
    # threshold above all probabilities.
    predicted = np.append(rows[::-1].cumsum()[::-1], 0)
    found = np.append(positives[::-1].cumsum()[::-1], 0.0)
    total = positives.sum()
    if costs is None:
        gains = 2 * found / np.maximum(predicted + total, 1)
    else:
        gains = -(costs[0] * (predicted - found) + costs[1] * (total - found))
    low, high = np.append(-1.0, edges), np.append(edges, 1.0)
    possible = low < high
    return low[possible], high[possible], gains[possible]


def _value_in(low: np.float32, high: np.float32, preferred: float) -> float:
    """Return a threshold that is at least 0, above `low`, and at most `high`."""
    if low < np.float32(preferred) <= high:
        return preferred
    middle = (max(float(low), 0.0) + float(high)) / 2
    short = (round(middle, digits) for digits in range(2, 10))
    return next((value for value in short if low < np.float32(value) <= high), float(high))
