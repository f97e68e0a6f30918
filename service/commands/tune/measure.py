"""How fast a model runs on this machine: latency by batch, device and threads, and rows per second by processes.

It owns the clock: what is run, in which order, how often. It knows a bundle and runtimes that are proven before they
are measured, and chooses nothing. What is compared is measured in turn, round after round, so that what else the
machine does falls on all alike; of each a median remains. Rows are drawn anew for each round.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import default_rng

from foldserve.service import bundle
from foldserve.service.bundle import Bundle, Feature, Manifest, Parity
from foldserve.service.errors import DeviceError, FoldserveError, RuntimeFailure
from foldserve.service.machine import cgroup
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.load import Runtime
from foldserve.service.runtime.session import Device, Options, one_line

Rows = npt.NDArray[np.float32]
# What opens and proves a runtime. Another process may be told of it: it is a function of a module.
Load = Callable[[Bundle, Options], tuple[Runtime, Parity]]
Curve = Mapping[int, float]  # by the rows of a batch, the median seconds of a run

# Of the batches measured; each of them up to `MAX_BATCH` may become a CUDA graph.
BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16_384)
MAX_BATCH = 1024  # the default of the setting: what is larger comes in pieces, and is measured where that is quick
GRAPHS, PLAIN = "CUDA, graphs", "CUDA, plain runs"
_FEWEST_ROUNDS = 3
_VISIT_SECONDS = 0.015  # one batch, one way, one round
_POOL_BYTES = 2**28  # of one round's rows


@dataclass(frozen=True)
class Latencies:
    """Seconds of one run by batch: on the CPU by threads, and on CUDA with a graph for each batch and with none.

    cpu: by the threads of one run, 1 at least. graphs, plain: empty without CUDA.
    left_out: what was not measured, and why, one line each.
    """

    cpu: Mapping[int, Curve]
    graphs: Curve = field(default_factory=dict)
    plain: Curve = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Throughput:
    """Rows per second of so many processes together, each running batches of `MAX_BATCH` rows.

    rates: by the number of processes. left_out: why there are no more of them, where there is a reason.
    """

    rates: Mapping[int, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


# --- latency ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """One way of running a model, and up to which batch it is measured."""

    name: str
    run: Callable[[Rows], Rows]
    largest: int


def latencies(
    whole: Bundle,
    device: Device,
    seconds: float,
    load: Load = runtime.load,
    batches: Sequence[int] = BATCHES,
    begin: Callable[[], object] = lambda: None,
) -> Latencies:
    """Measure the model on the CPU with 1, 2, 4, ... threads and, unless `device` is cpu, on CUDA where it answers.

    seconds: about how long it takes, once everything is open; a large model takes longer. batches: rising. begin:
    called then, when nothing is refused any more.
    Raises `BundleError` as `load` does, `DeviceError` where `device` is cuda and none answers, and `RuntimeFailure`
    when a run fails that the service would have to do.
    """
    left_out: list[str] = []
    largest = max(batches)
    ways = {}
    with ExitStack() as opened:

        def way(name: str, options: Options, up_to: int = largest) -> _Way:
            loaded, _ = load(whole, options)
            opened.callback(loaded.close)
            return _Way(name, loaded.run, up_to)

        cuda = []
        # The sessions' threads inherit that it is blocked: a Ctrl-C that one of them took is one that Python may miss.
        with _ctrl_c_later():
            for threads in doublings(cgroup.threads()):
                ways[threads] = way(cpu_name(threads), Options("cpu", threads=threads))
            if device == "cpu":
                left_out.append("CUDA: --device cpu")
            else:
                buckets = tuple(batch for batch in batches if batch <= MAX_BATCH)
                try:
                    cuda.append(way(GRAPHS, Options("cuda", buckets=buckets), MAX_BATCH))
                    cuda.append(way(PLAIN, Options("cuda", buckets=())))
                except DeviceError as refusal:
                    if device == "cuda":
                        raise
                    cuda.clear()  # one without the other decides nothing
                    left_out.append(f"CUDA: {refusal}")
        begin()
        every = [*ways.values(), *cuda]
        found = _rounds(every, whole.manifest, batches, seconds, left_out)
    curves = {measured.name: found[measured.name] for measured in every}
    graphs, plain = (curves[measured.name] for measured in cuda) if cuda else ({}, {})
    return Latencies(
        {threads: curves[measured.name] for threads, measured in ways.items()}, graphs, plain, tuple(left_out)
    )


def _rounds(
    ways: Sequence[_Way], manifest: Manifest, batches: Sequence[int], seconds: float, left_out: list[str]
) -> dict[str, dict[int, float]]:
    """Measure each way at each of its batches, round after round, until the time is over."""
    generator = default_rng()
    row_bytes = 4 * len(manifest.features)
    # A pool holds twice the largest batch, for each run to have other rows.
    fitting = [batch for batch in batches if batch <= MAX_BATCH or 2 * batch * row_bytes <= _POOL_BYTES]
    pool = draw(manifest, 2 * max(fitting), generator)
    begun = time.perf_counter()
    cells = {
        batch: [way for way in ways if batch <= way.largest and _quick(way, pool[:batch], seconds / 200, left_out)]
        for batch in fitting
    }
    left_out += [
        f"{batch:,} rows: {plural(len(manifest.features), 'column')}, too much memory"
        for batch in batches
        if batch not in fitting
    ]
    visits: dict[tuple[str, int], list[float]] = defaultdict(list)
    turn = 0
    while turn < _FEWEST_ROUNDS or time.perf_counter() - begun < seconds:
        for batch, measured in cells.items():
            first = turn % max(1, len(measured))
            for way in measured[first:] + measured[:first]:
                visits[way.name, batch].append(_visit(way.run, pool, batch, generator))
        pool = draw(manifest, len(pool), generator)
        turn += 1
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for (name, batch), medians in visits.items():
        curves[name][batch] = statistics.median(medians)
    return curves


def _quick(way: _Way, rows: Rows, limit: float, left_out: list[str]) -> bool:
    """Whether a batch is to be measured: it is one that the service runs, or it takes less than `limit`, in seconds."""
    served = len(rows) <= MAX_BATCH
    try:
        way.run(rows)  # whatever a first run prepares
        started = time.perf_counter()
        way.run(rows)
        took = time.perf_counter() - started
    except Exception as error:
        reason = str(error) if isinstance(error, FoldserveError) else one_line(error)
        if served:
            raise RuntimeFailure(f"{way.name}: a run of {plural(len(rows), 'row')} failed: {reason}") from error
        left_out.append(f"{way.name}, {len(rows):,} rows: {reason}")
        return False
    if served or took <= limit:
        return True
    left_out.append(f"{way.name}, {len(rows):,} rows: a run takes {took * 1e3:.3g} ms, too long for the time given")
    return False


def _visit(run: Callable[[Rows], Rows], pool: Rows, batch: int, generator: np.random.Generator) -> float:
    """Run batches of the pool, each from another place, for the time of a visit; give the median seconds of a run."""
    times: list[float] = []
    places = generator.integers(0, len(pool) - batch, 256, endpoint=True).tolist()
    clock = time.perf_counter
    end = clock() + _VISIT_SECONDS
    now = 0.0
    while now < end:
        place = places[len(times) % len(places)]
        rows = pool[place : place + batch]
        started = clock()
        run(rows)
        now = clock()
        times.append(now - started)
    return statistics.median(times)


def draw(manifest: Manifest, rows: int, generator: np.random.Generator) -> Rows:
    """Draw float32 [rows, features] within the training ranges: what a request may hold. No value is missing."""
    return np.stack([_column(feature, rows, generator) for feature in manifest.features], axis=1)


def _column(feature: Feature, rows: int, generator: np.random.Generator) -> Rows:
    if feature.largest_code is not None:
        return generator.integers(0, feature.largest_code, rows, endpoint=True).astype(np.float32)
    low, high = feature.range or (0.0, 0.0)
    return generator.uniform(low, high, rows).astype(np.float32)


# --- throughput ------------------------------------------------------------------------------------------------------


def throughput(
    whole: Bundle, options: Options, counts: Sequence[int], seconds: float, load: Load = runtime.load
) -> Throughput:
    """Measure how many rows `counts` of processes run in a second, each with `options` and batches of `MAX_BATCH`.

    seconds: about how long it takes, once all processes are ready. counts: rising, from 1.
    Raises `DeviceError` where the first process can't be had.
    """
    with _workers(max(counts), (whole.path, options, load)) as workers:
        ready, refusal = _ready(workers)
        if not ready:
            raise DeviceError(f"no process can run the model: {refusal}")
        had = [count for count in counts if count <= len(ready)]
        visit = seconds / (_FEWEST_ROUNDS * len(had))
        rates: dict[int, list[float]] = {count: [] for count in had}
        for turn in range(_FEWEST_ROUNDS):
            for count in had[:: 1 if turn % 2 else -1]:
                rates[count].append(_together(ready[:count], visit))
    left_out = (f"more than {plural(len(ready), 'process')} at once: {refusal}",) if refusal else ()
    return Throughput({count: statistics.median(found) for count, found in rates.items()}, left_out)


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Let SIGINT wait; threads and processes that are started meanwhile never get it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _workers(count: int, task: tuple[Path, Options, Load]) -> Iterator[list[Connection]]:
    """Start processes that run the model when they are told to; they end with this block, and with this process."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the first start does it, and lets the signal below through
    connections: list[Connection] = []
    processes: list[Any] = []  # of the spawn context, whose class has no public name
    try:
        for _ in range(count):
            with _ctrl_c_later():  # it is for this process, which ends the others: they inherit that it is blocked
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(*task, theirs), daemon=True)
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


