"""Several worker processes on one listening socket: start the workers, replace a worker that dies, stop all workers.

This module knows processes and signals. It knows nothing of the server except the function that each worker runs.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from foldserve.service.errors import FoldserveError, StartError
from foldserve.service.http.listeners import Listeners
from foldserve.service.http.stopping import HANDSHAKE_SECONDS, UNREADY_SIGNAL, refuse_handshakes
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# The minimum seconds between the start of a worker and the start of its replacement. A worker that dies soon after its
# start will probably die again.
_SECONDS_BETWEEN_STARTS = 1.0
# A worker is killed if its stop takes this number of seconds more than drain_timeout.
_GRACE_SECONDS = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Serve = Callable[[Settings, Listeners, Callable[[str], object]], None]


@dataclass(eq=False)
class _Worker:
    """One worker process.

    messages: receives one JSON array from the worker: ["ready", announcement] or ["refused", reason]. When the worker
    dies, its end of this connection closes.
    """

    process: Any  # a Process of the spawn context; its class has no public name
    messages: Connection
    started: float
    ready: bool = False


def supervise(serve: Serve, settings: Settings, listeners: Listeners, announce: Callable[[str], object]) -> None:
    """Run `serve` in `settings.workers` processes until SIGTERM or SIGINT.

    announce: called once, when all workers are ready. `supervise` raises `StartError` if a worker can't start before
    that time.
    """
    try:
        counts = tempfile.TemporaryDirectory(prefix="foldserve-")
    except OSError as error:
        raise StartError(f"several workers need a temporary folder: {error.strerror}") from error
    with counts as folder:
        # prometheus_client keeps the counts of each worker in this folder. It reads the variable when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        supervisor = _Supervisor(serve, settings, listeners)
        try:
            supervisor.start()
            announce(supervisor.announcement)
            supervisor.watch()
        finally:
            supervisor.stop()


class _Supervisor:
    def __init__(self, serve: Serve, settings: Settings, listeners: Listeners) -> None:
        self._serve = serve
        self._settings = settings
        self._listeners = listeners
        # A fork would copy locks that other threads hold, but not the threads that release them.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        # Python calls a signal's handler in the main thread, but the kernel may deliver the signal to another thread.
        # This pipe wakes up the main thread in that case.
        self._signalled, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self.announcement = ""

    def start(self) -> None:
        """Start all workers, and return when all are ready."""
        for _ in range(self._settings.workers):
            self._start_worker()
        while waiting := [worker for worker in self._workers if not worker.ready]:
            for worker in self._wait_for_message(waiting):
                if not self._receive(worker):
                    raise StartError(f"worker {worker.process.pid} died before it was ready")

    def watch(self) -> None:
        """Replace each worker that dies. This method never returns."""
        while True:
            for worker in self._wait_for_message(self._workers):
                if not self._receive(worker):
                    self._replace(worker)

    def stop(self) -> None:
        """Stop all workers.

        A ready worker drains, and is killed if that takes too long. A worker that is not ready is killed at once.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        ready = [worker for worker in self._workers if worker.ready]
        if ready and self._settings.drain_delay:
            for worker in ready:
                os.kill(worker.process.pid, UNREADY_SIGNAL)
            time.sleep(self._settings.drain_delay)
        # From here on, the kernel takes no new connection. The workers accept the waiting connections, then close the
        # socket.
        for listener in self._listeners.all:
            refuse_handshakes(listener)
        time.sleep(HANDSHAKE_SECONDS if ready else 0)
        self._listeners.close()
        for worker in self._workers:
            worker.process.terminate() if worker.ready else worker.process.kill()
        deadline = time.monotonic() + self._settings.drain_timeout + _GRACE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()

    def _start_worker(self) -> None:
        with _deferred_stop_signals():
            messages, pipe = self._context.Pipe(duplex=True)
            process = self._context.Process(
                target=_run_worker, args=(self._serve, self._settings, self._listeners, pipe)
            )
            process.start()
            pipe.close()
            self._workers.append(_Worker(process, messages, time.monotonic()))

    def _wait_for_message(self, workers: list[_Worker]) -> list[_Worker]:
        """Wait until a worker has sent a message or died. Return all such workers."""
        ready = wait([self._signalled, *(worker.messages for worker in workers)])
        if self._signalled in ready:
            os.read(self._signalled, 4096)
        return [worker for worker in workers if worker.messages in ready]

    def _receive(self, worker: _Worker) -> bool:
        """Handle one message of a worker. Returns False if the worker is dead.

        Raises `StartError` if the worker can't start, unless all workers have been ready once.
        """
        try:
            kind, text = json.loads(worker.messages.recv_bytes())
        except (EOFError, ConnectionResetError):
            return False
        if kind == "ready":
            worker.ready = True
            self.announcement = text
        elif not self.announcement:
            raise StartError(text)
        else:
            event = "stopped" if worker.ready else "refused to start"
            log.error("worker %d %s: %s", worker.process.pid, event, text)
        return True

    def _replace(self, dead: _Worker) -> None:
        dead.process.join()
        log.error("worker %d died with status %s; starting another", dead.process.pid, dead.process.exitcode)
        mark_process_dead(dead.process.pid)  # type: ignore[no-untyped-call]
        dead.messages.close()
        self._workers.remove(dead)
        # A signal ends this sleep. If another worker dies during the sleep, that worker is replaced after the sleep.
        time.sleep(max(0.0, dead.started + _SECONDS_BETWEEN_STARTS - time.monotonic()))
        self._start_worker()


@contextmanager
def _deferred_stop_signals() -> Iterator[None]:
    """Delay the stop signals until the block ends: an interrupted start of a worker would print a traceback."""
    received: list[int] = []
    handlers = [signal.signal(number, lambda number, _: received.append(number)) for number in _STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_STOP_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
        for received_number in received:
            signal.raise_signal(received_number)


def _run_worker(serve: Serve, settings: Settings, listeners: Listeners, pipe: Connection) -> None:
    """Serve in this process, and report to the supervisor through `pipe`."""
    threading.Thread(target=_stop_without_supervisor, args=(pipe,), daemon=True).start()
    try:
        serve(settings, listeners, lambda text: _send(pipe, "ready", text))
    except FoldserveError as error:
        _send(pipe, "refused", str(error))
        raise SystemExit(1) from None


def _send(pipe: Connection, kind: str, text: str) -> None:
    with suppress(OSError):  # the supervisor may have died; then a thread stops this process
        pipe.send_bytes(json.dumps([kind, text]).encode())  # `send` would pickle the message, and a pickle may run code


def _stop_without_supervisor(pipe: Connection) -> None:
    """Stop this process when its supervisor dies, because no other process would stop it."""
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
