"""Checks the contenders, times them in rounds, and checks them again.

This module only assumes that a contender maps rows to outputs. If one contender fails, the failure is noted and does
not affect the others.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from foldserve.service.bundle import BundleError
from foldserve.service.runtime.session import Precision
from rig.gpu.contender import Contender, ContenderError, Device, Setting
from rig.gpu.networks import TOLERANCES, Rows, distance
from rig.gpu.onnx_contenders import OursGraphs, OursPlain

T = TypeVar("T")
_BATCHES = 3  # the number of different batches; the runs use them in turn, because a single batch would stay in a cache
_MIN_RUNS = 3  # the minimum number of runs of a contender in a round, even for a slow contender
_MAX_RUNS = 4000
_MIN_TAIL = 1.0  # a percentile is reported only if at least this many samples are above it


@dataclass
class Figures:
    """The measurements of one contender with one network, precision and batch size.

    rounds: for each round, the seconds of each run from host memory to host memory. error: the largest relative error
    ||outputs - reference|| / ||reference|| of all checks. device_s: the seconds of the computation alone, measured by
    CUDA events; empty if the input can't stay on the device.
    """

    network: str
    precision: Precision
    batch: int
    contender: str
    rounds: list[list[float]] = field(default_factory=list)
    error: float = 0.0
    device_s: list[float] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        """The median seconds of a run in each round."""
        return [median(samples) for samples in self.rounds]

    @property
    def rates(self) -> list[float]:
        """The rows per second in each round."""
        return [self.batch * len(samples) / sum(samples) for samples in self.rounds]

    def percentile(self, share: float) -> float:
        """Return the percentile `share` of the times of all runs, in seconds. Return NaN if there are too few runs."""
        samples = [x for one in self.rounds for x in one]
        return percentile(samples, share)


@dataclass
class BitComparison:
    """For each batch size, whether the outputs with and without CUDA graphs have the same bits."""

    network: str
    precision: Precision
    same: dict[int, bool] = field(default_factory=dict)


@dataclass
class Block:
    """One network in one precision, and the contenders that could open it.

    seconds: how long one contender is measured in one round. note: called with a contender's title and the reason for
    its failure. spent: the seconds that each contender has spent on compiling so far. compiling: the limit that `spent`
    may not exceed. A contender that has reached the limit compiles nothing more.
    """

    setting: Setting
    rounds: int
    seconds: float
    note: Callable[[str, str], None]
    generator: np.random.Generator
    spent: dict[str, float]
    compiling: float
    opened: list[Contender] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The network and the precision, as text."""
        return f"{self.setting.network.title} {self.setting.precision}"

    def open(self, contenders: Sequence[type[Contender]]) -> None:
        """Open the contenders, and note each contender that can't be opened."""
        for kind in contenders:
            with self._guarded(kind.title, self.where):
                self.opened.append(kind(self.setting))

    def close(self) -> None:
        """Close every contender."""
        for contender in self.opened:
            with self._guarded(contender.title, f"{self.where}, while closing"):
                contender.close()
        self.opened.clear()
        empty_cache(self.setting.device)

    @contextmanager
    def prepared(self, batch: int) -> Iterator[list[Contender]]:
        """Prepare the contenders for a batch size. Yield the contenders that could be prepared."""
        ready = []
        for contender in self.opened:
            if contender.batches and batch not in contender.batches:
                continue
            spent = self.spent.get(contender.name, 0.0)
            if contender.compiles and spent > self.compiling:
                self.note(
                    contender.title, f"{self._at(batch)}: not compiled, since compiling had already taken {spent:.0f} s"
                )
                continue
            start = time.perf_counter()
            with self._guarded(contender.title, self._at(batch)):
                contender.prepare(batch)
                ready.append(contender)
            self.spent[contender.name] = spent + time.perf_counter() - start
        try:
            yield ready
        finally:
            for contender in ready:
                contender.release()
            empty_cache(self.setting.device)

    def measure(self, batch: int) -> list[Figures]:
        """Check the contenders, time them in rounds, and check them again.

        A contender that fails has no figures for this batch size.
        """
        print(f"{self.where}: {batch:,}", file=sys.stderr, flush=True)
        setting = self.setting
        with self.prepared(batch) as running:
            figures = {x.name: Figures(setting.network.title, setting.precision, batch, x.name) for x in running}
            running = self._checked(running, batch, figures)
            batches = [self.draw(batch) for _ in range(_BATCHES)]
            for number in range(self.rounds):
                turn = number % max(1, len(running))
                for contender in [*running[turn:], *running[:turn]]:
                    with self._guarded(contender.title, self._at(batch)):
                        figures[contender.name].rounds.append(time_runs(contender.run, batches, self.seconds))
            for contender in running:
                self._time_on_device(contender, figures[contender.name])
            running = self._checked(running, batch, figures)
            return [figures[x.name] for x in running if len(figures[x.name].rounds) == self.rounds]

    def _time_on_device(self, contender: Contender, figures: Figures) -> None:
        with self._guarded(contender.title, f"{self._at(figures.batch)}, on the device"):
            if work := contender.on_device():
                figures.device_s = time_on_device(work, self.setting.device, self.rounds, self.seconds)

    def _checked(self, running: Sequence[Contender], batch: int, figures: dict[str, Figures]) -> list[Contender]:
        """Overwrite the buffers, run the contenders on new rows, and return the contenders whose outputs are right."""
        rows = self.draw(batch)
        expected, right = self.setting.network.oracle(rows), []
        for contender in running:
            with self._guarded(contender.title, self._at(batch)):
                contender.poison(batch)
                outputs = contender.run(rows)
                parity = TOLERANCES[self.setting.precision].measure(expected, outputs)
                if parity.worst > 1:
                    raise ContenderError(f"the difference is {parity.worst:.3g} times the tolerance")
                figures[contender.name].error = max(figures[contender.name].error, distance(outputs, expected))
                right.append(contender)
        return right

    def compare_bits(self, batches: Sequence[int]) -> BitComparison:
        """Compare the outputs with and without CUDA graphs bit by bit, on new rows.

        A graph always computes all rows of its size. The run without graphs gets as many rows as the graph, because
        cuBLAS may choose a different kernel for a different number of rows.
        """
        found = BitComparison(self.setting.network.title, self.setting.precision)
        by_name = {contender.name: contender for contender in self.opened}
        graphs, plain = by_name.get(OursGraphs.name), by_name.get(OursPlain.name)
        for batch in batches if graphs and plain else ():
            size = min((size for size in self.setting.buckets if size >= batch), default=batch)
            rows = self.draw(size)
            with self._guarded("with and without graphs", self._at(batch)):
                graphs.poison(batch)
                plain.poison(size)
                first, second = graphs.run(rows[:batch]), plain.run(rows)[:batch]
                found.same[batch] = first.shape == second.shape and first.tobytes() == second.tobytes()
        return found

    def draw(self, batch: int) -> Rows:
        """Draw new standard normal rows, float32 [batch, features]."""
        return self.generator.standard_normal((batch, self.setting.network.widths[0]), np.float32)

    def _at(self, batch: int) -> str:
        return f"{self.where}, {batch:,} row{'s' * (batch > 1)}"

    @contextmanager
    def _guarded(self, subject: str, where: str) -> Iterator[None]:
        with note_failure(self.note, subject, where):
            yield


