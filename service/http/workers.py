"""Starts several worker processes on the same listeners, replaces dead workers, and stops all workers.

This module uses processes and signals. The only part of the server that this module knows is the function that each
worker runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from foldserve.service.errors import FoldserveError, StartError
from foldserve.service.http.crew import Member, WorkerCrew
from foldserve.service.http.line import Line
from foldserve.service.http.listeners import Listeners
from foldserve.service.http.questions import Questions
from foldserve.service.http.shares import Share, create_shares
from foldserve.service.http.stopping import HANDSHAKE_SECONDS, UNREADY_SIGNAL, refuse_handshakes
from foldserve.service.http.worker_control import WorkerControl
from foldserve.service.live.command import Command, outcome_of
from foldserve.service.live.control import Control
from foldserve.service.live.coordinator import create_coordinator
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# The smallest number of seconds between the start of a worker and the start of its replacement. A worker that dies soon
# after its start will probably die again.
_SECONDS_BETWEEN_STARTS = 1.0
# The supervisor kills a worker that needs more than drain_timeout plus this number of seconds to stop.
_GRACE_SECONDS = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Serve = Callable[[Settings, Listeners, Callable[[str], object], Control], None]


@dataclass(eq=False)
class _Worker:
    """One worker process.

    member: the object through which the supervisor sends messages to the worker; its connection closes when the worker
    dies.
    """

    process: Any  # a process of the context `spawn`; its class has no public name
    member: Member
    share: Share
    started: float
    ready: bool = False

    @property
    def messages(self) -> Connection:
        """The connection on which the supervisor receives the worker's messages."""
        return self.member.line.connection


def supervise(
    serve: Serve,
    settings: Settings,
    listeners: Listeners,
    announce: Callable[[str], object],
    on_loaded: Callable[[], object],
) -> None:
    """Run `serve` in `settings.workers` processes until SIGTERM or SIGINT.

    announce: a function that is called once, when all workers are ready. on_loaded: a function that is called once,
    after the models are loaded and before a worker accepts connections. `supervise` raises `StartError` if the first
    workers can't start.
    """
    try:
        counts = tempfile.TemporaryDirectory(prefix="foldserve-")
    except OSError as error:
        raise StartError(f"several workers need a temporary folder: {error.strerror}") from error
    with counts as folder:
        # The library prometheus_client stores the counts of each worker in this folder. The library prometheus_client
        # reads PROMETHEUS_MULTIPROC_DIR during its import.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        supervisor = _Supervisor(serve, settings, listeners, on_loaded)
        try:
            supervisor.start()
            announce(supervisor.announcement)
            supervisor.watch()
        finally:
            supervisor.stop()


