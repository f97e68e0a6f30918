"""Counts the values of rows in the bins of the training histograms.

This module does not read the clock. Each feature has these bins, in this order: values below the first edge, the bins
of the training histogram, values above the last edge, and missing values. For a categorical feature, the bin above the
last edge counts the unseen categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Feature

Numbers = npt.NDArray[np.float64]


class FeatureBins:
    """The bins of all features of one model.

    size: the total number of bins, over all features. slices: for each feature, the slice of an array [size] that
    contains the feature's bins. training: float64 [size], the number of training rows in each bin. If the training
    histogram of a feature is empty, all bins of this feature have 0 training rows.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._edges = [np.array(feature.histogram.edges, np.float64) for feature in features]
        for edges in self._edges:
            edges[-1] = np.nextafter(edges[-1], np.inf)  # the last bin contains its upper edge, as in np.histogram
        sizes = [len(edges) + 2 for edges in self._edges]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self.size = sum(sizes)
        self.slices = [slice(start, start + size) for start, size in zip(self._starts.tolist(), sizes, strict=True)]
        self.training = np.zeros(self.size)
        for feature, own in zip(features, self.slices, strict=True):
            counts = np.array(feature.histogram.counts, np.float64)
            share = feature.missing_share
            missing = counts.sum() * share / (1 - share) if share < 1 else 0.0
            self.training[own] = [0.0, *counts, 0.0, missing]

    def count(self, rows: Rows) -> npt.NDArray[np.intp]:
        """Return the number of values in each bin, intp [size]. rows: float32 [rows, features].

        As in `numpy.histogram`, each bin contains its lower edge, and the last bin also contains its upper edge.
        """
        columns = rows.T.astype(np.float64, order="C")
        places = np.empty(columns.shape, np.intp)
        for place, edges, column in zip(places, self._edges, columns, strict=True):
            place[:] = edges.searchsorted(column, side="right")
        # NumPy sorts NaN after all numbers, so `searchsorted` puts NaN into the bin above the last edge. The bin for
        # missing values comes directly after the bin above the last edge.
        places += np.isnan(columns)
        places += self._starts[:, None]
        return np.bincount(places.ravel(), minlength=self.size)
