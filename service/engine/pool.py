"""A few threads for work that would block the event loop too long. It does not know the kind of work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from foldserve.service.errors import QueueFull

_WAITING_PER_THREAD = 8


class Pool:
    """Runs functions on `threads` threads. A limited number of calls may wait; further calls are refused at once."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "body")
        self._free = threading.Semaphore(threads * _WAITING_PER_THREAD)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call `function` on a thread. Must be called on the event loop. Raises `QueueFull`."""
        if not self._free.acquire(blocking=False):
            raise QueueFull("too many large bodies wait to be read", retry_after=1)
        running = self._executor.submit(function, *arguments)
        # The callback belongs to the thread's future. The event loop's future is done as soon as it is cancelled,
        # although the thread may still work.
        running.add_done_callback(lambda _: self._free.release())
        return asyncio.wrap_future(running)