def _work(folder: Path, options: Options, load: Load, told: Connection) -> None:
    """Be one process: say None or why not, and then for each number of seconds run that long and say rows a second."""
    try:
        whole = bundle.read(folder)
        loaded, _ = load(whole, options)
        pool = draw(whole.manifest, 2 * MAX_BATCH, default_rng())
        loaded.run(pool[:MAX_BATCH])
    except Exception as error:  # noqa: BLE001 (it is told to who asked)
        told.send(str(error) if isinstance(error, FoldserveError) else one_line(error))
        return
    told.send(None)
    clock = time.perf_counter
    while True:
        try:
            seconds: float = told.recv()
        except EOFError:
            return
        runs = 0
        started = now = clock()
        while now - started < seconds:
            place = runs % MAX_BATCH
            loaded.run(pool[place : place + MAX_BATCH])
            runs += 1
            now = clock()
        told.send(runs * MAX_BATCH / (now - started))


def _ready(workers: Sequence[Connection]) -> tuple[list[Connection], str | None]:
    """Wait for all to say how it is, and give those that are ready, with what the first of the others said."""
    ready, refusal = [], None
    for worker in workers:
        try:
            said: str | None = worker.recv()
        except EOFError:
            said = "it died"
        if said is None:
            ready.append(worker)
        else:
            refusal = refusal or said
    return ready, refusal


def _together(workers: Sequence[Connection], seconds: float) -> float:
    """Let them run at the same time, and add up their rows per second."""
    for worker in workers:
        worker.send(seconds)
    try:
        return math.fsum(worker.recv() for worker in workers)
    except EOFError:
        raise RuntimeFailure("a process that ran the model died") from None


def cpu_name(threads: int) -> str:
    """Name a way of running on the CPU."""
    return f"CPU, {plural(threads, 'thread')}"


def doublings(most: int) -> list[int]:
    """Give 1, 2, 4, ... and `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def plural(count: int, what: str) -> str:
    """Write a number and what is counted: 1 thread, 1,024 rows."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"
