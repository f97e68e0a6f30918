"""Curves over all decision thresholds: ROC, precision and recall, lift, and the areas below these curves.

The module works only on arrays. `positive` is a bool array [rows], which is True for each row of the class. `scores` is
an array [rows] with the probability of this class for each row. Rows with equal scores always fall on the same side of
a threshold.
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
    """The numbers of right and wrong predictions at each threshold, from the highest threshold to the lowest. All
    arrays have the shape [points].

    A row is predicted as the class if its score is at least the threshold. The first point has the threshold infinity,
    so no row is predicted as the class. found: the number of rows of the class that are predicted as the class. wrong:
    the number of rows of other classes that are predicted as the class.
    """

    thresholds: Values
    found: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.int64]

    @property
    def recall(self) -> Values:
        """The recall, or true positive rate: the share of the class's rows that are predicted as the class."""
        return _share_of_last(self.found)

    @property
    def false_positive_rate(self) -> Values:
        """The share of the rows of other classes that are wrongly predicted as the class."""
        return _share_of_last(self.wrong)

    @property
    def precision(self) -> Values:
        """The share of rows of the class among all rows that are predicted as the class. If a threshold predicts no row
        as the class, the precision is 1.
        """
        predicted = self.found + self.wrong
        precision: Values = np.divide(self.found, predicted, out=np.ones(len(predicted)), where=predicted > 0)
        return precision

    @property
    def predicted_share(self) -> Values:
        """The share of all rows that are predicted as the class."""
        return _share_of_last(self.found + self.wrong)

    @property
    def auc(self) -> float:
        """The area under the ROC curve. The area is the chance that a row of the class has a higher score than a row of
        another class.
        """
        return float(np.trapezoid(self.recall, self.false_positive_rate))

    @property
    def average_precision(self) -> float:
        """The area under the curve of precision against recall, computed as a sum of rectangles."""
        return float((np.diff(self.recall) * self.precision[1:]).sum())

    def at(self, threshold: float) -> int:
        """Return the index of the point on the curve for `threshold`."""
        return int(np.searchsorted(-self.thresholds, -threshold, side="right")) - 1

    def found_in_first(self, share: float) -> float:
        """Return the recall if only the rows with the highest scores are predicted as the class. share: the share of
        these rows among all rows.

        If `share` includes only some of several rows with equal scores, the result is the expected recall for a random
        order of these rows.
        """
        return float(np.interp(share, self.predicted_share, self.recall))


def _share_of_last(counts: npt.NDArray[np.int64]) -> Values:
    shares: Values = counts / counts[-1]
    return shares


def trace_curve(positive: npt.NDArray[np.bool_], scores: Scores) -> Curve | None:
    """Return the curve, which has one point for each different score. Return None if all rows belong to the class, or
    if no row does.
    """
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # the index of the last row with each score
    found = np.cumsum(positive[order])[last]
    return Curve(
        np.append(math.inf, ordered[last]),
        np.append(0, found),
        np.append(0, last + 1 - found),
    )


def auc_by_class(y: npt.NDArray[np.int64], outputs: Scores) -> Values:
    """Return the area under the ROC curve of each class against all other classes, [classes].

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

    For two classes, the result is the AUC of the second class. For more than two classes, the result is the mean of the
    AUCs of all classes. A class without an AUC is left out. The result is NaN if no class has an AUC.
    """
    if outputs.shape[1] == 2:
        return float(auc_by_class(y, outputs)[1])
    areas = auc_by_class(y, outputs)
    defined = areas[~np.isnan(areas)]
    return float(defined.mean()) if len(defined) else math.nan
