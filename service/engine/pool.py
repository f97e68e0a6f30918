"""A few threads for work that would block the event loop for too long.

This module does not depend on the kind of work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from foldserve.service.errors import QueueFull

_WAITING_PER_THREAD = 8


class Pool:
    """Runs functions on `threads` threads. A limited number of calls may wait for a thread.

    If too many calls wait, a new call is refused immediately.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "body")
        self._free = threading.Semaphore(threads * _WAITING_PER_THREAD)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call `function` on a thread. Call this method only on the event loop. Raises `QueueFull`.

        Only the returned future holds the result, which takes tens of megabytes for a request with many rows. With
        `asyncio.wrap_future`, a cycle of references would also keep the result in memory.
        """
        if not self._free.acquire(blocking=False):
            raise QueueFull("too many large bodies wait to be read", retry_after=1)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        running = self._executor.submit(_run, future, function, arguments)
        # `running`, the future of the thread, calls this callback when the thread has finished the call. If `future` is
        # cancelled, it counts as done immediately, even though the thread may still be working.
        running.add_done_callback(lambda _: self._free.release())
        future.add_done_callback(lambda done: running.cancel() if done.cancelled() else None)
        return future


def _run(future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call `function`, and set its result or its error in the future on the event loop."""
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 (it is raised where the future is awaited)
        _call(future, future.set_exception, error)
    else:
        _call(future, future.set_result, result)


def _call(future: asyncio.Future[Any], set_outcome: Callable[[Any], None], outcome: Any) -> None:
    def set_unless_done() -> None:
        if not future.done():
            set_outcome(outcome)

    with suppress(RuntimeError):  # the event loop is closed, so no caller waits for the outcome
        future.get_loop().call_soon_threadsafe(set_unless_done)
