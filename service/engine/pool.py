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
    """Runs functions on `threads` threads. A limited number of calls may wait. Any further call is refused at once."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "body")
        self._free = threading.Semaphore(threads * _WAITING_PER_THREAD)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call `function` on a thread. Must be called on the event loop. Raises `QueueFull`.

        Only the returned future keeps the result. `asyncio.wrap_future` would make a cycle of references that also
        keeps the result. The result of a request with many rows takes tens of megabytes.
        """
        if not self._free.acquire(blocking=False):
            raise QueueFull("too many large bodies wait to be read", retry_after=1)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        running = self._executor.submit(_run, future, function, arguments)
        # The callback belongs to the thread's future. The event loop's future is done as soon as it is cancelled. The
        # thread may still work then.
        running.add_done_callback(lambda _: self._free.release())
        future.add_done_callback(lambda done: running.cancel() if done.cancelled() else None)
        return future


def _run(future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call `function`, and give its outcome to the future on the event loop."""
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
