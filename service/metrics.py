"""Every metric, once: its name, help, labels and buckets. docs/metrics.md is held to this file by a test.

Counting must not cost what serving saves: a request only appends to a list, and the lists are added up into
prometheus_client's own metrics when somebody scrapes, when the server ticks, or when they grow long. With several
workers prometheus_client's multiprocess mode adds up the processes; each must have PROMETHEUS_MULTIPROC_DIR in its
environment before this module is imported.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from foldserve.service.bundle import Parity
from foldserve.service.errors import RequestError

# When each series began would be a series more for each, and several workers have none.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# From what one row takes in process to the default deadline.
_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = tuple(4**n for n in range(9))
# So many requests are kept at most before they are added up.
_MANY = 4096


class _Histogram(Histogram):
    """prometheus_client's, and a way to add many observations at the price of one."""

    def observe_many(self, amounts: Iterable[float]) -> None:
        total = 0.0
        counts: Tally[int] = Tally()
        for amount in amounts:
            total += amount
            counts[bisect_left(self._upper_bounds, amount)] += 1
        if counts:
            self._sum.inc(total)
            for bucket, count in counts.items():
                self._buckets[bucket].inc(count)


@dataclass(frozen=True)
class Totals:
    """What one model has done so far: requests, rows and runs; seconds; when it last answered, in Unix time."""

    succeeded: int
    failed: int
    rows: int
    runs: int
    queued: int
    request_seconds: float
    runtime_seconds: float
    queue_seconds: float
    last_request: float


class Requests:
    """What one model's endpoint of one protocol tells of its requests."""

    def __init__(self, metrics: Metrics, model: str, version: str, protocol: str) -> None:
        self._metrics = metrics
        self._labels = (model, version, protocol)
        self._pending: list[tuple[int, int, float]] = []
        self._unseen: Tally[str] = Tally()
        self.in_flight = 0

    def ended(self, status: int, rows: int, seconds: float) -> None:
        """Count one request that was answered with `status`; rows is 0 where there were none to run."""
        self._pending.append((status, rows, seconds))
        if len(self._pending) >= _MANY:
            self.flush()

    def unseen(self, values: Mapping[str, int]) -> None:
        """Count an answered request's values that training has not seen, by feature."""
        self._unseen.update(values)

    def flush(self) -> None:
        """Add up what has gathered."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        m, labels = self._metrics, self._labels
        for feature, count in self._unseen.items():
            m.unseen_categories.labels(*labels[:2], feature).inc(count)
        self._unseen.clear()
        for status, count in Tally(status for status, _, _ in pending).items():
            m.requests.labels(*labels, str(status)).inc(count)
        m.rows.labels(*labels).inc(sum(rows for _, rows, _ in pending))
        m.request_seconds.labels(*labels).observe_many(seconds for _, _, seconds in pending)
        m.last_request.labels(*labels[:2]).set(time.time())


class Batches:
    """What one model's batcher tells of its runs: its observer."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._labels = (model, version)
        self._pending: list[tuple[int, float, list[float]]] = []

    def __call__(self, rows: int, seconds: float, waited: list[float]) -> None:
        """Count one run of a batch of `rows`, whose entries have waited so many seconds each."""
        self._pending.append((rows, seconds, waited))
        if len(self._pending) >= _MANY:
            self.flush()

    def flush(self) -> None:
        """Add up what has gathered."""
        pending, self._pending = self._pending, []
        m, labels = self._metrics, self._labels
        m.batch_rows.labels(*labels).observe_many(rows for rows, _, _ in pending)
        m.runtime_seconds.labels(*labels).observe_many(seconds for _, seconds, _ in pending)
        m.queue_seconds.labels(*labels).observe_many(wait for _, _, waited in pending for wait in waited)