@contextmanager
def note_failure(note: Callable[[str, str], None], subject: str, where: str) -> Iterator[None]:
    """Turn any exception in the `with` block into a note of one line.

    Other libraries raise exceptions of many types.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        reason = error.reason if isinstance(error, BundleError) else one_line(error)
        print(f"{subject}: {where}: {reason}", file=sys.stderr, flush=True)
        note(subject, f"{where}: {reason}")


def one_line(error: Exception) -> str:
    """Return the first two lines of an error as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the percentile `share` of the samples. Return NaN if there are too few samples."""
    enough = len(samples) * (100 - share) / 100 >= _MIN_TAIL
    return float(np.percentile(samples, share)) if enough else float("nan")


def time_runs(run: Callable[[Rows], Any], batches: Sequence[Rows], seconds: float) -> list[float]:
    """Run for `seconds`, after a warm-up that takes a fifth of this time. Return the seconds of each run."""
    _run_repeatedly(run, batches, seconds / 5, 1)
    gc.disable()
    try:
        return _run_repeatedly(run, batches, seconds, _MIN_RUNS)
    finally:
        gc.enable()


def _run_repeatedly(run: Callable[[Rows], Any], batches: Sequence[Rows], seconds: float, at_least: int) -> list[float]:
    clock = time.perf_counter
    samples: list[float] = []
    first_start = clock()
    while len(samples) < _MAX_RUNS:
        rows = batches[len(samples) % len(batches)]
        start = clock()
        run(rows)
        end = clock()
        samples.append(end - start)
        if end - first_start > seconds and len(samples) >= at_least:
            break
    return samples


def time_on_device(work: Callable[[], Any], device: Device, rounds: int, seconds: float) -> list[float]:
    """Queue `work` repeatedly.

    For each round, return the mean seconds of one call. CUDA events before and after many calls measure the time.
    """
    work()
    once = _time_calls(work, device, 1)
    calls = max(_MIN_RUNS, min(_MAX_RUNS, int(seconds / max(once, 1e-6))))
    return [_time_calls(work, device, calls) for _ in range(rounds)]


def _time_calls(work: Callable[[], Any], device: Device, calls: int) -> float:
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


def empty_cache(device: Device) -> None:
    """Free torch's cached memory for the other contenders."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
