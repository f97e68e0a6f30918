"""Measures the rows per second of several processes that run the model at the same time.

This module runs bundles, and chooses no settings. Each round measures the throughput for every number of processes, and
the result is the median over the rounds.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from numpy.random import default_rng

from foldserve.service.bundle import Bundle, read
from foldserve.service.commands.tune.workload import MAX_BATCH, Load, draw, reason, sigint_blocked
from foldserve.service.errors import DeviceError, RuntimeFailure
from foldserve.service.figures import count_of
from foldserve.service.runtime.load import load as load_bundle
from foldserve.service.runtime.session import Options

_ROUNDS = 3


@dataclass(frozen=True)
class Throughput:
    """The total number of rows that several processes predict per second. Each process runs batches of `MAX_BATCH`
    rows.

    rates: maps the number of processes to rows per second. skipped: the reason why no more processes were measured;
    empty if all were measured.
    """

    rates: Mapping[int, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def measure_throughput(
    bundle: Bundle, options: Options, counts: Sequence[int], seconds: float, load: Load = load_bundle
) -> Throughput:
    """Measure the total rows per second of several processes. Each process uses `options` and batches of `MAX_BATCH`
    rows.

    counts: the numbers of processes, in ascending order from 1. seconds: the approximate time to measure after every
    process is ready.
    Raises `DeviceError` if not even one process can run the model.
    """
    with _processes(max(counts), (bundle.path, options, load)) as connections:
        ready, refusal = _wait_until_ready(connections)
        if not ready:
            raise DeviceError(f"no process can run the model: {refusal}")
        measured = [count for count in counts if count <= len(ready)]
        turn_seconds = seconds / (_ROUNDS * len(measured))
        rates: dict[int, list[float]] = {count: [] for count in measured}
        for turn in range(_ROUNDS):
            for count in measured[:: 1 if turn % 2 else -1]:
                rates[count].append(_run_together(ready[:count], turn_seconds))
    skipped = (f"more than {count_of(len(ready), 'process')} at once: {refusal}",) if refusal else ()
    return Throughput({count: statistics.median(found) for count, found in rates.items()}, skipped)


@contextmanager
def _processes(count: int, task: tuple[Path, Options, Load]) -> Iterator[list[Connection]]:
    """Start processes that run the model on request, and yield a connection to each process.

    The processes end when the context ends.
    """
    context = multiprocessing.get_context("spawn")
    # Start the resource tracker before a new process does it, because starting the tracker unblocks SIGINT.
    resource_tracker.ensure_running()
    connections: list[Connection] = []
    processes: list[Any] = []  # Any, because the class of these processes is not public
    try:
        for _ in range(count):
            with sigint_blocked():  # only this process handles Ctrl-C; it ends the other processes
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve_requests, args=(*task, theirs), daemon=True)
                process.start()
                processes.append(process)
                connections.append(ours)
                theirs.close()
        yield connections
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for connection in connections:
            connection.close()


def _serve_requests(folder: Path, options: Options, load: Load, connection: Connection) -> None:
    """Run the model on request; this function is the main function of a child process. Open the model, and send None,
    or the reason why the model can't be opened. In a loop, receive a number of seconds, run the model for this time,
    and send the measured rows per second.
    """
    try:
        bundle = read(folder)
        runtime, _ = load(bundle, options)
        pool = draw(bundle.manifest, 2 * MAX_BATCH, default_rng())
        runtime.run(pool[:MAX_BATCH])
    except Exception as error:  # noqa: BLE001 (the parent reports it)
        _send(connection, reason(error))
        return
    _send(connection, None)
    clock = time.perf_counter
    while True:
        try:
            seconds: float = _receive(connection)
        except EOFError:
            return
        runs = 0
        start = now = clock()
        while now - start < seconds:
            place = runs % MAX_BATCH
            runtime.run(pool[place : place + MAX_BATCH])
            runs += 1
            now = clock()
        _send(connection, runs * MAX_BATCH / (now - start))


def _send(connection: Connection, value: object) -> None:
    # `send` is not used, because unpickling the received bytes may run code.
    connection.send_bytes(json.dumps(value).encode())


def _receive(connection: Connection) -> Any:
    """Receive the next value from another process. Raises `EOFError` if the other process has ended."""
    return json.loads(connection.recv_bytes())


def _wait_until_ready(connections: Sequence[Connection]) -> tuple[list[Connection], str | None]:
    """Wait until every process has opened the model or has failed.

    Return the connections to the ready processes. If a process has failed, also return the reason.
    """
    ready, refusal = [], None
    for connection in connections:
        try:
            found: str | None = _receive(connection)
        except EOFError:
            found = "the process died"
        if found is None:
            ready.append(connection)
        else:
            refusal = refusal or found
    return ready, refusal


def _run_together(connections: Sequence[Connection], seconds: float) -> float:
    """Let the processes run at the same time, and return the sum of their rows per second."""
    for connection in connections:
        _send(connection, seconds)
    try:
        return math.fsum(_receive(connection) for connection in connections)
    except EOFError:
        raise RuntimeFailure("a process that ran the model died") from None
