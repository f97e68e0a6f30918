"""Collects the rows of many callers into batches, runs the model on each batch, and gives each caller its outputs.

This module owns the queue of one model: limits, deadlines, batches, and the drain. This module uses only rows and a
function that maps rows to outputs. This module does not depend on HTTP or ONNX. This module has more than 350 lines,
because one class owns every change of the queue.

A run starts as soon as the model is idle. Rows that arrive during a run wait, and form the next batch. If a run is
expected to take microseconds, the run happens on the event loop. A batch that runs on the event loop contains all rows
that arrived in one turn of the event loop. A run that is expected to take longer happens on a thread, and new rows are
queued during this run.

    submit -> queue -> take a batch (cancelled and expired entries are dropped) -> run -> split the outputs
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from foldserve.service.arrays import Outputs, Rows, Run
from foldserve.service.engine.admission import ALWAYS_WAITING, RESERVE
from foldserve.service.engine.entry import Entry, OnResult, failure, resolve_all
from foldserve.service.errors import DeadlinePassed, Draining, ModelNotReady, QueueFull, RuntimeFailure
from foldserve.service.metrics import BatchObserver, ignore_batch

log = logging.getLogger("foldserve")

# A run that takes longer than this number of seconds happens on a thread, because a run on the event loop blocks every
# connection.
_MAX_INLINE_SECONDS = 1e-3
# During a long run, the batcher drops expired entries from the queue at this interval, in seconds.
_SWEEP_SECONDS = 0.05
# The warm-up ends after this number of seconds, so for a slow model it measures only small batches.
_WARM_UP_SECONDS = 1.0
# The weight of each new measurement in the estimated run time.
_NEW_WEIGHT = 0.2

# What a run returns: the rows; the outputs, or the error; and the times at which the run started and ended.
_RunResult = tuple[Rows, Outputs | Exception, float, float]

# The batcher calls each watcher on the event loop after each run, before the callers get their outputs. A watcher must
# copy the arrays that it keeps.
RowsWatcher = Callable[[Rows, Outputs], None]

_NO_ROWS: Rows = np.empty((0, 0), np.float32)


class Batcher:
    """Batches rows for `run`, which maps float32 [n, features] to float32 [n, outputs].

    Call all methods on the same event loop. max_batch and max_queue are numbers of rows. max_delay: the seconds that
    the first entry of a batch may wait for other entries. max_wait: the longest expected wait in seconds; it applies
    only to an entry that is queued behind at least one whole batch. The last tenth of max_queue and of max_wait is
    reserved for entries of high priority. observe: a function that is called with the times of each run. watchers:
    functions that are called with the rows and the outputs of each run. unobserved: the array that the server uses to
    check the model; `observe` and `watchers` are not called when this array is run. All times come from
    `time.monotonic`, so a change of the wall clock has no effect.

    runs: the number of finished runs. running: whether a run happens on the thread. run_began: the time at which the
    current run began, on the event loop or on the thread; None between two runs. hung: whether the watchdog has found
    that the current run will not end.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_queue: int,
        max_delay: float = 0.0,
        max_wait: float = math.inf,
        observe: BatchObserver = ignore_batch,
        watchers: Sequence[RowsWatcher] = (),
        unobserved: Rows = _NO_ROWS,
    ) -> None:
        self._run = run
        self.max_batch = max_batch
        self._max_queue = max_queue
        self._normal_queue = max_queue - int(max_queue * RESERVE)  # the queue limit for normal priority, in rows
        self._full = min(max_batch, max_queue / 2)
        self._max_delay = max_delay
        self._max_wait = max_wait
        self._observe = observe
        self._watchers = watchers
        self.unobserved = unobserved
        self._high: deque[Entry] = deque()  # entries of high priority, which are run first
        self._queue: deque[Entry] = deque()  # all others
        self._queued_rows = self._high_rows = 0  # the number of queued rows: in total, and in `_high`
        self._scheduled: asyncio.Handle | None = None  # the scheduled call of `_run_next`
        self._due = math.inf  # when the scheduled call is due, if it waits for max_delay
        self.running = False
        self.runs = 0
        self.run_began: float | None = None
        self.hung = False
        self._on_thread: list[tuple[Entry, Rows]] = []
        self._run_ends = 0.0  # when the run on the thread is expected to end
        self._sweeper: asyncio.TimerHandle | None = None
        self._draining = self._closed = False
        self._thread = ThreadPoolExecutor(1, "batcher")
        # The estimated run times in seconds; the index is the bit length of the number of rows. The estimate is
        # infinite for a batch size that the model has never run.
        self._run_seconds = [math.inf] * (max_batch.bit_length() + 1)

    @property
    def queued_rows(self) -> int:
        """The number of rows in the queue."""
        return self._queued_rows

    @property
    def filled(self) -> bool:
        """Whether a full batch is queued.

        The next turn of the event loop runs this batch before more rows are queued.
        """
        return self._queued_rows >= self._full and not self.running

    @property
    def idle(self) -> bool:
        """Whether the batcher is idle: no row waits, and no run happens on the thread."""
        return not self._queued_rows and not self.running

    def expected_seconds(self, rows: int) -> float | None:
        """Return the expected time of a run of `rows` rows, in seconds; None for a size that the model never ran."""
        seconds = self._run_seconds[rows.bit_length()]
        return seconds if seconds < math.inf else None

    def check_wait(self, patience: float, *, high: bool = False) -> None:
        """Refuse an entry that would wait longer than `patience` or max_wait.

        Call this method while a run happens on the thread, or while a full batch is queued. max_wait does not apply to
        an entry that fits into the next batch, and does not apply while few entries wait. Raises `QueueFull`.
        """
        # A large entry is run in pieces, so it delays any other entry by at most one batch.
        entries = len(self._high) if high else len(self._high) + len(self._queue)
        rows = self._high_rows if high else self._queued_rows
        batches = min(rows, entries * self.max_batch) // self.max_batch
        wait = max(0.0, self._run_ends - time.monotonic()) + batches * self.max_batch * self._seconds_per_row()
        allowed = self._max_wait if high else self._max_wait * (1 - RESERVE)
        if wait >= patience or (batches and entries >= ALWAYS_WAITING and wait > allowed):
            raise QueueFull("too many rows wait for this model", self._retry_after())

    def submit(self, rows: Rows, deadline: float, on_result: OnResult, *, high: bool = False) -> Entry:
        """Queue `rows`, float32 [n, features] with n >= 1, for a run that begins before `deadline`.

        high: whether the priority is high. on_result: a function that is called once on this event loop, after this
        method has returned. The argument of on_result is float32 [n, outputs] or an error: `DeadlinePassed`,
        `NonFiniteOutput`, or the `RequestError` that the run raises. Any other error of the run becomes a
        `RuntimeFailure`. This method raises `QueueFull` if the queue is full, `Draining` after `drain`, and
        `ModelNotReady` after `close`.
        """
        if self._closed:
            raise ModelNotReady("the model is not ready")
        if self._draining:
            raise Draining("the server is stopping", self._retry_after())
        if self._queued_rows and self._queued_rows + len(rows) > (self._max_queue if high else self._normal_queue):
            raise QueueFull("too many rows wait for this model", self._retry_after())
        entry = Entry(self, rows, deadline, on_result, high=high)
        (self._high if high else self._queue).append(entry)
        self._count(entry, len(rows))
        if self.running:
            pass  # the next run starts when the current run ends
        elif not self._max_delay:
            if self._scheduled is None:
                self._scheduled = asyncio.get_running_loop().call_soon(self._run_next)
        elif self._queued_rows >= self.max_batch:
            self._run_soon()
        else:
            self._run_after_delay(entry)
        return entry

    def drain(self) -> None:
        """Refuse new entries, and run the entries in the queue without waiting for max_delay."""
        self._draining = True
        if self._scheduled is not None:
            self._run_soon()

    def warm_up(self, rows: Rows) -> None:
        """Measure runs of all sizes before the first entry arrives.

        Without the measurements of the warm-up, the first entries may be refused. rows: float32 [n, features]. The
        warm-up repeats `rows` to fill larger batches. Any thread may call this method. A run that fails ends the
        warm-up.
        """
        ends = time.perf_counter() + _WARM_UP_SECONDS
        for bits in range(1, self.max_batch.bit_length() + 1):
            batch = np.resize(rows, (1 << (bits - 1), rows.shape[1]))
            for _ in range(2):  # the first run of a size may allocate memory
                started = time.perf_counter()
                try:
                    self._run(batch)
                except Exception as error:  # noqa: BLE001 (a request with such a batch gets the error)
                    log.warning("a batch of %d rows fails: %s", len(batch), error)
                    return
                now = time.perf_counter()
                self._run_seconds[bits] = min(self._run_seconds[bits], now - started)
                if now > ends:
                    return

    def close(self) -> None:
        """Refuse new entries, because the model is unloaded. Call this method only while the batcher is idle."""
        self._closed = True
        self._thread.shutdown(wait=False)

    def abandon(self) -> None:
        """Give every entry an error, because the run on the thread will not end.

        All entries of the run that hangs, and all entries in the queue, get the error.
        """
        self._draining = True
        entries = [entry for entry, _ in self._on_thread] + [*self._high, *self._queue]
        self._high.clear()
        self._queue.clear()
        for entry in entries:
            self.release(entry)
            entry.resolve(RuntimeFailure("the model did not answer in time"))

    def release(self, entry: Entry) -> None:
        """Subtract the rows of `entry` from the number of queued rows, because the model will not run these rows."""
        self._count(entry, -entry.queued)
        entry.queued = 0

    def _count(self, entry: Entry, rows: int) -> None:
        """Add a number of rows of `entry` to the number of queued rows."""
        self._queued_rows += rows
        if entry.high:
            self._high_rows += rows

    def _run_after_delay(self, entry: Entry) -> None:
        """Schedule a run.

        The run begins after `max_delay` seconds, or after half of the time until the deadline of `entry`, whichever is
        sooner.
        """
        due = entry.arrived + min(self._max_delay, (entry.deadline - entry.arrived) / 2)
        if self._scheduled is None or due < self._due:
            if self._scheduled is not None:
                self._scheduled.cancel()
            self._due = due
            self._scheduled = asyncio.get_running_loop().call_later(max(0.0, due - entry.arrived), self._run_next)

    def _run_soon(self) -> None:
        """Schedule a run in the next turn of the event loop."""
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._scheduled = asyncio.get_running_loop().call_soon(self._run_next)

    def _run_rest(self) -> None:
        if (self._high or self._queue) and self._scheduled is None:
            self._run_soon()

    def _retry_after(self) -> int:
        """Estimate the time until the rows in the queue have been run, in whole seconds."""
        return max(1, math.ceil(self._queued_rows * self._seconds_per_row()))

    def _seconds_per_row(self) -> float:
        """Return the estimated seconds per row in the largest batch that was run; 0 before the first run."""
        bits, seconds = max(((b, s) for b, s in enumerate(self._run_seconds) if s < math.inf), default=(0, 0.0))
        return seconds / (1 << bits)

    def _run_next(self) -> None:
        """Run queued batches on the event loop while the runs are fast, or run the next batch on the thread if it is
        slow.

        This method returns after one piece of a large entry, because the remaining pieces may take a long time and the
        event loop must do other work in between.
        """
        self._scheduled = None
        while (self._high or self._queue) and (batch := self._take_batch()):
            count = sum([len(rows) for _, rows in batch])
            if self._run_seconds[count.bit_length()] > _MAX_INLINE_SECONDS:
                self._run_on_thread(batch, count)
                return
            self._finish(batch, count, self._run_batch(batch, count))
            if (queue := self._high or self._queue) and queue[0].taken:
                break
        self._run_rest()

    def _run_on_thread(self, batch: list[tuple[Entry, Rows]], count: int) -> None:
        loop = asyncio.get_running_loop()
        self.running = True
        self._on_thread = batch
        expected = self._run_seconds[count.bit_length()]
        self._run_ends = time.monotonic() + (expected if expected < math.inf else 0.0)
        future = loop.run_in_executor(self._thread, self._run_batch, batch, count)
        future.add_done_callback(partial(self._thread_finished, batch, count))
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_SECONDS, self._drop_expired)

    def _thread_finished(self, batch: list[tuple[Entry, Rows]], count: int, future: asyncio.Future[_RunResult]) -> None:
        self.running = False
        self._finish(batch, count, future.result())
        self._run_rest()

    def _drop_expired(self) -> None:
        """Drop cancelled and expired entries from the queue.

        This method is called while a run happens on the thread.
        """
        self._sweeper = None
        if self.running:
            now = time.monotonic()
            for queue in (self._high, self._queue):
                entries = list(queue)
                queue.clear()  # a callback may submit a new entry
                kept = [entry for entry in entries if not self._drop_if_over(entry, now)]
                queue.extendleft(reversed(kept))
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._drop_expired)

    def _take_batch(self) -> list[tuple[Entry, Rows]]:
        """Take entries for one batch from the queue, and return each entry with its rows in this batch.

        Entries of high priority come first. Among entries of the same priority, the entry that arrived first comes
        first. An entry that is larger than a batch is split, so that a small entry never waits for all rows of a large
        entry: one piece fills this batch, and the rest of the entry goes to the end of the queue.
        """
        batch: list[tuple[Entry, Rows]] = []
        room = self.max_batch
        now = time.monotonic()
        while room and (queue := self._high or self._queue):
            entry = queue[0]
            if self._drop_if_over(entry, now):
                queue.popleft()
                continue
            left = entry.queued
            count = left if left <= room else room
            if count < left and batch:
                break
            queue.popleft()
            rows = entry.rows if count == len(entry.rows) else entry.rows[entry.taken : entry.taken + count]
            batch.append((entry, rows))
            entry.taken += count
            entry.queued -= count
            self._count(entry, -count)
            room -= count
            if count < left:
                if entry.taken == count:
                    entry.began = now
                queue.append(entry)
        return batch

    def _drop_if_over(self, entry: Entry, now: float) -> bool:
        """Drop the entry if it is cancelled, resolved or past its deadline. Returns whether the entry was dropped."""
        if entry.on_result is not None and now < entry.deadline:
            return False
        self.release(entry)
        entry.resolve(DeadlinePassed("the deadline passed before the model could run"))
        return True

    def _run_batch(self, batch: list[tuple[Entry, Rows]], count: int) -> _RunResult:
        """Run the batch.

        Return the rows of the batch; its outputs, or the error; and the times at which the run started and ended.
        """
        self.run_began = began = time.monotonic()
        rows = batch[0][1]
        outputs: Outputs | Exception
        try:
            if len(batch) > 1:
                rows = np.concatenate([own for _, own in batch])
            outputs = self._run(rows)
            if len(outputs) != count:
                outputs = ValueError(f"{len(outputs)} rows came back for {count}")
        except Exception as error:  # noqa: BLE001 (the callers get any error, and the event loop goes on)
            outputs = error
        self.run_began = None
        return rows, outputs, began, time.monotonic()

    def _finish(self, batch: list[tuple[Entry, Rows]], count: int, result: _RunResult) -> None:
        rows, outputs, began, ended = result
        size, seconds = count.bit_length(), ended - began
        self.runs += 1
        # The estimate falls immediately, but rises slowly: a run may take long only because other programs interrupted
        # it, and this says nothing about the next run.
        known = self._run_seconds[size]
        self._run_seconds[size] = seconds if seconds < known else known + _NEW_WEIGHT * (seconds - known)
        try:
            if rows is not self.unobserved:
                waited = [began - entry.arrived for entry, own in batch if entry.taken == len(own)]
                self._observe(count, seconds, waited)
                if not isinstance(outputs, Exception):
                    for watch in self._watchers:
                        watch(rows, outputs)
            if not isinstance(outputs, Exception):
                resolve_all(batch, outputs)
        except Exception as error:  # after an error in this block, every caller must still get a result
            log.exception("internal error")
            outputs = error
        if isinstance(outputs, Exception):
            for entry, _ in batch:
                entry.resolve(failure(outputs))
