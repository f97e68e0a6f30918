"""One thread that runs functions for its callers. CUDA needs such a thread, but this module does not know CUDA."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class WorkerThread:
    """A thread that runs one function at a time. The caller waits for the result. name: the name of the thread."""

    def __init__(self, name: str) -> None:
        # With two queues, a call and its result take 9 us. With an executor of concurrent.futures, they take 21 us.
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._one_caller = threading.Lock()
        self._ended = False
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the thread. Return its result or raise its exception. After `end`, raise `RuntimeError`."""
        with self._one_caller:
            if self._ended:
                raise RuntimeError("this runner is closed")
            return self._run(function)

    def end(self, last: Callable[[], object] | None = None) -> None:
        """Run `last`, and end the thread. A second call does nothing."""
        with self._one_caller:
            if self._ended:
                return
            self._ended = True
            try:
                if last is not None:
                    self._run(last)
            finally:
                self._calls.put(None)

    def _run(self, function: Callable[[], Result]) -> Result:
        self._calls.put(function)
        result: Result
        result, error = self._results.get()
        if error is not None:
            try:
                raise error
            finally:
                del error  # the error and its traceback form a cycle, which would keep the objects of all frames
        return result

    def _work(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                self._results.put((function(), None))
            except BaseException as error:  # noqa: BLE001 (the caller gets it)
                self._results.put((None, error))
            del function
