"""Compares the population stability index and its judgement with SciPy and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from foldserve.service import bundle
from foldserve.service.quality.bins import FeatureBins
from foldserve.service.quality.stability import Judgement, Stability
from tests.service.support import feature_fields

GENERATOR = np.random.default_rng(3)
TRAINING = 2000


def numeric(values: np.ndarray, **fields: Any) -> bundle.Feature:
    """Describe a numeric feature as training does."""
    present = values[~np.isnan(values)].astype(np.float64)
    counts, edges = np.histogram(present, 10)
    return bundle.Feature(
        name="x",
        missing=True,
        range=(float(present.min()), float(present.max())),
        histogram=bundle.Histogram(edges=edges.tolist(), counts=counts.tolist()),
        missing_share=1 - len(present) / len(values),
        **fields,
    )


def judged(feature: bundle.Feature, rows: np.ndarray) -> Judgement:
    bins = FeatureBins([feature])
    (found,) = Stability([feature], bins).judge(bins.count(rows.astype(np.float32)[:, None]).astype(float), len(rows))
    return found


def drawn(count: int, shift: float = 0.0, missing: float = 0.1) -> np.ndarray:
    values = GENERATOR.normal(shift, 1, count).astype(np.float32)
    values[GENERATOR.random(count) < missing] = np.nan
    return values


def shares(counts: list[float]) -> np.ndarray:
    return (np.array(counts) + 0.5) / (sum(counts) + len(counts) / 2)


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0])
def test_the_index_and_its_noise_are_those_of_scipy(shift: float) -> None:
    training, live = drawn(TRAINING), drawn(700, shift)
    feature = numeric(training)
    edges = np.array(feature.histogram.edges)
    present = np.clip(live[~np.isnan(live)].astype(np.float64), edges[0], edges[-1])
    p = shares([*feature.histogram.counts, float(np.isnan(training).sum())])
    q = shares([*np.histogram(present, edges)[0].tolist(), float(np.isnan(live).sum())])
    found = judged(feature, live)
    assert found.psi == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), rel=1e-9)
    assert found.noise == pytest.approx(stats.chi2.ppf(0.999, len(p) - 1) * (1 / TRAINING + 1 / 700), rel=0.01)


@pytest.mark.parametrize(
    ("rows", "shift", "state"),
    [
        (2000, 0.0, "stable"),
        (2000, 0.4, "moderate drift"),
        (2000, 1.5, "drift"),
        (99, 5.0, "too few rows"),
        (150, 5.0, "drift"),
    ],
)
def test_a_shift_of_the_values_is_found(rows: int, shift: float, state: str) -> None:
    assert judged(numeric(drawn(TRAINING)), drawn(rows, shift)).state == state


def test_more_missing_values_are_a_drift() -> None:
    assert judged(numeric(drawn(TRAINING)), drawn(2000, missing=0.9)).state == "drift"


def test_chance_alone_is_no_drift_whether_few_rows_are_live_or_in_training() -> None:
    # The stability indices below differ from 0 only by chance. Many of the stability indices are above 0.1.
    few_live = [judged(numeric(drawn(TRAINING)), drawn(110)) for _ in range(200)]
    few_training = [judged(numeric(drawn(80)), drawn(2000)) for _ in range(200)]
    for found, name in ((few_live, "too few rows"), (few_training, "too few training rows")):
        assert {each.state for each in found} == {"stable", name}
    beyond = [each.psi > each.noise for each in few_live if each.psi is not None and each.noise is not None]
    assert sum(beyond) <= 3  # on average, 0.2 of these 200 indices exceed their noise


def test_a_category_that_training_has_not_seen_has_a_bin_of_its_own() -> None:
    fields = {"name": "town", "kind": "categorical", "categories": ("a", "b"), "missing": True}
    histogram = {"edges": (-0.5, 0.5, 1.5), "counts": (600, 400)}
    feature = bundle.Feature.model_validate(feature_fields({**fields, "histogram": histogram}))
    live = np.repeat([0, 1, 2], [540, 360, 100]).astype(np.float32)
    p, q = shares([600, 400, 0]), shares([540, 360, 100])
    found = judged(feature, live)
    assert found.psi == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p))
    assert found.state == "drift"


def test_without_training_rows_there_is_no_judgement() -> None:
    feature = bundle.Feature.model_validate(
        feature_fields({"name": "x", "histogram": {"edges": (0.0, 1.0), "counts": (0,)}})
    )
    assert judged(feature, np.zeros(500)) == Judgement(None, None, "no training histogram")


def test_the_bins_are_those_of_numpy_even_on_their_edges() -> None:
    whole = np.repeat(np.arange(0, 21, dtype=np.float32), 5)  # many values are edges of the bins
    features = [numeric(whole), numeric(whole * np.float32(0.1)), numeric(drawn(500))]
    rows = np.stack([whole, whole * np.float32(0.1), drawn(len(whole))], 1)
    bins = FeatureBins(features)
    counts = bins.count(rows)
    for feature, own, column in zip(features, bins.slices, rows.T, strict=True):
        edges = np.array(feature.histogram.edges)
        present = column[~np.isnan(column)].astype(np.float64)
        below, *inside, above, missing = counts[own].tolist()
        assert inside == np.histogram(present, edges)[0].tolist()
        assert (below, above) == ((present < edges[0]).sum(), (present > edges[-1]).sum())
        assert missing == np.isnan(column).sum()
