"""Sends the metrics of one process to a collector. The metrics have the same names and labels as in /metrics.

This module converts the samples of the Prometheus client instead of counting with OpenTelemetry, because the Prometheus
client already counts everything.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

log = logging.getLogger("foldserve")

_CUMULATIVE = AggregationTemporality.CUMULATIVE
_DEFAULT_INTERVAL = "60000"  # in milliseconds; the specification of OpenTelemetry defines this default


class Sample(Protocol):
    """One number of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


class Family(Protocol):
    """One metric of the Prometheus client."""

    name: str
    documentation: str
    type: str
    samples: Sequence[Sample]


class Report:
    """Logs one message with the reason when the collector stops answering, and one when the collector answers again.

    what: the word that the log messages use for the sent items, such as `spans`. logger: the name of the exporter's own
    logger; its messages are suppressed, because they would fill the log.
    """

    def __init__(self, what: str, logger: str) -> None:
        self._what = what
        self._lost = 0
        self._reason = "no answer"
        logging.getLogger(logger).addFilter(self._keep_reason)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        self._reason = " ".join(record.getMessage().split())
        return False

    def note(self, count: int, *, success: bool) -> None:
        """Report that `count` items were sent or lost."""
        if not success:
            if not self._lost:
                log.warning("the collector gets no %s: %s", self._what, self._reason)
            self._lost += count
        elif self._lost:
            log.warning("the collector gets %s again; %d were lost", self._what, self._lost)
            self._lost = 0


class MetricsExport:
    """A thread that sends the metrics every OTEL_METRIC_EXPORT_INTERVAL milliseconds, and once at the end.

    families: a function that returns the current metrics of this process; the thread calls this function. Raises
    `ValueError` if OTEL_METRIC_EXPORT_INTERVAL is wrong.
    """

    def __init__(self, families: Callable[[], Iterable[Family]], resource: Resource) -> None:
        self._families = families
        self._resource = resource
        self._exporter = OTLPMetricExporter()
        self._report = Report("metrics", "opentelemetry.exporter.otlp.proto.http.metric_exporter")
        self._interval = _interval()
        self._started = time.time_ns()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-metrics", daemon=True)
        self._thread.start()

    def send_rest(self) -> None:
        """Send the metrics for the last time. This call may block."""
        self._stopped.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(self._interval)
            try:
                metrics = convert(self._families(), self._started, time.time_ns())
                result = self._exporter.export(self._of_resource(metrics))
            except Exception:  # any error is only logged, because the next export may succeed
                log.exception("internal error")
            else:
                self._report.note(len(metrics), success=result is MetricExportResult.SUCCESS)

    def _of_resource(self, metrics: Sequence[Metric]) -> MetricsData:
        scope = ScopeMetrics(InstrumentationScope("foldserve"), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])


def _interval() -> float:
    """Return the number of seconds between two exports."""
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip() or _DEFAULT_INTERVAL
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("OTEL_METRIC_EXPORT_INTERVAL is not a number of milliseconds")
    return int(text) / 1e3


def convert(families: Iterable[Family], start: int, now: int) -> list[Metric]:
    """Convert the metrics of the Prometheus client. start, now: Unix times in nanoseconds."""
    metrics = []
    for family in families:
        data: Sum | Gauge | Histogram
        if family.type == "histogram":
            data = Histogram(_histogram(family.samples, start, now), _CUMULATIVE)
        elif family.type == "counter":
            samples = [sample for sample in family.samples if sample.name.endswith("_total")]
            data = Sum(_numbers(samples, start, now), _CUMULATIVE, is_monotonic=True)
        else:
            data = Gauge(_numbers(family.samples, start, now))
        if data.data_points:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            metrics.append(Metric(name, family.documentation, _unit(family.name), data))
    return metrics


def _unit(name: str) -> str:
    return "s" if name.endswith("_seconds") else "By" if name.endswith("_bytes") else "1"


def _numbers(samples: Iterable[Sample], start: int, now: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(dict(sample.labels), start, now, sample.value) for sample in samples]


def _histogram(samples: Iterable[Sample], start: int, now: int) -> list[HistogramDataPoint]:
    """Convert the samples of a histogram. Each series consists of one sample per bucket, a count and a sum."""
    points = []
    series: dict[tuple[tuple[str, str], ...], dict[str, list[tuple[float, float]]]] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        kinds = series.setdefault(tuple(labels.items()), {})
        bound = float(sample.labels.get("le", "inf"))
        kinds.setdefault(sample.name.rpartition("_")[2], []).append((bound, sample.value))
    for key, kinds in series.items():
        bounds, totals = zip(*kinds["bucket"], strict=True)
        counts = [int(total - before) for before, total in itertools.pairwise((0.0, *totals))]
        amount = kinds["sum"][0][1]
        fields = (dict(key), start, now, sum(counts), amount, counts, bounds[:-1])
        # The smallest and the largest value of the histogram are unknown, and OTLP does not require them.
        points.append(HistogramDataPoint(*fields, min=None, max=None))  # type: ignore[arg-type]
    return points
