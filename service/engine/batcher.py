"""Admission, coalescing, deadlines, scatter, drain: many callers' rows in, one run of the model, each its own rows out.

It knows rows and one callable that maps them, no HTTP and no ONNX. Work starts as soon as the model is idle, and what
arrives while it is busy is coalesced. A run that is known to take microseconds happens right on the event loop, with
everything that one turn of the loop has delivered; a longer one happens on a thread, and the queue fills meanwhile.

    submit -> queue -> take (abandoned and expired entries are dropped) -> run -> scatter
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial

import numpy as np
import numpy.typing as npt

from foldserve.service.errors import DeadlinePassed, Draining, NonFiniteOutput, QueueFull, RequestError, RuntimeFailure

log = logging.getLogger("foldserve")

Rows = npt.NDArray[np.float32]
# Gets the rows, or the one error, and no answer but that. A call on the way back is quicker than a future, whose
# callbacks wait for another turn of the event loop.
Done = Callable[[Rows | RequestError], None]
# What is told of each run before its callers get their rows: its rows, its seconds, and the seconds that each entry
# that starts in it has waited.
Observer = Callable[[int, float, list[float]], None]

# A run that takes longer is no business of the event loop, where every connection waits for it.
_INLINE_SECONDS = 1e-3
# How late an entry may learn, during a long run, that its deadline has passed.
_SWEEP_SECONDS = 0.05
# So many numbers are looked at sooner in Python than NumPy is ready for them; measured.
_FEW = 512
# What one more measurement weighs in the running estimate of a run's seconds.
_WEIGHT = 0.2


class Entry:
    """One caller's rows on their way through the queue."""

    __slots__ = ("arrived", "batcher", "deadline", "done", "parts", "rows", "taken", "waiting")

    def __init__(self, batcher: Batcher, rows: Rows, deadline: float, done: Done) -> None:
        self.batcher = batcher
        self.rows = rows
        self.deadline = deadline
        self.arrived = time.monotonic()
        self.done: Done | None = done  # None once it is answered, or abandoned
        # How many rows have been taken, and what came out, while an entry larger than a batch is run in pieces.
        self.taken = 0
        self.waiting = len(rows)  # how many are counted in the queue
        self.parts: list[Rows] = []

    def cancel(self) -> None:
        """Leave: nobody is called back, and what has not been run never is. After the answer it does nothing."""
        if self.done is not None:
            self.done = None
            self.batcher.give_back(self)

    def settle(self, result: Rows | RequestError) -> None:
        """Answer, unless the caller has left or has been answered."""
        done, self.done = self.done, None
        if done is not None:
            try:
                done(result)
            except Exception:  # its neighbours must not be stranded by that
                log.exception("internal error")


