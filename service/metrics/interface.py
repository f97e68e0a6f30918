"""The methods that the service calls to count its work. In this module, the methods do nothing; the subclasses in
`prometheus.py` override them.

This module does not import Prometheus, so the code that counts does not load Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foldserve.service.bundle import Manifest, Parity
from foldserve.service.errors import RequestError

# The batcher calls this function after each run, before the callers get their rows. The arguments of the function are
# the number of rows, the duration of the run in seconds, and a list of waits. The list contains, for each entry that
# starts in this run, the seconds that the entry has waited in the queue.
BatchObserver = Callable[[int, float, list[float]], None]


def ignore_batch(rows: int, seconds: float, waited: list[float]) -> None:
    """Do nothing: an observer for a batcher whose runs are not counted."""


# The outcomes of a request with a valid API key, in order: the request is accepted; the key lacks the scope; the key
# has reached its rate limit.
KEY_OUTCOMES = ("accepted", "forbidden", "limited")

# A kind of value that the metrics count. "unseen": a category that training has not seen. "outside": a number outside
# the training range. "ignored": a value of a column that training left out. "filled": a value that the request left
# out, because the feature is constant.
Unusual = Literal["unseen", "outside", "ignored", "filled"]
# The number of unusual values, by the kind of the value and the name of its column.
Counts = Mapping[tuple[Unusual, str], int]

# If a request has at most this number of values, its unusual values are counted later. If a request has more than this
# number of values, its unusual values are counted immediately.
MAX_DEFERRED_VALUES = 256


# The possible outcomes of one entry in a feedback request. "counted": the labels of the entry were counted. "unknown":
# the server does not remember the request of the entry. "mismatched": the labels do not fit the request of the entry.
# "repeated": a row had a label already.
FeedbackOutcome = Literal["counted", "unknown", "mismatched", "repeated"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One value of a drift metric or of a quality metric. labels: the values of the labels, in the order of the
    metric's definition.
    """

    metric: str
    labels: tuple[str, ...]
    value: float


class RequestMetrics:
    """Counts the requests of one endpoint.

    in_flight: the number of requests that have no response yet. The endpoint itself updates this number.
    """

    in_flight = 0

    def record(self, status: int, rows: int, seconds: float) -> None:
        """Count one request that was answered with `status`.

        rows: the number of predicted rows; 0 if the request failed.
        """

    def count_unusual(self, counts: Counts) -> None:
        """Count unusual values of an answered request."""

    def observe(self, rows: Any) -> None:
        """Take the rows of an answered request, float32 [rows, features], and count their unusual values later.

        This method ignores rows with more than `MAX_DEFERRED_VALUES` values.
        """


EXPLAIN = "explain"
"""The protocol of requests for explanations. The statistics of predictions leave these requests out."""


class Metrics:
    """Counts the work of one process."""

    def for_endpoint(
        self, model: str, version: str, protocol: str, count_rows: Callable[[bytes], Counts]
    ) -> RequestMetrics:
        """Create an object that counts the requests of one endpoint.

        count_rows: a function that counts the unusual values in rows. The function takes any number of float32 rows as
        bytes.
        """
        return RequestMetrics()

    def for_batcher(self, model: str, version: str, queued_rows: Callable[[], int]) -> BatchObserver:
        """Create a function that counts the runs of one batcher. queued_rows: returns the number of rows in the
        batcher's queue.
        """
        return ignore_batch

    def for_keys(self, take_counts: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        """Count the requests of each API key.

        take_counts: returns the counts since its last call, as a mapping from the name of each key to the key's counts.
        The counts are in the order of `KEY_OUTCOMES`.
        """

    def record_load(self, manifest: Manifest, seconds: float, parity: Parity, providers: Iterable[str]) -> None:
        """Record a model that was loaded and verified."""

    def record_refused(self, refused: Collection[tuple[str, str]]) -> None:
        """Record all versions that are refused now.

        refused: pairs of a model and a version. If the folder of a model can't be read, the pair has an empty text as
        its version.
        """

    def forget(self, model: str, version: str, parts: Iterable[object]) -> None:
        """Stop counting for an unloaded model. parts: the objects that `for_endpoint` and `for_batcher` made."""

    def count_rejected(self, error: RequestError) -> None:
        """Count a request that got an error instead of a prediction."""

    def count_logged(self, written: int, dropped: int) -> None:
        """Count rows of the prediction log: the rows in files, and the lost rows.

        Any thread may call this method.
        """

    def for_quality(self, own_figures: Callable[[], Iterable[Figure]]) -> None:
        """Publish the metrics of drift and quality.

        own_figures: returns the metrics of this process. Exporters call this function to send the metrics of each
        process. Any thread may call `own_figures`.
        """

    def set_figures(self, figures: Iterable[Figure]) -> None:
        """Set the metrics of drift and quality to the figures of all processes together."""

    def count_feedback(self, model: str, outcomes: Mapping[FeedbackOutcome, int]) -> None:
        """Count the entries of a feedback request by their outcome."""

    def flush(self) -> None:
        """Add the counts since the last call of `flush` to the metrics."""

    def families(self) -> Callable[[], Iterable[Any]] | None:
        """Return a function that returns this process's metrics, as objects of Prometheus's client.

        Return None if no metrics are counted.
        """
        return None


@dataclass(frozen=True)
class Totals:
    """The work of one model since the start: counts, sums of seconds, and the Unix time of the last response.

    queued: the number of entries that have waited in the queue and whose run has begun.
    """

    succeeded: int
    failed: int
    rows: int
    runs: int
    queued: int
    request_seconds: float
    runtime_seconds: float
    queue_seconds: float
    last_request: float
