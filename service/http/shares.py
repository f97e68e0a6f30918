"""Counts each worker's connections in shared memory, so that every worker gets a fair share of the connections.

Without these counts, the worker that wakes up first would accept all connections that a client opens at the same time.
This module does not depend on sockets or on HTTP.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import MutableSequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

# The count of a worker that accepts no connections because it is starting, is stopping or is dead.
_ABSENT = sys.maxsize // 2


@dataclass(frozen=True)
class Share:
    """Counts the connections of one worker, and compares this count with the counts of the other workers.

    counts: int64 [workers], in shared memory. Each worker writes only its own element, so the workers need no lock.
    index: the index of this worker's element in `counts`.
    """

    counts: MutableSequence[int]
    index: int

    def join(self) -> None:
        """Begin to count the connections of this worker, which has no connections yet."""
        self.counts[self.index] = 0

    def leave(self) -> None:
        """Stop counting, because this worker accepts no more connections."""
        self.counts[self.index] = _ABSENT

    def change(self, connections: int) -> None:
        """Add `connections` to the count of this worker; `connections` is negative if connections have ended."""
        self.counts[self.index] += connections

    def is_fair(self) -> bool:
        """Return whether this worker may accept a connection: it has at most one more than any other worker.

        With a difference of one, a client that opens one connection after the other never makes a worker wait.
        """
        return self.counts[self.index] - min(self.counts) <= 1


def create_shares(context: BaseContext, workers: int) -> list[Share]:
    """Create one `Share` for each worker. context: the multiprocessing context that starts the processes."""
    counts: Any = context.RawArray(ctypes.c_int64, [_ABSENT] * workers)
    return [Share(counts, index) for index in range(workers)]