class _Supervisor:
    def __init__(self, serve: Serve, settings: Settings, listeners: Listeners, on_loaded: Callable[[], object]) -> None:
        self._serve = serve
        self._settings = settings
        self._listeners = listeners
        # A fork would copy the locks that other threads hold, but would not copy these threads, so no thread would
        # release the locks.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        # The `Share` objects that no living worker uses.
        self._free_shares = create_shares(self._context, settings.workers)
        # Python calls a signal handler in the main thread, but the kernel may deliver the signal to another thread. If
        # another thread gets the signal, the pipe wakes up the main thread.
        self._signalled, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._crew = WorkerCrew(on_loaded)
        self._questions = Questions()
        self._coordinator = create_coordinator(settings, self._crew)
        self._start_error: FoldserveError | None = None
        self.announcement = ""

    def start(self) -> None:
        """Start all workers, and return when all workers are ready."""
        for _ in range(self._settings.workers):
            self._start_worker()
        threading.Thread(target=self._coordinate, name="models", daemon=True).start()
        while not all(worker.ready for worker in self._workers):
            for worker in self._wait_for_message(self._workers):
                if not self._receive(worker):
                    raise StartError(f"worker {worker.process.pid} died before it was ready")
            if self._start_error is not None:
                raise self._start_error

    def _coordinate(self) -> None:
        """Load the models in all workers, then run the coordinator, which carries out later changes of the models."""
        try:
            self._coordinator.start()
        except FoldserveError as error:
            self._start_error = error
            os.write(self._wakeup, b"\0")
            return
        self._coordinator.run()

    def watch(self) -> None:
        """Replace each worker that dies. This method never returns."""
        while True:
            for worker in self._wait_for_message(self._workers):
                if not self._receive(worker):
                    self._replace(worker)

    def stop(self) -> None:
        """Stop all workers.

        Ready workers drain first, and are killed only if draining takes too long. Workers that are not ready are killed
        immediately.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self._coordinator.stop()
        ready = [worker for worker in self._workers if worker.ready]
        if ready and self._settings.drain_delay:
            for worker in ready:
                os.kill(worker.process.pid, UNREADY_SIGNAL)
            time.sleep(self._settings.drain_delay)
        # After this loop, the kernel accepts no new connections. The workers still accept the connections that wait in
        # the kernel's queue, and then close the socket.
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
            share = self._free_shares.pop()
            listeners = replace(self._listeners, share=share)
            process = self._context.Process(target=_run_worker, args=(self._serve, self._settings, listeners, pipe))
            process.start()
            pipe.close()
            member = Member(Line(messages))
            self._crew.add(member)
            self._workers.append(_Worker(process, member, share, time.monotonic()))

    def _wait_for_message(self, workers: list[_Worker]) -> list[_Worker]:
        """Wait until a worker has sent a message or has died.

        Return all workers that have sent a message or have died.
        """
        ready = wait([self._signalled, *(worker.messages for worker in workers)])
        if self._signalled in ready:
            os.read(self._signalled, 4096)
        return [worker for worker in workers if worker.messages in ready]

    def _receive(self, worker: _Worker) -> bool:
        """Handle one message from a worker. Returns False if the worker is dead.

        Raises `StartError` if the worker can't start and no worker was ready before.
        """
        try:
            kind, text, number = worker.member.line.receive()
        except (EOFError, ConnectionResetError):
            return False
        if kind in ("prepared", "committed", "failed"):
            worker.member.follows = worker.member.follows or kind == "committed"
            worker.member.replies.put((text, number))
        elif kind == "execute":
            self._execute(Command.model_validate_json(text), worker.member.line, number)
        elif kind == "ask":
            self._questions.ask(text, worker.member.line, number, (w.member.line for w in self._workers if w.ready))
        elif kind == "answer":
            self._questions.take(text, number, worker.member.line)
        elif kind == "ready":
            worker.ready = True
            self.announcement = text
        elif not self.announcement:
            raise StartError(text)
        else:
            event = "stopped" if worker.ready else "refused to start"
            log.error("worker %d %s: %s", worker.process.pid, event, text)
        return True

    def _execute(self, command: Command, line: Line, number: int) -> None:
        """Execute a command that a worker has received, and send the outcome to this worker."""

        def reply(error: BaseException | None) -> None:
            line.send("executed", outcome_of(error).model_dump_json(), number)

        try:
            self._coordinator.submit(command).add_done_callback(lambda done: reply(done.exception()))
        except FoldserveError as error:
            reply(error)

    def _replace(self, dead: _Worker) -> None:
        dead.process.join()
        log.error("worker %d died with status %s; starting another", dead.process.pid, dead.process.exitcode)
        mark_process_dead(dead.process.pid)  # type: ignore[no-untyped-call]
        self._workers.remove(dead)
        dead.share.leave()
        self._free_shares.append(dead.share)
        self._crew.remove(dead.member)
        self._questions.remove(dead.member.line)
        dead.member.line.close()
        # A signal interrupts this sleep. If another worker dies during this sleep, the supervisor replaces that worker
        # after the sleep.
        time.sleep(max(0.0, dead.started + _SECONDS_BETWEEN_STARTS - time.monotonic()))
        self._start_worker()


@contextmanager
def _deferred_stop_signals() -> Iterator[None]:
    """Delay SIGTERM and SIGINT until the block ends, because interrupting the start of a worker prints a traceback."""
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
    line = Line(pipe)
    try:
        serve(settings, listeners, lambda text: line.send("ready", text), WorkerControl(line))
    except FoldserveError as error:
        line.send("refused", str(error))
        raise SystemExit(1) from None
