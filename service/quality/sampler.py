"""Takes a sample of the rows that a model answers. Another thread counts the sample, so that replies do not wait for
the counting.

The sampler copies each row at most once. While the server is busy, the sampler takes only every k-th row, and counts it
as k rows, so that sampling takes only a limited time per second. This module does not count the rows itself.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future

import numpy as np

from foldserve.service.arrays import Outputs, Rows

log = logging.getLogger("foldserve")

# On a busy server, the sampler fills about one buffer in a second. The number of rows in a buffer is this number of
# feature values divided by the number of features, but at least `_MIN_ROWS` and at most `_MAX_ROWS`.
_VALUES = 2**16
_MIN_ROWS, _MAX_ROWS = 64, 1024
# The waiting rows are counted as soon as this number of rows is waiting, or after this number of seconds.
_SOON_ROWS, _SOON_SECONDS = 512, 10.0
# Only every k-th row is taken. Once a second, k is computed from the number of rows in the last second. If a buffer
# becomes full earlier, k is multiplied by this factor.
_GROWTH = 4

# A function that counts rows, float32 [rows, features], and their outputs, float32 [rows, outputs]. The third argument
# is the weight of each row.
Count = Callable[[Rows, Outputs, int], None]


class Sampler:
    """Takes a sample of the live rows of one model.

    features: the number of features of a row. outputs: the number of outputs of a row. executor: an executor with one
    thread, which calls `count`.
    """

    def __init__(self, features: int, outputs: int, count: Count, executor: Executor) -> None:
        self._size = min(_MAX_ROWS, max(_MIN_ROWS, _VALUES // features))
        self._shapes = (self._size, features), (self._size, outputs)
        self._count = count
        self._executor = executor
        self._lock = threading.Lock()
        self._step = 1  # k: every k-th row is taken
        self._seen = 0  # the number of rows since the last call of `tick`
        self._filled = 0  # the number of rows in the buffer
        self._skip = 0  # this number of rows is skipped before the next row is taken
        self._since = 0.0  # the time at which the current buffer was begun
        self._begin_buffer()

    def add(self, rows: Rows, outputs: Outputs) -> None:
        """Take a sample of the rows in one batch. Any thread may call this method."""
        with self._lock:
            self._seen += len(rows)
            while self._skip < len(rows):
                room = self._size - self._filled
                taken = rows[self._skip :: self._step][:room]
                end = self._filled + len(taken)
                self._rows[self._filled : end] = taken
                self._outputs[self._filled : end] = outputs[self._skip :: self._step][:room]
                self._filled = end
                self._skip += len(taken) * self._step
                if end < self._size:
                    break
                left = max(0, self._skip - len(rows))
                rows, outputs = rows[self._skip :], outputs[self._skip :]
                self._hand_over(self._step * _GROWTH)
                self._skip += left
            self._skip -= len(rows)

    def tick(self) -> None:
        """Let the executor count the waiting rows if there are many of them, or if they have waited long.

        Call this method once a second.
        """
        with self._lock:
            seen, self._seen = self._seen, 0
            step = max(1, math.ceil(seen / self._size))
            waits = time.monotonic() - self._since > _SOON_SECONDS
            if self._filled and (self._filled >= _SOON_ROWS or waits or step != self._step):
                self._hand_over(step)
            elif not self._filled:
                self._step = step
                self._skip = min(self._skip, random.randrange(step))  # noqa: S311 # nosec B311

    def flush(self) -> None:
        """Let the executor count the waiting rows, and wait until it has counted all rows."""
        with self._lock:
            if self._filled:
                self._hand_over(self._step)
        self._executor.submit(int).result()  # the executor has one thread, so this call ends after all earlier calls

    def _hand_over(self, step: int) -> None:
        """Let the executor count the rows in the buffer, and begin a new buffer. step: from now on, every `step`-th row
        is taken.
        """
        filled = self._rows[: self._filled], self._outputs[: self._filled]
        self._executor.submit(self._count, *filled, self._step).add_done_callback(_log_error)
        self._step = step
        self._begin_buffer()

    def _begin_buffer(self) -> None:
        self._rows, self._outputs = (np.empty(shape, np.float32) for shape in self._shapes)
        self._filled = 0
        self._since = time.monotonic()
        # The first row of a sample is chosen at random, because the order of the live rows may be periodic.
        self._skip = random.randrange(self._step)  # noqa: S311 # nosec B311


def _log_error(counted: Future[None]) -> None:
    if (error := counted.exception()) is not None:
        log.error("internal error", exc_info=error)
