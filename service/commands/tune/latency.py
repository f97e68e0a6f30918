"""Measures the time of one run for each batch size: on the CPU for each number of threads, and on CUDA.

This module runs bundles, and chooses no settings. Each round runs every variant in turn, so that other programs slow
down all variants alike. The result is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

# NumPy imports numpy.random only at its first use. If a user presses Ctrl-C during that import, the interrupt can get
# lost, so this module imports numpy.random at the start.
from numpy.random import Generator, default_rng

from foldserve.service.arrays import Rows, Run
from foldserve.service.bundle import Bundle, Manifest
from foldserve.service.commands.tune.workload import MAX_BATCH, Load, doublings, draw, reason, sigint_blocked
from foldserve.service.errors import DeviceError, RuntimeFailure
from foldserve.service.figures import count_of
from foldserve.service.machine import cgroup
from foldserve.service.runtime.load import load as load_bundle
from foldserve.service.runtime.session import Device, Options, is_expected

Curve = Mapping[int, float]  # batch size -> median time of one run, in seconds

# Batch sizes above `MAX_BATCH` are measured only to show the trend. A server splits a batch above `MAX_BATCH` into
# several runs.
BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16_384)
_GRAPHS, _PLAIN = "CUDA, graphs", "CUDA, plain runs"
_MIN_ROUNDS = 3
_TURN_SECONDS = 0.015  # in each round, a variant runs batches of one size for this number of seconds
_POOL_BYTES = 2**28  # upper limit of the memory for the rows of one round


@dataclass(frozen=True)
class Latencies:
    """The time of one run, in seconds, for each batch size.

    cpu: the curve for each number of threads. One thread is always measured. graphs: the curve on CUDA with a graph for
    each batch size. plain: the curve on CUDA without graphs. `graphs` and `plain` are empty without CUDA. skipped: one
    line for each omitted measurement, with the reason.
    """

    cpu: Mapping[int, Curve]
    graphs: Curve = field(default_factory=dict)
    plain: Curve = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, Curve]:
        """The curve of each variant, by the variant's name. A variant has the name that the printed table shows."""
        curves = {_cpu_name(threads): curve for threads, curve in self.cpu.items()}
        return curves | ({_GRAPHS: self.graphs, _PLAIN: self.plain} if self.plain else {})


@dataclass(frozen=True)
class _Variant:
    """One way to run the model, and the largest batch to measure."""

    name: str
    run: Run
    max_batch: int


def measure_latencies(
    bundle: Bundle,
    device: Device,
    seconds: float,
    load: Load = load_bundle,
    batches: Sequence[int] = BATCHES,
    on_open: Callable[[], object] = lambda: None,
) -> Latencies:
    """Measure the model on the CPU with 1, 2, 4, ... threads.

    Also measure the model on CUDA, if CUDA works and `device` is not cpu.

    seconds: the approximate time to measure after every session is open. A large model takes longer to measure.
    batches: batch sizes in ascending order.
    on_open: called when every session is open.
    Raises `BundleError` as `load` does. Raises `DeviceError` if `device` is cuda and CUDA is not available. Raises
    `RuntimeFailure` if a run fails at a batch size that a server would use.
    """
    skipped: list[str] = []
    with ExitStack() as stack:

        def open_variant(name: str, options: Options, max_batch: int) -> _Variant:
            runtime, _ = load(bundle, options)
            stack.callback(runtime.close)
            return _Variant(name, runtime.run, max_batch)

        with sigint_blocked():  # sessions start threads
            cpu = {
                threads: open_variant(_cpu_name(threads), Options("cpu", threads=threads), max(batches))
                for threads in doublings(cgroup.threads())
            }
            cuda = _open_cuda(open_variant, device, batches, skipped)
        on_open()
        curves = _measure_rounds([*cpu.values(), *cuda], bundle.manifest, batches, seconds, skipped)
    graphs, plain = (curves[variant.name] for variant in cuda) if cuda else ({}, {})
    return Latencies({threads: curves[variant.name] for threads, variant in cpu.items()}, graphs, plain, tuple(skipped))