class Batcher:
    """Coalesces callers' rows for `run`, which maps float32 [n, features] to [n, outputs].

    All methods belong to one event loop. max_batch and max_queue count rows; max_delay, in seconds, is how long the
    first of the waiting may wait for company. Times are of `time.monotonic`: a wall clock that jumps changes nothing.
    """

    def __init__(
        self,
        run: Callable[[Rows], Rows],
        *,
        max_batch: int,
        max_queue: int,
        max_delay: float = 0.0,
        observe: Observer | None = None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_delay = max_delay
        self._observe = observe
        self._queue: deque[Entry] = deque()
        self._queued_rows = 0
        self._turn: asyncio.Handle | None = None  # the next call of `_work`, if it is settled
        self._due = math.inf  # when, while company is waited for
        self._running = False  # off the loop
        self._sweeper: asyncio.TimerHandle | None = None
        self._draining = False
        self._thread = ThreadPoolExecutor(1, "batcher")
        # By the bit length of the rows: about the seconds of a run. One that nobody has seen yet may be long.
        self._seconds = [math.inf] * (max_batch.bit_length() + 1)

    @property
    def queued_rows(self) -> int:
        """Count the rows that wait."""
        return self._queued_rows

    def submit(self, rows: Rows, deadline: float, done: Done) -> Entry:
        """Queue float32 [n, features], n >= 1, to be run before `deadline`. To cancel the entry is to leave.

        done: called once, later and on this event loop, with float32 [n, outputs]; or with `DeadlinePassed`, or with
        what the run raises, which is `RuntimeFailure` unless it is a `RequestError`, or with `NonFiniteOutput`.
        Raises `QueueFull`, or `Draining` once `drain` was called.
        """
        if self._draining:
            raise Draining("the server is stopping", self._retry_after())
        if self._queued_rows and self._queued_rows + len(rows) > self._max_queue:
            raise QueueFull("too many rows wait for this model", self._retry_after())
        entry = Entry(self, rows, deadline, done)
        self._queue.append(entry)
        self._queued_rows += len(rows)
        if self._running:
            pass  # what arrives meanwhile is coalesced when the run is over
        elif not self._max_delay:
            if self._turn is None:
                self._turn = asyncio.get_running_loop().call_soon(self._work)
        elif self._queued_rows >= self._max_batch:
            self._hurry()
        else:
            self._wait_for_company(entry)
        return entry

    def drain(self) -> None:
        """Refuse whatever comes from now on; what is queued still gets its answer, and waits for no company."""
        self._draining = True
        if self._turn is not None:
            self._hurry()

    def give_back(self, entry: Entry) -> None:
        """Count the rows of `entry` no longer: they will not be run."""
        self._queued_rows -= entry.waiting
        entry.waiting = 0

    def _wait_for_company(self, entry: Entry) -> None:
        """Work `max_delay` after the first arrival; sooner for who would have spent half of its time by then."""
        due = entry.arrived + min(self._max_delay, (entry.deadline - entry.arrived) / 2)
        if self._turn is None or due < self._due:
            if self._turn is not None:
                self._turn.cancel()
            self._due = due
            self._turn = asyncio.get_running_loop().call_later(max(0.0, due - entry.arrived), self._work)

    def _hurry(self) -> None:
        """Work at the next turn of the loop, whatever is left of `max_delay`."""
        if self._turn is not None:
            self._turn.cancel()
        self._turn = asyncio.get_running_loop().call_soon(self._work)

    def _retry_after(self) -> int:
        """Estimate the whole seconds until what waits has been run."""
        bits, seconds = max(((b, s) for b, s in enumerate(self._seconds) if s < math.inf), default=(0, 0.0))
        return max(1, math.ceil(self._queued_rows * seconds / (1 << bits)))

    def _work(self) -> None:
        """Run one batch: here when that is quick, else on the thread."""
        self._turn = None
        batch = self._take()
        if not batch:
            return
        count = sum([len(own) for _, own in batch])
        if self._seconds[count.bit_length()] <= _INLINE_SECONDS:
            self._finish(batch, count, *self._timed(batch, count))
        else:
            loop = asyncio.get_running_loop()
            self._running = True
            run = loop.run_in_executor(self._thread, self._timed, batch, count)
            run.add_done_callback(partial(self._returned, batch, count))
            if self._sweeper is None:
                self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _returned(
        self, batch: list[tuple[Entry, Rows]], count: int, run: asyncio.Future[tuple[Rows | Exception, float]]
    ) -> None:
        self._running = False
        self._finish(batch, count, *run.result())

    def _sweep(self) -> None:
        """Answer those whose deadline passes while a long run is off the loop."""
        self._sweeper = None
        if self._running:
            now = time.monotonic()
            queue, self._queue = self._queue, deque()  # a callback may submit anew
            kept = [entry for entry in queue if not self._dropped(entry, now)]
            self._queue.extendleft(reversed(kept))
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _take(self) -> list[tuple[Entry, Rows]]:
        """Take what fits one batch, in order of arrival: entries, and the rows of each that are to be run.

        An entry larger than a batch goes in pieces, with its rest at the end of the queue, so that nobody waits for
        all of it.
        """
        batch: list[tuple[Entry, Rows]] = []
        room = self._max_batch
        now = time.monotonic()
        queue = self._queue
        while queue and room:
            entry = queue[0]
            if self._dropped(entry, now):
                queue.popleft()
                continue
            left = len(entry.rows) - entry.taken
            if left > room and batch:
                break
            queue.popleft()
            taken = min(left, room)
            own = entry.rows if taken == len(entry.rows) else entry.rows[entry.taken : entry.taken + taken]
            batch.append((entry, own))
            entry.taken += taken
            entry.waiting -= taken
            self._queued_rows -= taken
            room -= taken
            if taken < left:
                queue.append(entry)
        return batch

    def _dropped(self, entry: Entry, now: float) -> bool:
        """Give up the rows of an entry whose caller left or has been answered, or whose deadline has passed."""
        if entry.done is not None and now < entry.deadline:
            return False
        self.give_back(entry)
        entry.settle(DeadlinePassed("the deadline passed before the model could run"))
        return True

    def _timed(self, batch: list[tuple[Entry, Rows]], count: int) -> tuple[Rows | Exception, float]:
        started = time.perf_counter()
        try:
            outputs = self._run(batch[0][1] if len(batch) == 1 else np.concatenate([own for _, own in batch]))
            if len(outputs) != count:
                return ValueError(f"{len(outputs)} rows came back for {count}"), time.perf_counter() - started
        except Exception as error:  # noqa: BLE001 (whatever it is, its callers get an answer and the loop lives)
            return error, time.perf_counter() - started
        return outputs, time.perf_counter() - started

    def _finish(self, batch: list[tuple[Entry, Rows]], count: int, outputs: Rows | Exception, seconds: float) -> None:
        size = count.bit_length()
        # Down at once and up slowly: a run that the machine has interrupted tells little of the next one.
        known = min(seconds, self._seconds[size])
        self._seconds[size] = known + _WEIGHT * (seconds - known)
        try:
            if self._observe is not None:
                began = time.monotonic() - seconds
                waited = [began - entry.arrived for entry, own in batch if entry.taken == len(own)]
                self._observe(count, seconds, waited)
            if not isinstance(outputs, Exception):
                _scatter(batch, outputs)
        except Exception as error:  # whatever it is, nobody waits for ever
            log.exception("internal error")
            outputs = error
        if isinstance(outputs, Exception):
            for entry, _ in batch:
                entry.settle(_failure(outputs))
        if self._queue and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._work)


def _failure(cause: Exception) -> RequestError:
    """Say why there is no answer: once for each caller, since each may raise it elsewhere."""
    failure = copy(cause) if isinstance(cause, RequestError) else RuntimeFailure("the model failed to run")
    failure.__cause__ = cause
    return failure


def _scatter(batch: list[tuple[Entry, Rows]], outputs: Rows) -> None:
    """Give each entry its own rows of float32 [batch, outputs], or say that they are not finite, if they are not."""
    all_finite = _finite(outputs)
    start = 0
    for entry, rows in batch:
        own = outputs if len(rows) == len(outputs) else outputs[start : start + len(rows)]
        start += len(rows)
        if not all_finite and not _finite(own):
            entry.settle(NonFiniteOutput("the model gave an output that is not finite"))
        elif len(own) == len(entry.rows):
            entry.settle(own)
        else:
            entry.parts.append(own)
            if entry.taken == len(entry.rows):
                entry.settle(np.concatenate(entry.parts))


def _finite(outputs: Rows) -> bool:
    if outputs.size <= _FEW:  # summed up as doubles, float32 can't overflow
        return math.isfinite(sum(outputs.ravel().tolist()))
    return bool(np.isfinite(outputs).all())
