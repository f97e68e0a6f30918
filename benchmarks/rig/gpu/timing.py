"""Rounds over contenders: everybody is checked, timed turn about, and checked again.

It knows contenders as what maps rows to answers, and gives figures. What somebody can't do is noted and leaves the
others alone.
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
from rig.gpu.contenders import Contender, ContenderError, Device, OursGraphs, OursPlain, Setting
from rig.gpu.networks import TOLERANCES, Precision, Rows, distance

T = TypeVar("T")
_SETS = 3  # batches of rows that are sent in turn, so that none stays in a cache for being the only one
_FEWEST = 3  # runs of a contender in a round, however slow
_MOST = 4000
_TAIL = 1.0  # of the samples, at least so many lie beyond a percentile that is told


@dataclass
class Figures:
    """One contender on one network, precision and batch size.

    rounds: seconds from host memory to host memory, by round and run.
    error: the largest ||answers - reference|| / ||reference|| of its checks.
    device_s: seconds of the computation alone, by CUDA events, of those whose input can stay on the device.
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
        """Median seconds of a run, by round."""
        return [median(samples) for samples in self.rounds]

    @property
    def rates(self) -> list[float]:
        """Rows a second, by round."""
        return [self.batch * len(samples) / sum(samples) for samples in self.rounds]

    def percentile(self, share: float) -> float:
        """Give the seconds within which so many percent of all runs were done; NaN where there were too few runs."""
        samples = [x for one in self.rounds for x in one]
        return percentile(samples, share)


@dataclass
class Sameness:
    """Whether the answers with CUDA graphs are, bit by bit, those without: by batch size."""

    network: str
    precision: Precision
    same: dict[int, bool] = field(default_factory=dict)


@dataclass
class Block:
    """One network in one precision: the contenders that opened, and why the others did not, or stopped."""

    setting: Setting
    rounds: int
    seconds: float  # of a contender in a round
    note: Callable[[str, str], None]
    generator: np.random.Generator
    spent: dict[str, float]  # seconds in which a contender's kernels were compiled, in this block and before
    compiling: float  # seconds after which nothing more is compiled for a contender
    opened: list[Contender] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Name it."""
        return f"{self.setting.network.title} {self.setting.precision}"

    def open(self, contenders: Sequence[type[Contender]]) -> None:
        """Open who can be."""
        for kind in contenders:
            with self._guarded(kind.title, self.where):
                self.opened.append(kind(self.setting))

    def close(self) -> None:
        """Close everybody."""
        for contender in self.opened:
            with self._guarded(contender.title, f"{self.where}, when it was closed"):
                contender.close()
        self.opened.clear()
        empty_cache(self.setting.device)

    @contextmanager
    def prepared(self, batch: int) -> Iterator[list[Contender]]:
        """Make the contenders ready for a batch size; gives those that are."""
        ready = []
        for contender in self.opened:
            if contender.batches and batch not in contender.batches:
                continue
            spent = self.spent.get(contender.name, 0.0)
            if contender.compiles and spent > self.compiling:
                self.note(contender.title, f"{self._at(batch)}: not compiled, which had taken {spent:.0f} s already")
                continue
            started = time.perf_counter()
            with self._guarded(contender.title, self._at(batch)):
                contender.prepare(batch)
                ready.append(contender)
            self.spent[contender.name] = spent + time.perf_counter() - started
        try:
            yield ready
        finally:
            for contender in ready:
                contender.release()
            empty_cache(self.setting.device)

    def measure(self, batch: int) -> list[Figures]:
        """Check, time in rounds, check again. Who fails has no figures for this batch size."""
        print(f"{self.where}: {batch:,}", file=sys.stderr, flush=True)
        setting = self.setting
        with self.prepared(batch) as running:
            figures = {x.name: Figures(setting.network.title, setting.precision, batch, x.name) for x in running}
            running = self._checked(running, batch, figures)
            sent = [self.draw(batch) for _ in range(_SETS)]
            for number in range(self.rounds):
                turn = number % max(1, len(running))
                for contender in [*running[turn:], *running[:turn]]:
                    with self._guarded(contender.title, self._at(batch)):
                        figures[contender.name].rounds.append(timed(contender.run, sent, self.seconds))
            for contender in running:
                self._on_device(contender, figures[contender.name])
            running = self._checked(running, batch, figures)
            return [figures[x.name] for x in running if len(figures[x.name].rounds) == self.rounds]

    def _on_device(self, contender: Contender, into: Figures) -> None:
        with self._guarded(contender.title, f"{self._at(into.batch)}, on the device"):
            if work := contender.on_device():
                into.device_s = stopwatch(work, self.setting.device, self.rounds, self.seconds)

    def _checked(self, running: Sequence[Contender], batch: int, figures: dict[str, Figures]) -> list[Contender]:
        """Give those that answer fresh rows rightly, whatever their buffers held before."""
        rows = self.draw(batch)
        expected, right = self.setting.network.oracle(rows), []
        for contender in running:
            with self._guarded(contender.title, self._at(batch)):
                contender.poison(batch)
                answers = contender.run(rows)
                parity = TOLERANCES[self.setting.precision].measure(expected, answers)
                if parity.worst > 1:
                    raise ContenderError(f"its answers are off by {parity.worst:.3g} times the tolerance")
                figures[contender.name].error = max(figures[contender.name].error, distance(answers, expected))
                right.append(contender)
        return right

    def same_bits(self, batches: Sequence[int]) -> Sameness:
        """Compare the answers with and without CUDA graphs, to fresh rows, bit by bit."""
        found = Sameness(self.setting.network.title, self.setting.precision)
        both = [x for x in self.opened if x.name in (OursGraphs.name, OursPlain.name)]
        for batch in batches if len(both) == 2 else ():
            rows = self.draw(batch)
            with self._guarded("with and without graphs", self._at(batch)):
                for contender in both:
                    contender.poison(batch)
                first, second = (contender.run(rows) for contender in both)
                found.same[batch] = first.shape == second.shape and first.tobytes() == second.tobytes()
        return found

    def draw(self, batch: int) -> Rows:
        """Draw standard normal float32 rows [batch, features], never the same ones."""
        return self.generator.standard_normal((batch, self.setting.network.widths[0]), np.float32)

    def _at(self, batch: int) -> str:
        return f"{self.where}, {batch:,} row{'s' * (batch > 1)}"

    @contextmanager
    def _guarded(self, who: str, where: str) -> Iterator[None]:
        with noted(self.note, who, where):
            yield


@contextmanager
def noted(note: Callable[[str, str], None], who: str, where: str) -> Iterator[None]:
    """Note in one line what fails in the block, whatever it is, and go on: contenders fail in ways of their own."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        reason = error.reason if isinstance(error, BundleError) else one_line(error)
        print(f"{who}: {where}: {reason}", file=sys.stderr, flush=True)
        note(who, f"{where}: {reason}")