def _open_cuda(
    open_variant: Callable[[str, Options, int], _Variant], device: Device, batches: Sequence[int], skipped: list[str]
) -> list[_Variant]:
    """Open the model on CUDA twice: with CUDA graphs, and without CUDA graphs.

    Return both variants, or an empty list if CUDA is not measured.
    """
    if device == "cpu":
        skipped.append("CUDA: --device cpu")
        return []
    buckets = tuple(batch for batch in batches if batch <= MAX_BATCH)
    try:
        return [
            open_variant(_GRAPHS, Options("cuda", buckets=buckets), MAX_BATCH),
            open_variant(_PLAIN, Options("cuda", buckets=()), max(batches)),
        ]
    except DeviceError as refusal:
        if device == "cuda":
            raise
        if not is_expected(refusal):
            skipped.append(f"CUDA: {refusal}")
        return []


def _measure_rounds(
    variants: Sequence[_Variant], manifest: Manifest, batches: Sequence[int], seconds: float, skipped: list[str]
) -> dict[str, dict[int, float]]:
    """Measure each variant at each of its batch sizes, in rounds, for `seconds`.

    Return the curve of each variant by the name of the variant.
    """
    generator = default_rng()
    row_bytes = 4 * len(manifest.features)
    # The pool of rows is twice as large as the largest batch, so that successive runs get different rows.
    fitting = [batch for batch in batches if batch <= MAX_BATCH or 2 * batch * row_bytes <= _POOL_BYTES]
    pool = draw(manifest, 2 * max(fitting), generator)
    start = time.perf_counter()
    plan = {
        batch: [
            variant
            for variant in variants
            if batch <= variant.max_batch and _is_measurable(variant, pool[:batch], seconds / 200, skipped)
        ]
        for batch in fitting
    }
    skipped += [
        f"{batch:,} rows: {count_of(len(manifest.features), 'column')} need too much memory"
        for batch in batches
        if batch not in fitting
    ]
    medians: dict[tuple[str, int], list[float]] = defaultdict(list)
    turn = 0
    while turn < _MIN_ROUNDS or time.perf_counter() - start < seconds:
        for batch, measured in plan.items():
            first = turn % max(1, len(measured))  # each round begins with the next variant
            for variant in measured[first:] + measured[:first]:
                medians[variant.name, batch].append(_median_run(variant.run, pool, batch, generator))
        pool = draw(manifest, len(pool), generator)
        turn += 1
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for (name, batch), found in medians.items():
        curves[name][batch] = statistics.median(found)
    return curves


def _is_measurable(variant: _Variant, rows: Rows, max_seconds: float, skipped: list[str]) -> bool:
    """Return whether to measure this batch size.

    A batch size above `MAX_BATCH` is measured only if one run takes at most `max_seconds`.
    """
    used = len(rows) <= MAX_BATCH
    try:
        variant.run(rows)  # the first run also prepares memory
        start = time.perf_counter()
        variant.run(rows)
        seconds = time.perf_counter() - start
    except Exception as error:
        if used:
            raise RuntimeFailure(
                f"{variant.name}: a run of {count_of(len(rows), 'row')} failed: {reason(error)}"
            ) from error
        skipped.append(f"{variant.name}, {len(rows):,} rows: {reason(error)}")
        return False
    if used or seconds <= max_seconds:
        return True
    skipped.append(f"{variant.name}, {len(rows):,} rows: a run takes {seconds * 1e3:.3g} ms; raise --seconds")
    return False


def _median_run(run: Run, pool: Rows, batch: int, generator: Generator) -> float:
    """Run batches for `_TURN_SECONDS` seconds.

    Each batch starts at a random row of the pool. Return the median time of a run, in seconds.
    """
    times: list[float] = []
    places = generator.integers(0, len(pool) - batch, 256, endpoint=True).tolist()
    clock = time.perf_counter
    end = clock() + _TURN_SECONDS
    now = 0.0
    while now < end:
        place = places[len(times) % len(places)]
        rows = pool[place : place + batch]
        start = clock()
        run(rows)
        now = clock()
        times.append(now - start)
    return statistics.median(times)


def _cpu_name(threads: int) -> str:
    return f"CPU, {count_of(threads, 'thread')}"
