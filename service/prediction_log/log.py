"""Collects samples of predictions and writes them to files, on a thread.

A request never waits for the disk: if too many samples wait, new samples are dropped and counted. This module does not
depend on requests or files.

    Recorder.add -> queue -> thread -> rows of each version -> a file, at the latest after `interval` seconds
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.metrics import Metrics
from foldserve.service.prediction_log.columns import LogColumns, Sample
from foldserve.service.prediction_log.folder import LogFolder

log = logging.getLogger("foldserve")

# The largest total size, in bytes, of all samples that are not written yet. Samples wait first in the queue, and then
# for the next file of their version.
_MAX_WAITING = 64 * 2**20
# A file is written when the samples of one version have this number of bytes.
_FULL_FILE = 16 * 2**20
# The thread waits this number of seconds before it looks at the queue again. A request does not wake up the thread,
# because that would delay requests.
_LOOK_SECONDS = 1.0
_REPORT_SECONDS = 60.0
_TRIM_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
# An array up to this size is copied, because a small view would keep a whole body or batch in memory.
_COPIED_BYTES = 2**16
_TOO_FAST = "they arrive faster than they are written: lower --prediction-log-share"
_TOO_LARGE = f"a request has more than {_MAX_WAITING // 2**20} MiB of rows and answers"


@dataclass(frozen=True)
class Limits:
    """The limits of the prediction log.

    max_bytes: the largest size of all files together. max_seconds: the largest age of a file. interval: see
    `PredictionLog`.
    """

    max_bytes: int
    max_seconds: float
    interval: float


class Recorder:
    """Takes the samples of one version. Any thread may call `add`."""

    def __init__(self, owner: PredictionLog, manifest: Manifest, columns: LogColumns) -> None:
        self._owner = owner
        self.name, self.version = manifest.name, manifest.version
        self.columns = columns

    def add(self, request_id: str | None, rows: Rows, outputs: Outputs) -> None:
        """Queue an answered request for the log. rows: float32 [rows, features]; outputs: float32 [rows, outputs]."""
        copies = (array.copy() if array.nbytes <= _COPIED_BYTES else array for array in (rows, outputs))
        self._owner.add(self, Sample(time.time_ns() // 1000, request_id, *copies))


@dataclass
class _Waiting:
    """The samples of one version that have no file yet. since: the time of the first sample, by the monotonic clock."""

    since: float
    samples: list[Sample] = field(default_factory=list)
    size: int = 0

    @property
    def rows(self) -> int:
        return sum(len(sample.rows) for sample in self.samples)


class PredictionLog:
    """The prediction log of one process.

    `limits.interval`: a prediction is written to its file after at most this number of seconds. If the server is
    killed, the samples of the last `interval` seconds are lost. excluded: the names of columns that are left out.
    """

    def __init__(self, path: Path, limits: Limits, excluded: Collection[str], models: Path, metrics: Metrics) -> None:
        """Start the thread. models: the folder of the models. Raises `StartError` if `path` can't be used."""
        self._folder = LogFolder(path, limits.max_bytes, limits.max_seconds)
        self._folder.prepare(models)
        self._interval = limits.interval
        self._excluded = frozenset(excluded)
        self._metrics = metrics
        metrics.count_logged(0, 0)  # the metric must exist from the start, even if its value is 0
        self._queue: deque[tuple[Recorder, Sample]] = deque()
        self._size = 0  # the total size in bytes of the samples in the queue and in `_waiting`
        self._lock = threading.Lock()
        self._dropped = 0  # the number of rows that the metrics do not count yet
        self._reason = ""
        self._unreported = 0  # the number of dropped rows that the server's log does not report yet
        self._reported = -math.inf
        self._waiting: dict[Recorder, _Waiting] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def open(self, manifest: Manifest) -> Recorder:
        """Return the recorder of one version.

        Log a warning for each renamed column, and for each excluded column that does not exist.
        """
        columns = LogColumns(manifest, self._excluded)
        name = f"{manifest.name}/{manifest.version}"
        for before, after in columns.renamed.items():
            log.warning("the prediction log of %s has %r as %r: a feature has this name", name, before, after)
        for column in columns.unknown:
            log.warning("--prediction-log-exclude: the predictions of %s have no column %r", name, column)
        return Recorder(self, manifest, columns)

    def add(self, recorder: Recorder, sample: Sample) -> None:
        """Queue a sample, or drop it if too many wait. This call never blocks for long."""
        with self._lock:
            if self._size + sample.size > _MAX_WAITING:
                self._dropped += len(sample.rows)
                self._reason = _TOO_FAST if sample.size <= _MAX_WAITING else _TOO_LARGE
                return
            self._size += sample.size
        self._queue.append((recorder, sample))

    def close(self) -> None:
        """Write all waiting samples to files. This call may block for some seconds."""
        self._stopped.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("the prediction log lost its last rows: the disk did not take them in %g s", _CLOSE_SECONDS)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        trimmed = -math.inf
        while True:
            last = self._stopped.wait(min(_LOOK_SECONDS, self._interval))
            written = self._write_due(last=last)
            now = time.monotonic()
            if written or now - trimmed > _TRIM_SECONDS:
                trimmed = now
                try:
                    self._folder.trim()
                except OSError as error:
                    log.error("the prediction log can't remove old files: %s", error)
            self._report(last=last)
            if last:
                return

    def _write_due(self, *, last: bool) -> bool:
        """Write the samples that should not wait longer. last: whether to write all waiting samples.

        Returns whether a file was written.
        """
        now = time.monotonic()
        while self._queue:
            recorder, sample = self._queue.popleft()
            waiting = self._waiting.setdefault(recorder, _Waiting(now))
            waiting.samples.append(sample)
            waiting.size += sample.size
        crowded = self._size > _MAX_WAITING // 2
        due = [
            recorder
            for recorder, waiting in self._waiting.items()
            if last or crowded or waiting.size >= _FULL_FILE or now - waiting.since >= self._interval
        ]
        written = [self._write(recorder, self._waiting.pop(recorder)) for recorder in due]
        return any(written)

    def _write(self, recorder: Recorder, waiting: _Waiting) -> bool:
        rows = waiting.rows
        try:
            self._folder.write(recorder.name, recorder.version, recorder.columns.table(waiting.samples))
        except Exception as error:  # noqa: BLE001 (such as a full disk; the log must go on with the next file)
            with self._lock:
                self._dropped += rows
                self._reason = f"{type(error).__name__}: {error}"
            return False
        else:
            self._metrics.count_logged(rows, 0)
            return True
        finally:
            with self._lock:
                self._size -= waiting.size

    def _report(self, *, last: bool) -> None:
        """Count the dropped rows, and log their number at most once a minute."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            reason = self._reason
        if dropped:
            self._metrics.count_logged(0, dropped)
            self._unreported += dropped
        now = time.monotonic()
        if self._unreported and (last or now - self._reported >= _REPORT_SECONDS):
            log.error("the prediction log dropped %d rows: %s", self._unreported, reason)
            self._unreported, self._reported = 0, now
