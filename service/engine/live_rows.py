"""Keeps the last live rows of one model and their outputs in memory. New versions are tested with the live rows.

This module handles only rows and outputs, and does not depend on requests.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Outputs, Rows

# A batch of at most _SMALL_BATCH rows first waits in a list. When _MAX_PENDING batches wait, they are written together,
# because one large write is cheaper than many small writes.
_SMALL_BATCH = 32
_MAX_PENDING = 64


class LiveRows:
    """The last rows that a model has answered.

    features: the number of features of a row. outputs: the number of outputs of a row. size: the number of rows to
    keep; `add` needs a size of at least 1.

    A new row replaces the oldest row. If a batch has more rows than `size`, the object keeps `size` rows of the batch,
    evenly spaced.
    """

    def __init__(self, features: int, outputs: int, size: int) -> None:
        self._rows = np.empty((size, features), np.float32)
        self._outputs = np.empty((size, outputs), np.float32)
        self._size = size
        self._small_batch = min(size, _SMALL_BATCH)
        self._next = 0  # the index at which the next row is stored
        self._count = 0  # the number of stored rows
        # The small batches that are not in the arrays yet: for each batch, the bytes of its rows and the bytes of its
        # outputs.
        self._pending: deque[tuple[bytes, bytes]] = deque()
        self._lock = threading.Lock()

    def add(self, rows: Rows, outputs: Outputs) -> None:
        """Keep the rows of one batch."""
        if len(rows) <= self._small_batch:
            self._pending.append((rows.tobytes(), outputs.tobytes()))
            if len(self._pending) < _MAX_PENDING:
                return
            rows, outputs = rows[:0], outputs[:0]
        elif len(rows) > self._size:
            chosen = _evenly_spaced(len(rows), self._size)
            rows, outputs = rows.take(chosen, axis=0), outputs.take(chosen, axis=0)
        with self._lock:
            self._store_pending()
            self._store(rows, outputs)

    def sample(self) -> tuple[Rows, Outputs]:
        """Return copies of the stored rows, [rows, features], and of their outputs, [rows, outputs]."""
        with self._lock:
            self._store_pending()
            return self._rows[: self._count].copy(), self._outputs[: self._count].copy()

    def _store_pending(self) -> None:
        """Store the small batches that wait. Another thread may add a batch at the same time."""
        batches = [self._pending.popleft() for _ in range(len(self._pending))]
        if batches:
            rows, outputs = (np.frombuffer(b"".join(part), np.float32) for part in zip(*batches, strict=True))
            rows, outputs = rows.reshape(-1, self._rows.shape[1]), outputs.reshape(-1, self._outputs.shape[1])
            self._store(rows[-self._size :], outputs[-self._size :])

    def _store(self, rows: Rows, outputs: Outputs) -> None:
        """Overwrite the oldest stored rows with new rows. The arguments have at most `size` rows."""
        size = self._size
        first = min(len(rows), size - self._next)
        self._rows[self._next : self._next + first] = rows[:first]
        self._outputs[self._next : self._next + first] = outputs[:first]
        if rest := len(rows) - first:
            self._rows[:rest] = rows[first:]
            self._outputs[:rest] = outputs[first:]
        self._next = (self._next + len(rows)) % size
        self._count = min(size, self._count + len(rows))


@lru_cache(16)  # most batches of a busy server have the same size
def _evenly_spaced(count: int, size: int) -> npt.NDArray[np.intp]:
    """Return the indices of `size` evenly spaced rows among `count` rows."""
    return np.linspace(0, count - 1, size).astype(np.intp)
