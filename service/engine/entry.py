"""Keeps the rows of one caller while they are in a queue, and gives each caller its outputs or its error.

This module uses only rows and callbacks. This module does not depend on the order of a queue or on the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from copy import copy
from typing import Protocol

import numpy as np

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.errors import NonFiniteOutput, RequestError, RuntimeFailure

log = logging.getLogger("foldserve")

# The type of a callback that is called once, with the outputs or with the error. A callback is faster than a future,
# because the callbacks of a future wait for the next turn of the event loop.
OnResult = Callable[[Outputs | RequestError], None]

# Measurements show that a check in Python is faster than a check in NumPy if there are at most this many outputs.
_FEW_NUMBERS = 512


class Queue(Protocol):
    """The queue in which an entry waits."""

    def release(self, entry: Entry) -> None:
        """Subtract the rows of `entry` from the number of queued rows, because the model will not run these rows."""


class Entry:
    """Holds the rows of one caller while they are in a queue. An entry that is larger than a batch is run in pieces.

    taken: the number of rows that have been taken for a run. queued: the number of rows that this entry still has in
    the queue. outputs: the outputs of the pieces that have been run. began: the time at which the first piece was taken
    for a run; not set if the entry has only one piece.
    """

    began: float

    __slots__ = ("_queue", "arrived", "began", "deadline", "high", "on_result", "outputs", "queued", "rows", "taken")

    def __init__(self, queue: Queue, rows: Rows, deadline: float, on_result: OnResult, *, high: bool = False) -> None:
        self._queue = queue
        self.rows = rows
        self.deadline = deadline
        self.high = high  # whether the priority is high
        self.arrived = time.monotonic()
        self.on_result: OnResult | None = on_result  # None once the entry is resolved or cancelled
        self.taken = 0
        self.queued = len(rows)
        self.outputs: list[Outputs] = []

    def cancel(self) -> None:
        """Drop the entry, so that the model does not run its queued rows.

        If the entry already has a result, this method does nothing.
        """
        if self.on_result is not None:
            self.on_result = None
            self._queue.release(self)

    def resolve(self, result: Outputs | RequestError) -> None:
        """Call the callback with the result, unless the entry is already cancelled or resolved."""
        on_result, self.on_result = self.on_result, None
        if on_result is not None:
            try:
                on_result(result)
            except Exception:  # after an error in one callback, the others must still be called
                log.exception("internal error")


def failure(cause: Exception) -> RequestError:
    """Create the error object for one caller.

    Each caller gets a separate object, because each caller may raise its error.
    """
    error = copy(cause) if isinstance(cause, RequestError) else RuntimeFailure("the model failed to run")
    error.__cause__ = cause
    return error


def resolve_all(batch: list[tuple[Entry, Rows]], outputs: Outputs) -> None:
    """Give each entry its rows of `outputs`, a float32 array [batch, outputs].

    If a number in the rows of an entry is not finite, the entry gets an error.
    """
    all_finite = _finite(outputs)
    start = 0
    for entry, rows in batch:
        own = outputs if len(rows) == len(outputs) else outputs[start : start + len(rows)]
        start += len(rows)
        if not all_finite and not _finite(own):
            row = sum(map(len, entry.outputs)) + int(np.isfinite(own).all(axis=1).argmin())
            entry.resolve(NonFiniteOutput(f"the model gives an output that is not finite for row {row}"))
        elif len(own) == len(entry.rows):
            entry.resolve(own)
        else:
            entry.outputs.append(own)
            if entry.taken == len(entry.rows):
                entry.resolve(np.concatenate(entry.outputs))


def _finite(outputs: Outputs) -> bool:
    if outputs.size <= _FEW_NUMBERS:  # a sum in float64 can't overflow for float32 values
        return math.isfinite(sum(outputs.ravel().tolist()))
    return bool(np.isfinite(outputs).all())
