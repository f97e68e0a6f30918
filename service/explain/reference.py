"""The reference of an explanation: the mean of each encoded column over the training rows.

The means come from the histograms of the manifest, so they are approximate for numbers. This module does not depend on
the neural network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Feature
from foldserve.service.explain.preprocessing import Preprocessing

_STEP = 256  # the number of rows that are encoded at a time

Floats = npt.NDArray[np.float64]


def mean_columns(preprocessing: Preprocessing, features: Sequence[Feature]) -> Floats:
    """Return the mean of each encoded column, float64 [columns]."""
    points = [_points(feature) for feature in features]
    count = max(len(values) for values, _ in points)
    rows = np.empty((count, len(features)), np.float32)
    shares = np.zeros((count, len(features)))
    for place, (values, weights) in enumerate(points):
        rows[:, place] = values[0]
        rows[: len(values), place] = values
        shares[: len(values), place] = weights
    total = np.zeros(len(preprocessing.source))
    for start in range(0, count, _STEP):
        part = shares[start : start + _STEP, preprocessing.source]
        columns = preprocessing.encode(rows[start : start + _STEP])
        total += np.where(part > 0, part * columns, 0.0).sum(0)
    return total


def _points(feature: Feature) -> tuple[Floats, Floats]:
    """Return some values of a feature, and the share of the training rows that are near each value. The shares add up
    to 1.
    """
    edges, counts = np.array(feature.histogram.edges), np.array(feature.histogram.counts, np.float64)
    values = (edges[:-1] + edges[1:]) / 2
    if feature.kind != "numeric":  # every other kind of feature has only whole numbers as values
        values = np.rint(values)
    shares = counts / max(counts.sum(), 1.0) * (1 - feature.missing_share)
    rest = 1 - shares.sum()  # the share of rows without a value
    if feature.missing:
        values, shares = np.append(values, np.nan), np.append(shares, rest)
    elif not counts.any():
        shares = np.full_like(shares, 1 / len(shares))
    return values, shares
