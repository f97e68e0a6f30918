"""Computes the population stability index (PSI) of each feature, and judges the feature by this index.

This module works only with counts, and does not depend on rows. The formula is PSI = sum over the bins of (q - p) *
ln(q / p). For each bin, p is the share of the training rows in the bin, and q is the share of the live rows in the bin.
The PSI is the symmetric divergence of Kullback and Leibler (1951), which Jeffreys (1946) introduced. The thresholds 0.1
and 0.25 are usual in credit scoring (Siddiqi, Credit Risk Scorecards, 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foldserve.service.bundle import Feature
from foldserve.service.quality.bins import FeatureBins, Numbers

State = Literal["stable", "moderate drift", "drift", "too few rows", "too few training rows", "no training histogram"]

MODERATE, LARGE = 0.1, 0.25
# With fewer live rows than this number, no feature is judged.
LEAST_ROWS = 100
# Half a row is added to each bin, so that the logarithm of an empty bin is finite.
_ADDED = 0.5
# The quantile of the standard normal distribution for a probability of 0.999.
_NORMAL = 3.0902


@dataclass(frozen=True)
class Judgement:
    """The result for one feature.

    psi: the population stability index; None if there is no training histogram or no live row. noise: a limit for the
    index, which depends on the number of rows. Without drift, the index exceeds this limit in one of 1,000 cases.
    """

    psi: float | None
    noise: float | None
    state: State


class Stability:
    """Compares the counts of live rows with the counts of training rows, for one model.

    A value below the first edge is counted in the first bin, and a value above the last edge in the last bin. Missing
    values and unseen categories have bins of their own. A bin with no training rows and no live rows is ignored.
    """

    def __init__(self, features: Sequence[Feature], bins: FeatureBins) -> None:
        self._size = bins.size
        self._target = np.arange(bins.size)  # maps each bin to the bin into which it is merged
        for feature, own in zip(features, bins.slices, strict=True):
            self._target[own.start] += 1
            if feature.kind != "categorical":
                self._target[own.stop - 2] -= 1
        self._starts = [own.start for own in bins.slices]
        self._training = bins.training

    def judge(self, live: Numbers, rows: float) -> list[Judgement]:
        """Judge each feature. live: float64 [bins], the number of live rows in each bin.

        rows: the number of live rows.
        """
        live = np.bincount(self._target, live, self._size).astype(np.float64, copy=False)
        used = ((self._training > 0) | (live > 0)).astype(np.float64)
        count = self._sums(used)
        p, q = (self._shares(counts, used, count) for counts in (self._training, live))
        psi = self._sums((q - p) * np.log(q / p))
        with np.errstate(divide="ignore", invalid="ignore"):  # without live rows, the result is not used
            trained = self._sums(self._training)
            noise = _chi_squared(np.maximum(count - 1, 0)) * (1 / trained + (1 / rows if rows else np.inf))
        figures = zip(psi.tolist(), noise.tolist(), trained.tolist(), strict=True)
        return [_judge(*each, rows) for each in figures]

    def _shares(self, counts: Numbers, used: Numbers, count: Numbers) -> Numbers:
        """For each bin, return its share of all counts of its feature.

        An unused bin gets the share 1 both in training and in the live rows, so that the bin adds 0 to the PSI.
        """
        totals = self._sums(counts) + _ADDED * count
        sizes = np.diff([*self._starts, self._size])
        return np.where(used > 0, (counts + _ADDED) / np.repeat(np.maximum(totals, _ADDED), sizes), 1.0)

    def _sums(self, values: Numbers) -> Numbers:
        """Return the sum of the values of each feature."""
        return np.add.reduceat(values, self._starts, dtype=np.float64)


def _judge(psi: float, noise: float, trained: float, rows: float) -> Judgement:
    if not trained:
        return Judgement(None, None, "no training histogram")
    if not rows:
        return Judgement(None, None, "too few rows")
    if rows < LEAST_ROWS:
        state: State = "too few rows"
    elif psi < MODERATE:
        state = "stable"
    elif psi <= noise:
        state = "too few rows" if rows <= trained else "too few training rows"
    else:
        state = "moderate drift" if psi < LARGE else "drift"
    return Judgement(psi, noise, state)


def _chi_squared(freedom: Numbers) -> Numbers:
    """Return the 0.999 quantile of the chi-squared distribution, by the approximation of Wilson and Hilferty (1931).

    Let N be the number of live rows, and M the number of training rows. Without drift, PSI / (1/N + 1/M) has the
    chi-squared distribution. The number of degrees of freedom is the number of bins minus one (Yurdakul, Statistical
    Properties of Population Stability Index, 2018).
    """
    part = 2 / (9 * np.maximum(freedom, 1))
    quantile: Numbers = np.where(freedom > 0, freedom * (1 - part + _NORMAL * np.sqrt(part)) ** 3, 0.0)
    return quantile
