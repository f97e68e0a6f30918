"""Defines the Prometheus metrics: name, help, labels and buckets. `quality.py` defines the metrics of drift and live
accuracy. A test compares docs/metrics.md with both files.

Counting must cost little compared with serving, so a request only appends its values to lists. The values are later
added to prometheus_client's metrics: at a scrape, once a second, or when a list grows long. With several workers,
prometheus_client's multiprocess mode adds up the processes. Each worker must have PROMETHEUS_MULTIPROC_DIR in its
environment before it imports this module. This module does not depend on the modules that call it to count. This module
has more than 350 lines, because almost every metric is defined here.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from foldserve.service.bundle import Manifest, Parity
from foldserve.service.errors import RequestError
from foldserve.service.metrics.histogram import BulkHistogram
from foldserve.service.metrics.interface import (
    EXPLAIN,
    KEY_OUTCOMES,
    MAX_DEFERRED_VALUES,
    BatchObserver,
    Counts,
    FeedbackOutcome,
    Figure,
    Metrics,
    RequestMetrics,
    Totals,
    Unusual,
)
from foldserve.service.metrics.quality import QualityCollector
from foldserve.service.metrics.workers import WorkersCollector

# Without this call, prometheus_client also exports the time at which each series was created, as a series of its own.
# In multiprocess mode, prometheus_client never exports these times.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# The bounds of the buckets, in seconds. The smallest bound is the time to predict one row in a direct call. The largest
# bound is the default deadline.
_SECONDS_BUCKETS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS_BUCKETS = tuple(4**n for n in range(9))
# Labels.
_MODEL = ("model", "version")
_ENDPOINT = (*_MODEL, "protocol")
# A list is added to the metrics when it has this number of requests or runs.
_MAX_PENDING = 4096
# Each series is created before its first value, so that Prometheus's function rate() includes the first value. If a
# model has more features than this number, its series are created only with their first values, because so many empty
# series would make every scrape large.
_MAX_EARLY_SERIES = 1_000
# For this number of unloaded models, the series are kept.
_MOST_UNLOADED = 16


class _RequestMetrics(RequestMetrics):
    def __init__(
        self, metrics: PrometheusMetrics, labels: tuple[str, str, str], count_rows: Callable[[bytes], Counts]
    ) -> None:
        self._metrics = metrics
        self.labels = labels[:2]
        self._labels = labels
        self._count_rows = count_rows
        self._pending: list[tuple[int, int, float]] = []
        self._observed: list[bytes] = []
        self._unusual: Tally[tuple[Unusual, str]] = Tally()
        self.in_flight = 0

    def record(self, status: int, rows: int, seconds: float) -> None:
        self._pending.append((status, rows, seconds))
        if len(self._pending) >= _MAX_PENDING:
            self.flush()

    def count_unusual(self, counts: Counts) -> None:
        self._unusual.update(counts)

    def observe(self, rows: Any) -> None:
        if rows.size <= MAX_DEFERRED_VALUES:
            self._observed.append(rows.tobytes())  # copy the array, because it may be a small view of a large request

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        m, labels = self._metrics, self._labels
        observed, self._observed = self._observed, []
        self._unusual.update(self._count_rows(b"".join(observed)))
        for (kind, column), count in self._unusual.items():
            m.unusual[kind].labels(*labels[:2], column).inc(count)
        self._unusual.clear()
        statuses, rows, seconds = zip(*pending, strict=True)
        for status, count in Tally(statuses).items():
            m.requests.labels(*labels, str(status)).inc(count)
        m.rows.labels(*labels).inc(sum(rows))
        m.request_seconds.labels(*labels).observe_many(seconds)
        m.last_request.labels(*labels[:2]).set(time.time())


class _BatchMetrics:
    """The observer of one batcher."""

    def __init__(self, metrics: PrometheusMetrics, model: str, version: str) -> None:
        self._metrics = metrics
        self.labels = (model, version)
        self._pending: list[tuple[int, float, list[float]]] = []

    def __call__(self, rows: int, seconds: float, waited: list[float]) -> None:
        self._pending.append((rows, seconds, waited))
        if len(self._pending) >= _MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:  # a server may have thousands of models that get no requests
            return
        m, labels = self._metrics, self.labels
        rows, seconds, waited = zip(*pending, strict=True)
        m.batch_rows.labels(*labels).observe_many(rows)
        m.runtime_seconds.labels(*labels).observe_many(seconds)
        m.queue_seconds.labels(*labels).observe_many(list(chain.from_iterable(waited)))


class PrometheusMetrics(Metrics):
    """All metrics of one process. With several workers, a scrape returns the metrics of all workers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._define_request_metrics(self.registry)
        self._define_batch_metrics(self.registry)
        self._define_model_metrics(self.registry)
        self._requests: list[_RequestMetrics] = []
        self._batches: list[_BatchMetrics] = []
        self._rejected: Tally[type[RequestError]] = Tally()
        self._queues: list[tuple[_BatchMetrics, Callable[[], int]]] = []
        self._providers: dict[tuple[str, str], tuple[str, ...]] = {}
        self._refused: set[tuple[str, str]] = set()
        # The unloaded models that still have series, in the order in which they were unloaded.
        self._unloaded: list[tuple[str, str]] = []
        self._take_key_counts: Callable[[], Mapping[str, Sequence[int]]] = dict
        self._figures: Iterable[Figure] = ()
        self._own_figures: Callable[[], Iterable[Figure]] = tuple
        self._quality = CollectorRegistry()
        self._quality.register(QualityCollector(lambda: self._figures))
        # With one process, a scrape reads its metrics from memory; with several workers, it reads the files of all
        # workers.
        self._scraped = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self._scraped = CollectorRegistry()
            WorkersCollector(self._scraped, Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        else:
            ProcessCollector(registry=self.registry)

    def _define_request_metrics(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "foldserve_requests",
            "Prediction requests that got a response.",
            (*_ENDPOINT, "status"),
            registry=registry,
        )
        self.rows = Counter(
            "foldserve_request_rows", "Rows of the prediction requests that succeeded.", _ENDPOINT, registry=registry
        )
        unusual: tuple[tuple[Unusual, str, str, str], ...] = (
            ("unseen", "unseen_categories", "feature", "Values of categorical features that training has not seen."),
            ("outside", "out_of_range", "feature", "Values outside the training range of their feature."),
            ("ignored", "ignored_values", "column", "Values of columns that training left out."),
            ("filled", "filled_constants", "feature", "Values of constant features that a request left out."),
        )
        self.unusual = {
            kind: Counter(f"foldserve_{name}", text, (*_MODEL, label), registry=registry)
            for kind, name, label, text in unusual
        }
        self.request_seconds = BulkHistogram(
            "foldserve_request_seconds",
            "Seconds from the whole request to its response, without the time on the network.",
            _ENDPOINT,
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.in_flight = _gauge(
            "foldserve_requests_in_flight", "Prediction requests without a response yet.", (), registry, "livesum"
        )
        self.last_request = _gauge(
            "foldserve_last_request_timestamp_seconds", "Unix time of the last response.", _MODEL, registry, "max"
        )
        self.rejected = Counter(
            "foldserve_rejected", "Requests that got an error instead of a prediction.", ("reason",), registry=registry
        )
        self.logged_rows = Counter(
            "foldserve_prediction_log_rows",
            "Rows of predictions that were chosen for the prediction log, by outcome: written or dropped.",
            ("outcome",),
            registry=registry,
        )
        self.key_requests = Counter(
            "foldserve_key_requests", "Requests with a valid API key.", ("key", "outcome"), registry=registry
        )

        self.feedback = Counter(
            "foldserve_feedback", "Entries of requests with labels.", ("model", "outcome"), registry=registry
        )

    def _define_batch_metrics(self, registry: CollectorRegistry) -> None:
        self.queue_seconds = BulkHistogram(
            "foldserve_queue_seconds",
            "Seconds that a request waits in the queue before its run.",
            _MODEL,
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.runtime_seconds = BulkHistogram(
            "foldserve_runtime_seconds",
            "Seconds of one run of the model on one batch.",
            _MODEL,
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.batch_rows = BulkHistogram(
            "foldserve_batch_rows", "Rows of one run of the model.", _MODEL, buckets=_ROWS_BUCKETS, registry=registry
        )
        self.queued_rows = _gauge("foldserve_queued_rows", "Rows that wait for a run.", _MODEL, registry, "livesum")

    def _define_model_metrics(self, registry: CollectorRegistry) -> None:
        self.load_seconds = _gauge(
            "foldserve_model_load_seconds", "Seconds to load and verify the model.", _MODEL, registry, "max"
        )
        self.parity_error = _gauge(
            "foldserve_model_parity_error",
            "Largest absolute difference of the golden rows from the certificate's reference, on this device.",
            _MODEL,
            registry,
            "max",
        )
        self.parity_ratio = _gauge(
            "foldserve_model_parity_tolerance_ratio",
            "Share of the tolerance that the golden rows use on this device; above 1 the model is refused.",
            _MODEL,
            registry,
            "max",
        )
        self.provider = _gauge(
            "foldserve_model_provider_info",
            "1 for each execution provider that runs the model.",
            (*_MODEL, "provider"),
            registry,
            "max",
        )

        self.refused = _gauge(
            "foldserve_model_refused", "1 for each version that is refused now.", _MODEL, registry, "livemax"
        )

    def for_endpoint(
        self, model: str, version: str, protocol: str, count_rows: Callable[[bytes], Counts]
    ) -> RequestMetrics:
        """Create an object that counts the requests of one endpoint. count_rows: the same function as in
        `Metrics.for_endpoint`.
        """
        created = _RequestMetrics(self, (model, version, protocol), count_rows)
        self._requests.append(created)
        return created

    def for_batcher(self, model: str, version: str, queued_rows: Callable[[], int]) -> BatchObserver:
        """Create a function that counts the runs of one batcher. queued_rows: returns the number of rows in the
        batcher's queue.
        """
        created = _BatchMetrics(self, model, version)
        self._queues.append((created, queued_rows))
        self._batches.append(created)
        return created

    def for_keys(self, take_counts: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        """Count the requests of each API key. take_counts: the same function as in `Metrics.for_keys`."""
        self._take_key_counts = take_counts

    def record_load(self, manifest: Manifest, seconds: float, parity: Parity, providers: Iterable[str]) -> None:
        """Set the gauges of a model that was loaded and verified."""
        model, version = manifest.name, str(manifest.version)
        for feature in manifest.features:
            if feature.kind == "categorical":
                self.unusual["unseen"].labels(model, version, feature.name)
            elif len(manifest.features) <= _MAX_EARLY_SERIES:
                self.unusual["outside"].labels(model, version, feature.name)
            if feature.constant is not None:
                self.unusual["filled"].labels(model, version, feature.name)
        for column in manifest.ignored:
            self.unusual["ignored"].labels(model, version, column)
        self.load_seconds.labels(model, version).set(seconds)
        self.parity_error.labels(model, version).set(parity.max_absolute)
        self.parity_ratio.labels(model, version).set(parity.worst)
        self._providers[model, version] = tuple(providers)
        for provider in self._providers[model, version]:
            self.provider.labels(model, version, provider).set(1)

    def record_refused(self, refused: Collection[tuple[str, str]]) -> None:
        """Set the gauges of all versions that are refused now, and clear the gauges of other versions."""
        for labels in self._refused - set(refused):
            self.refused.labels(*labels).set(0)
            if self._scraped is self.registry:
                self.refused.remove(*labels)
        self._refused = set(refused)
        for labels in refused:
            self.refused.labels(*labels).set(1)

    def forget(self, model: str, version: str, parts: Iterable[object]) -> None:
        """Stop counting for an unloaded model.

        The series of this model are removed only after `_MOST_UNLOADED` more models are unloaded, so that a scraper has
        time to read the last counts. With several workers, the series are in files and are not removed.
        """
        gone = set(map(id, parts))
        flushes = [part.flush for part in self._requests if id(part) in gone]
        for flush in (*flushes, *(part.flush for part in self._batches if id(part) in gone)):
            flush()
        # Make new lists, because another thread may read the old lists.
        self._requests = [part for part in self._requests if id(part) not in gone]
        self._batches = [part for part in self._batches if id(part) not in gone]
        self._queues = [(part, rows) for part, rows in self._queues if id(part) not in gone]
        labels = (model, version)
        if any(part.labels == labels for part in self._requests):  # a new model of the same version is loaded
            return
        for provider in self._providers.pop(labels, ()):
            self.provider.labels(model, version, provider).set(0)
        self.queued_rows.labels(*labels).set(0)
        self._unloaded = [*(other for other in self._unloaded if other != labels), labels]
        active = {part.labels for part in self._requests}
        if len(self._unloaded) > _MOST_UNLOADED:
            oldest = self._unloaded.pop(0)
            if oldest not in active and self._scraped is self.registry:
                self._remove(*oldest)

    def _remove(self, model: str, version: str) -> None:
        """Remove all series of a model."""
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase) and set(_MODEL) <= set(metric._labelnames):
                metric.remove_by_labels({"model": model, "version": version})

    def count_rejected(self, error: RequestError) -> None:
        """Count a request that got an error instead of a prediction."""
        self._rejected[type(error)] += 1

    def count_logged(self, written: int, dropped: int) -> None:
        """Count rows of the prediction log."""
        self.logged_rows.labels("written").inc(written)
        self.logged_rows.labels("dropped").inc(dropped)

    def for_quality(self, own_figures: Callable[[], Iterable[Figure]]) -> None:
        """Publish the metrics of drift and quality. own_figures: the same function as in `Metrics.for_quality`."""
        self._own_figures = own_figures

    def set_figures(self, figures: Iterable[Figure]) -> None:
        """Set the metrics of drift and quality to the figures of all processes together."""
        self._figures = tuple(figures)

    def count_feedback(self, model: str, outcomes: Mapping[FeedbackOutcome, int]) -> None:
        """Count the entries of a feedback request by their outcome."""
        for outcome, count in outcomes.items():
            self.feedback.labels(model, outcome).inc(count)

    def flush(self) -> None:
        """Add all new counts to the metrics, and set the gauges."""
        for requests in self._requests:
            requests.flush()
        for batches in self._batches:
            batches.flush()
        for kind, count in self._rejected.items():
            self.rejected.labels(kind.reason()).inc(count)
        self._rejected.clear()
        self.in_flight.set(sum(requests.in_flight for requests in self._requests))
        for batches, queued_rows in self._queues:
            self.queued_rows.labels(*batches.labels).set(queued_rows())
        for key, counts in self._take_key_counts().items():
            for outcome, count in zip(KEY_OUTCOMES, counts, strict=True):
                self.key_requests.labels(key, outcome).inc(count)

    def families(self) -> Callable[[], Iterable[Any]]:
        """Return a function that returns this process's metrics. Any thread may call the returned function."""
        quality = QualityCollector(lambda: self._own_figures())
        return lambda: itertools.chain(self.registry.collect(), quality.collect())

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format, as of the last `flush`. Any thread may call this method.

        Call `set_figures` first, because it sets the metrics of drift and quality. Writing the text for a thousand
        models takes a second, so call this method outside the event loop.
        """
        text: bytes = generate_latest(self._scraped)
        quality: bytes = generate_latest(self._quality)
        return text + quality

    def totals(self, models: Sequence[tuple[str, str]]) -> list[Totals]:
        """Return the totals of each model over all workers, as of the last `flush`. Any thread may call this method.

        models: the names and versions of the models. This method can be as slow as `text`, so call it outside the event
        loop.
        """
        samples: dict[tuple[str, str], list[Sample]] = {model: [] for model in models}
        for family in self._scraped.collect():
            for sample in family.samples:
                found = samples.get((sample.labels.get("model", ""), sample.labels.get("version", "")))
                if found is not None:
                    found.append(sample)
        return [_totals(samples[model]) for model in models]


def _totals(samples: Iterable[Sample]) -> Totals:
    sums: defaultdict[str, float] = defaultdict(float)
    for sample in samples:
        if sample.labels.get("protocol") == EXPLAIN:
            continue
        failed = sample.labels.get("status", "200") != "200"
        sums["failed" if failed else sample.name] += sample.value
    return Totals(
        succeeded=int(sums["foldserve_requests_total"]),
        failed=int(sums["failed"]),
        rows=int(sums["foldserve_request_rows_total"]),
        runs=int(sums["foldserve_runtime_seconds_count"]),
        queued=int(sums["foldserve_queue_seconds_count"]),
        request_seconds=sums["foldserve_request_seconds_sum"],
        runtime_seconds=sums["foldserve_runtime_seconds_sum"],
        queue_seconds=sums["foldserve_queue_seconds_sum"],
        last_request=sums["foldserve_last_request_timestamp_seconds"],
    )


def _gauge(name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry, mode: Any) -> Gauge:
    """Create a gauge. mode: how prometheus_client combines the values of several workers."""
    return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)
