"""The metrics of drift and quality.

The values of the drift and quality metrics are computed at each scrape, over all workers.

The stability index of all workers is not the sum of their own indices, so prometheus_client can't compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from foldserve.service.metrics.interface import Figure

_MODEL = ("model", "version")
# Name, help and labels of each metric.
_METRICS = (
    ("foldserve_drift_rows", "Rows that the model has answered in the window of the drift.", _MODEL),
    ("foldserve_drift_features", "Features by the judgement about their drift.", (*_MODEL, "state")),
    ("foldserve_drift_psi", "Population stability index of a feature.", (*_MODEL, "feature")),
    ("foldserve_drift_missing_ratio", "Share of the rows without a value of a feature.", (*_MODEL, "feature")),
    ("foldserve_predicted_label_ratio", "Share of the rows for which a label was predicted.", (*_MODEL, "label")),
    ("foldserve_prediction_confidence", "Mean probability of the predicted label.", _MODEL),
    ("foldserve_prediction_mean", "Mean of the predicted values of a regression.", _MODEL),
    ("foldserve_prediction_deviation", "Standard deviation of the predicted values of a regression.", _MODEL),
    ("foldserve_labelled_rows", "Predicted rows whose label is known, in the window of the drift.", _MODEL),
    (
        "foldserve_quality",
        "Measures of the quality on live labels and on the test rows.",
        (*_MODEL, "measure", "source"),
    ),
)


class QualityCollector(Collector):
    """Passes the metrics of drift and quality to prometheus_client. take: returns the figures of drift and quality."""

    def __init__(self, take: Callable[[], Iterable[Figure]]) -> None:
        self._take = take

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their values."""
        families = _families()
        for figure in self._take():
            families[figure.metric].add_metric(figure.labels, figure.value)
        yield from families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    return {name: GaugeMetricFamily(name, text, labels=labels) for name, text, labels in _METRICS}