class Metrics:
    """All metrics of one process; with several workers, of all of them."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        model, protocol = ("model", "version"), ("model", "version", "protocol")
        self.requests = Counter(
            "foldserve_requests", "Requests for predictions that were answered.", (*protocol, "status"), registry=r
        )
        self.rows = Counter("foldserve_request_rows", "Rows that were asked for and computed.", protocol, registry=r)
        self.unseen_categories = Counter(
            "foldserve_unseen_categories",
            "Values of categorical features that training has not seen.",
            (*model, "feature"),
            registry=r,
        )
        self.request_seconds = _Histogram(
            "foldserve_request_seconds",
            "From the whole request to its answer, without the time on the wire.",
            protocol,
            buckets=_SECONDS,
            registry=r,
        )
        self.queue_seconds = _Histogram(
            "foldserve_queue_seconds",
            "From a request's place in the queue to its run.",
            model,
            buckets=_SECONDS,
            registry=r,
        )
        self.runtime_seconds = _Histogram(
            "foldserve_runtime_seconds", "One run of the model, of one batch.", model, buckets=_SECONDS, registry=r
        )
        self.batch_rows = _Histogram(
            "foldserve_batch_rows", "Rows of one run of the model.", model, buckets=_ROWS, registry=r
        )
        self.queued_rows = _gauge("foldserve_queued_rows", "Rows that wait to be run.", model, r, "livesum")
        self.in_flight = _gauge(
            "foldserve_requests_in_flight", "Requests for predictions without an answer yet.", (), r, "livesum"
        )
        self.rejected = Counter(
            "foldserve_rejected", "Requests that got no prediction, by reason.", ("reason",), registry=r
        )
        self.load_seconds = _gauge(
            "foldserve_model_load_seconds", "What it took to load and prove the model.", model, r, "max"
        )
        self.parity_error = _gauge(
            "foldserve_model_parity_error",
            "Largest absolute difference of the golden rows from the certificate's reference, on this device.",
            model,
            r,
            "max",
        )
        self.parity_ratio = _gauge(
            "foldserve_model_parity_tolerance_ratio",
            "Share of the tolerance that the golden rows use on this device; past 1 the model is refused.",
            model,
            r,
            "max",
        )
        self.provider = _gauge(
            "foldserve_model_provider_info",
            "1, for each execution provider that runs the model.",
            (*model, "provider"),
            r,
            "max",
        )
        self.last_request = _gauge(
            "foldserve_last_request_timestamp_seconds", "When the last request was answered.", model, r, "max"
        )
        self._all: list[Requests | Batches] = []
        self._queues: list[tuple[tuple[str, str], Callable[[], int]]] = []
        # What a scrape reads: this process, or the files of all workers.
        self._read = r
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self._read = CollectorRegistry()
            MultiProcessCollector(self._read)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=r)

    def of_requests(self, model: str, version: str, protocol: str) -> Requests:
        """Make what one endpoint counts with."""
        made = Requests(self, model, version, protocol)
        self._all.append(made)
        return made

    def of_batches(self, model: str, version: str, queued_rows: Callable[[], int]) -> Batches:
        """Make what one batcher counts with; `queued_rows` tells the depth of its queue whenever that is asked."""
        self._queues.append(((model, version), queued_rows))
        made = Batches(self, model, version)
        self._all.append(made)
        return made

    def loaded(
        self,
        model: str,
        version: str,
        seconds: float,
        parity: Parity,
        providers: Iterable[str],
        categorical: Iterable[str],
    ) -> None:
        """Tell of a model that has been loaded and proven; categorical: the names of such features."""
        for feature in categorical:
            self.unseen_categories.labels(model, version, feature)  # 0: a rate needs what the first value adds to
        self.load_seconds.labels(model, version).set(seconds)
        self.parity_error.labels(model, version).set(parity.max_absolute)
        self.parity_ratio.labels(model, version).set(parity.worst)
        for provider in providers:
            self.provider.labels(model, version, provider).set(1)

    def reject(self, error: RequestError) -> None:
        """Count a request that got no prediction."""
        self.rejected.labels(_reason(type(error))).inc()

    def flush(self) -> None:
        """Add up what has gathered since the last time."""
        for one in self._all:
            one.flush()
        self.in_flight.set(sum(one.in_flight for one in self._all if isinstance(one, Requests)))
        for labels, queued_rows in self._queues:
            self.queued_rows.labels(*labels).set(queued_rows())

    def scrape(self) -> bytes:
        """Write all metrics in Prometheus's text format."""
        self.flush()
        text: bytes = generate_latest(self._read)
        return text

    def totals(self, models: Sequence[tuple[str, str]]) -> list[Totals]:
        """Add up each model's counts, by name and version, of all workers."""
        self.flush()
        samples = [sample for family in self._read.collect() for sample in family.samples]
        return [_totals([s for s in samples if (s.labels.get("model"), s.labels.get("version")) == m]) for m in models]


def _totals(samples: Iterable[Sample]) -> Totals:
    sums: defaultdict[str, float] = defaultdict(float)
    for sample in samples:
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
    """Make a gauge; mode says how prometheus_client joins the workers' values."""
    return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)


def _reason(kind: type[RequestError]) -> str:
    """Name an error as a label's value: QueueFull is queue_full."""
    return re.sub("(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