def one_line(error: Exception) -> str:
    """Give the first two lines that an error has to say, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__


def percentile(samples: Sequence[float], share: float) -> float:
    """Give what so many percent of the samples don't pass; NaN when too few are there to tell."""
    told = len(samples) * (100 - share) / 100 >= _TAIL
    return float(np.percentile(samples, share)) if told else float("nan")


def timed(run: Callable[[Rows], Any], sent: Sequence[Rows], seconds: float) -> list[float]:
    """Run for so long after a warm-up of a fifth of it; gives each run's seconds."""
    _runs(run, sent, seconds / 5, 1)
    gc.disable()
    try:
        return _runs(run, sent, seconds, _FEWEST)
    finally:
        gc.enable()


def _runs(run: Callable[[Rows], Any], sent: Sequence[Rows], seconds: float, fewest: int) -> list[float]:
    clock = time.perf_counter
    samples: list[float] = []
    begun = clock()
    while len(samples) < _MOST:
        rows = sent[len(samples) % len(sent)]
        started = clock()
        run(rows)
        ended = clock()
        samples.append(ended - started)
        if ended - begun > seconds and len(samples) >= fewest:
            break
    return samples


def stopwatch(work: Callable[[], Any], device: Device, rounds: int, seconds: float) -> list[float]:
    """Queue `work` over and over; gives the seconds of one, by round, by CUDA events around many."""
    work()
    once = _lap(work, device, 1)
    many = max(_FEWEST, min(_MOST, int(seconds / max(once, 1e-6))))
    return [_lap(work, device, many) for _ in range(rounds)]


def _lap(work: Callable[[], Any], device: Device, times: int) -> float:
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - started) / times
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def empty_cache(device: Device) -> None:
    """Give torch's free memory back, for the others."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
