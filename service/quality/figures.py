"""Turns the drift of one version into a limited number of values for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from foldserve.service.bundle.decision import label_names
from foldserve.service.metrics import Figure
from foldserve.service.quality.document import Drift

# If a model has more features than this number, the metrics have no values for single features. If a model has more
# labels than this number, the metrics have no values for single labels.
_MOST_SERIES = 100


def figures_of(drift: Drift) -> Iterator[Figure]:
    """Yield the figures about the drift of one version."""
    model = (drift.model, str(drift.version))
    if drift.state != "off":
        yield from _features(drift, model)
        yield from _predictions(drift, model)
    if drift.quality.state != "off":
        yield Figure("foldserve_labelled_rows", model, drift.quality.labels)
        for source, values in (("live", drift.quality.live), ("test", drift.quality.test)):
            for measure in ("accuracy", "log_loss", "rmse", "mae"):
                if values is not None and measure in values:
                    yield Figure("foldserve_quality", (*model, measure, source), values[measure])


def _features(drift: Drift, model: tuple[str, str]) -> Iterator[Figure]:
    yield Figure("foldserve_drift_rows", model, drift.rows)
    for state, count in Counter(feature.state for feature in drift.features).items():
        yield Figure("foldserve_drift_features", (*model, state.replace(" ", "_")), count)
    if len(drift.features) <= _MOST_SERIES:
        for feature in drift.features:
            if feature.psi is not None:
                yield Figure("foldserve_drift_psi", (*model, feature.name), feature.psi)
            if feature.missing is not None:
                yield Figure("foldserve_drift_missing_ratio", (*model, feature.name), feature.missing)


def _predictions(drift: Drift, model: tuple[str, str]) -> Iterator[Figure]:
    predictions = drift.predictions
    single = (
        ("foldserve_prediction_confidence", predictions.confidence),
        ("foldserve_prediction_mean", predictions.mean),
        ("foldserve_prediction_deviation", predictions.deviation),
    )
    for metric, value in single:
        if value is not None:
            yield Figure(metric, model, value)
    shares = predictions.labels or ()
    if len(shares) <= _MOST_SERIES:
        names = label_names(tuple(each.label for each in shares))
        for name, each in zip(names, shares, strict=True):
            if each.share is not None:
                yield Figure("foldserve_predicted_label_ratio", (*model, name), each.share)
