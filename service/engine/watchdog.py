"""Finds a run that hangs. This module watches batchers. The caller decides what to do with the process.

Only a new process can serve the model again, because a process can't stop its own call of ONNX Runtime if the call
hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from foldserve.service.engine.batcher import Batcher

# The number of checks within `limit` seconds, and the largest number of seconds between two checks.
_CHECKS, _MAX_SECONDS = 10, 1.0


class Watchdog:
    """A thread that looks for a run that takes more than `limit` seconds.

    batchers: a function that returns the batchers to watch, with their names; each check calls this function. on_hang:
    a function that is called once, on the thread of the watchdog. The arguments of on_hang are the name of the batcher
    whose run hangs, and whether this run blocks the event loop.
    """

    def __init__(
        self,
        limit: float,
        batchers: Callable[[], Iterable[tuple[str, Batcher]]],
        on_hang: Callable[[str, bool], object],
    ) -> None:
        self._limit = limit
        self._batchers = batchers
        self._on_hang = on_hang

    def start(self) -> None:
        """Start the thread. The thread ends with the process, or after it has found a run that hangs."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        late: set[tuple[str, float]] = set()
        while True:
            time.sleep(min(self._limit / _CHECKS, _MAX_SECONDS))
            now = time.monotonic()
            before, late = late, set()
            for name, batcher in self._batchers():
                began = batcher.run_began
                if began is None or now - began <= self._limit:
                    continue
                # one check is not enough: the process may have been paused, and may have resumed just before the check
                if (name, began) in before:
                    batcher.hung = True
                    self._on_hang(name, not batcher.running)
                    return
                late.add((name, began))
