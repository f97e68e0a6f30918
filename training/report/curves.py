"""Curves over all decision thresholds: ROC, precision and recall, lift, and the areas below them.

The module works only on arrays. `positive` is bool [rows]: whether a row belongs to the class. `scores` is [rows]: the
probability of this class. Rows with equal scores always fall on the same side of a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Curve:
    """The counts at each threshold, from the highest threshold to the lowest. All arrays are [points].

    A row counts as predicted if its score is at least the threshold. The first point has the threshold infinity, at
    which no row is predicted. found: the number of predicted rows that belong to the class. wrong: the number of
    predicted rows that do not belong to the class.
    """

    thresholds: Values
    found: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.int64]

    @property
    def recall(self) -> Values:
        """The share of the rows of the class that are predicted; also the true positive rate."""
        return _share_of_last(self.found)

    @property
    def false_positive_rate(self) -> Values:
        """The share of the other rows that are predicted."""
        return _share_of_last(self.wrong)

    @property
    def precision(self) -> Values:
        """The share of the predicted rows that belong to the class. It is 1 where no row is predicted."""
        predicted = self.found + self.wrong
        precision: Values = np.divide(self.found, predicted, out=np.ones(len(predicted)), where=predicted > 0)
        return precision

    @property
    def predicted_share(self) -> Values:
        """The share of all rows that are predicted."""
        return _share_of_last(self.found + self.wrong)

    @property
    def auc(self) -> float:
        """The area under the ROC curve: the chance that a row of the class has a higher score than another row."""
        return float(np.trapezoid(self.recall, self.false_positive_rate))

    @property
    def average_precision(self) -> float:
        """The mean of the precision over the recall, as a sum of rectangles."""
        return float((np.diff(self.recall) * self.precision[1:]).sum())

    def at(self, threshold: float) -> int:
        """Return the index of the point where the rows with a score of at least `threshold` are predicted."""
        return int(np.searchsorted(-self.thresholds, -threshold, side="right")) - 1

    def found_in_first(self, share: float) -> float:
        """Return the share of the class that is found if `share` of all rows are predicted, the highest scores first.

        If the limit is among rows with equal scores, a part of them counts, as if these rows were in random order.
        """
        return float(np.interp(share, self.predicted_share, self.recall))


def _share_of_last(counts: npt.NDArray[np.int64]) -> Values:
    shares: Values = counts / counts[-1]
    return shares


def trace_curve(positive: npt.NDArray[np.bool_], scores: Scores) -> Curve | None:
    """Return the curve, with one point for each different score; None if all rows are of the class, or no row is."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # the last row of each different score
    found = np.cumsum(positive[order])[last]
    return Curve(
        np.append(math.inf, ordered[last]),
        np.append(0, found),
        np.append(0, last + 1 - found),
    )


def auc_by_class(y: npt.NDArray[np.int64], outputs: Scores) -> Values:
    """Return the area under the ROC curve of each class against the others, [classes].

    y: class indices [rows]. outputs: probabilities [rows, classes]. The area is NaN for a class that has no rows or
    that has all rows. The area is computed from ranks (Mann and Whitney, 1947), so no curve is needed.
    """
    areas = np.full(outputs.shape[1], np.nan)
    for place, count in enumerate(np.bincount(y, minlength=len(areas)).tolist()):
        if not 0 < count < len(y):
            continue
        column = outputs[:, place]
        own, others = column[y == place], np.sort(column[y != place])
        below = np.searchsorted(others, own, side="left").sum() + np.searchsorted(others, own, side="right").sum()
        areas[place] = below / (2 * count * len(others))
    return areas


def mean_auc(y: npt.NDArray[np.int64], outputs: Scores) -> float:
    """Return the AUC of a classifier.

    For two classes, this is the AUC of the second class. For more classes, it is the mean AUC. A class without an AUC
    is left out. The result is NaN if no class has an AUC.
    """
    if outputs.shape[1] == 2:
        return float(auc_by_class(y, outputs)[1])
    areas = auc_by_class(y, outputs)
    defined = areas[~np.isnan(areas)]
    return float(defined.mean()) if len(defined) else math.nan
