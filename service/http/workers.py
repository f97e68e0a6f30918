"""Several processes on one listening socket: start them, replace the ones that die, stop them all.

It knows processes and signals, and of serving only the function that each of them runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from foldserve.service.errors import FoldserveError, StartError
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# One that dies young dies again: the next is not started before its time.
_BETWEEN_STARTS_SECONDS = 1.0
# What a worker may take, beyond the time to drain, until it is killed.
_GRACE_SECONDS = 5.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)

Serve = Callable[[Settings, socket.socket, Callable[[str], object]], None]


@dataclass(eq=False)
class _Worker:
    process: Any  # of the spawn context, whose class has no public name
    told: Connection  # "ready" and the announcement, or "refused" and why; its other end closes with the worker
    started: float
    ready: bool = False


def supervise(serve: Serve, settings: Settings, listener: socket.socket, announce: Callable[[str], object]) -> None:
    """Run `serve` in `settings.workers` processes until SIGTERM or SIGINT; `announce` once, when all are ready.

    Raises `StartError` when one is refused before that.
    """
    try:
        counts = tempfile.TemporaryDirectory(prefix="foldserve-")
    except OSError as error:
        raise StartError(f"several workers need a temporary folder: {error.strerror}") from error
    with counts as folder:
        # Where prometheus_client keeps what each of them counts: read when it is imported there.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        supervisor = _Supervisor(serve, settings, listener)
        try:
            supervisor.start()
            announce(supervisor.announcement)
            supervisor.watch()
        finally:
            supervisor.stop()


class _Supervisor:
    def __init__(self, serve: Serve, settings: Settings, listener: socket.socket) -> None:
        self._serve = serve
        self._settings = settings
        self._listener = listener
        # A fork would copy the threads' locks without the threads.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self.announcement = ""

    def start(self) -> None:
        """Start all, and return when all are ready."""
        for _ in range(self._settings.workers):
            self._spawn()
        while waiting := [worker for worker in self._workers if not worker.ready]:
            for worker in self._heard(waiting):
                if not self._listen(worker):
                    raise StartError(f"worker {worker.process.pid} died before it was ready")

    def watch(self) -> None:
        """Replace whoever dies, for ever."""
        while True:
            for worker in self._heard(self._workers):
                if not self._listen(worker):
                    self._replace(worker)

    def stop(self) -> None:
        """End all: they drain, and are killed when that takes too long, or when they have nothing to drain yet."""
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        self._listener.close()  # the workers close theirs: who comes now is refused, and waits for nobody
        for worker in self._workers:
            worker.process.terminate() if worker.ready else worker.process.kill()
        deadline = time.monotonic() + self._settings.drain_timeout + _GRACE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()

    def _spawn(self) -> None:
        with _stopped_later():
            told, tell = self._context.Pipe(duplex=True)
            process = self._context.Process(target=_work, args=(self._serve, self._settings, self._listener, tell))
            process.start()
            tell.close()
            self._workers.append(_Worker(process, told, time.monotonic()))

    def _heard(self, workers: list[_Worker]) -> list[_Worker]:
        """Wait until one of them has something to tell, or has died."""
        ready = wait([worker.told for worker in workers])
        return [worker for worker in workers if worker.told in ready]

    def _listen(self, worker: _Worker) -> bool:
        """Take in what a worker tells. False: it is dead. Raises `StartError` if it was refused at the first start."""
        try:
            what, text = worker.told.recv()
        except (EOFError, ConnectionResetError):
            return False
        if what == "ready":
            worker.ready = True
            self.announcement = text
        elif not self.announcement:
            raise StartError(text)
        else:
            how = "stopped" if worker.ready else "refused to start"
            log.error("worker %d %s: %s", worker.process.pid, how, text)
        return True

    def _replace(self, dead: _Worker) -> None:
        dead.process.join()
        log.error("worker %d died with status %s; starting another", dead.process.pid, dead.process.exitcode)
        mark_process_dead(dead.process.pid)  # type: ignore[no-untyped-call]
        dead.told.close()
        self._workers.remove(dead)
        # The others are watched again after this wait, which ends with a signal.
        time.sleep(max(0.0, dead.started + _BETWEEN_STARTS_SECONDS - time.monotonic()))
        self._spawn()


@contextmanager
def _stopped_later() -> Iterator[None]:
    """Let the signals that stop this process wait: a worker that was half started would tell of it by a traceback."""
    came: list[int] = []
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in _STOPPING]
    try:
        yield
    finally:
        for stopping, handler in zip(_STOPPING, before, strict=True):
            signal.signal(stopping, handler)
        for number in came:
            signal.raise_signal(number)


def _work(serve: Serve, settings: Settings, listener: socket.socket, tell: Connection) -> None:
    """Be one worker."""
    threading.Thread(target=_end_with, args=(tell,), daemon=True).start()
    try:
        serve(settings, listener, lambda text: tell.send(("ready", text)))
    except FoldserveError as error:
        tell.send(("refused", str(error)))
        raise SystemExit(1) from None


def _end_with(tell: Connection) -> None:
    """Stop when the supervisor is gone: nobody else would ever stop this process."""
    try:
        tell.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
