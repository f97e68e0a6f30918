"""What `foldserve serve` had best be told on this machine: measured, and chosen with a reason.

It owns the choice of each setting, which is a function of measurements alone. It measures nothing itself, and writes
nothing.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from foldserve.service import bundle
from foldserve.service.bundle import MANIFEST_FILE, Bundle, Manifest
from foldserve.service.commands.tune.curves import duration
from foldserve.service.commands.tune.measure import (
    MAX_BATCH,
    Curve,
    Latencies,
    Load,
    Throughput,
    doublings,
    latencies,
    plural,
    throughput,
)
from foldserve.service.errors import BundleError, DeviceError
from foldserve.service.machine import cgroup, wheels
from foldserve.service.machine import nvidia as cuda
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.session import Device, Options

# A graph is worth its memory where it saves this share of the time of the next larger one, or of a plain run.
_GRAPH_SAVES = 0.05
# Twice the threads must be at least so much faster, over all batches: as two processes, two cores run twice the rows.
_THREADS_GAIN = 1.5
# So must more processes, each of which takes its own memory.
_WORKERS_GAIN = 1.1
# Each has its own model, and on CUDA a context of some hundred MiB.
_MOST_WORKERS = {"cpu": 64, "cuda": 16}
# Of the host's processors; what others run is measured with the model.
_BUSY = 0.2


@dataclass(frozen=True)
class Choice:
    """A setting of service/settings.py, its value, and the figures that decided, in one line."""

    setting: str
    value: int | str | tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Tuned:
    """What was measured of a model on a machine, and chosen."""

    manifest: Manifest
    machine: str
    versions: str
    when: datetime
    busy: tuple[str, ...]  # a line where other programs took part of the machine
    latencies: Latencies
    throughput: Throughput
    choices: tuple[Choice, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """List what these figures must be read with: what was not measured and why, and a machine that was busy."""
        left_out = self.latencies.left_out + self.throughput.left_out
        return (*(f"not measured: {what}" for what in left_out), *self.busy)

    @property
    def model(self) -> str:
        """Name the model and its version."""
        return f"{self.manifest.name}/{self.manifest.version}"


def find(path: Path) -> Bundle:
    """Read the bundle in the folder `path`, or the newest version in the folder of a model. Raises `BundleError`."""
    bundle.require_folder(path, "no such bundle")
    try:
        versions = [] if (path / MANIFEST_FILE).exists() else bundle.versions(path)
    except OSError as error:
        raise BundleError(f"can't be read: {error.strerror}", path) from error
    return bundle.read(path / str(versions[-1]) if versions else path)


def tune(
    whole: Bundle,
    device: Device,
    seconds: float,
    load: Load = runtime.load,
    begin: Callable[[], object] = lambda: None,
) -> Tuned:
    """Measure for about so many seconds, and choose.

    load: opens and proves what is measured; a function of a module, since other processes call it too. begin: called
    once all of it is open.
    Raises what `latencies` and `throughput` raise.
    """
    busy = _busy()
    timed = latencies(whole, device, 0.65 * seconds, load, begin=begin)
    options = _options(choose(timed, Throughput(), device), timed)
    cores = cgroup.threads()
    # Where CUDA runs the batches, the threads of the CPU's are idle.
    most = cores if options.device == "cuda" else max(1, cores // options.threads)
    if most > 1:
        rates = throughput(whole, options, doublings(min(most, _MOST_WORKERS[options.device])), 0.35 * seconds, load)
    else:
        rates = Throughput(left_out=(f"workers: one process already takes what is granted, {_processors()}",))
    return Tuned(
        whole.manifest,
        _machine(timed),
        _versions(),
        datetime.now(UTC),
        busy,
        timed,
        rates,
        choose(timed, rates, device),
    )


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(timed: Latencies, rates: Throughput, device: Device) -> tuple[Choice, ...]:
    """Choose the settings that these figures decide, and no others.

    device: what was asked for. What was not measured, CUDA or the processes, decides nothing.
    """
    threads, why = _threads(timed.cpu)
    on_cpu = timed.cpu[threads]
    choices = [Choice("threads", threads, why)]
    if timed.plain:
        choices += _on_cuda(on_cpu, timed, device)
    elif device == "cpu":
        choices = [
            Choice("device", "cpu", f"asked for; {plural(min(on_cpu), 'row')} in {duration(on_cpu[min(on_cpu)])}"),
            *choices,
        ]
    if rates.rates:
        choices.append(_workers(rates))
    return tuple(choices)


def _threads(cpu: Mapping[int, Curve]) -> tuple[int, str]:
    """Choose the fewest threads from which more of them gain too little, over all batches that the service runs."""
    counts = sorted(cpu)
    chosen, why = counts[0], "one processor is granted"
    for more in counts[1:]:
        batches = [batch for batch in cpu[more] if batch <= MAX_BATCH]
        gain = statistics.geometric_mean([cpu[chosen][batch] / cpu[more][batch] for batch in batches])
        enough = 1 + (_THREADS_GAIN - 1) * (more / chosen - 1)
        why = (
            f"{plural(more, 'thread')} are {gain:.2f} times as fast as {chosen}, over batches of {min(batches)} to "
            f"{max(batches):,} rows; {enough:.3g} would be worth it"
        )
        if gain < enough:
            break
        chosen = more
    return chosen, why


def _on_cuda(on_cpu: Curve, timed: Latencies, device: Device) -> list[Choice]:
    """Choose what is settled where CUDA answers: between it and the CPU, batch by batch, and which graphs it has."""
    buckets, why = _buckets(timed.graphs, timed.plain)
    graphs = Choice("buckets", buckets, why)
    on_cuda = {batch: _padded(batch, buckets, timed) for batch in on_cpu if batch <= MAX_BATCH}
    slower = [batch for batch in on_cuda if on_cuda[batch] >= on_cpu[batch]]
    faster = [batch for batch in on_cuda if batch > max(slower, default=0)]

    def compared(batch: int) -> str:
        return f"{plural(batch, 'row')} in {duration(on_cuda[batch])} on CUDA, {duration(on_cpu[batch])} on the CPU"

    largest = compared(max(on_cuda))
    asked = [Choice("device", "cuda", f"asked for; {largest}")] if device == "cuda" else []
    if asked:  # whoever asks for CUDA gets it for every batch
        return [*asked, graphs]
    if not faster:
        return [Choice("device", "cpu", f"CUDA is no faster at a full batch: {largest}")]
    # Where CUDA is faster from the smallest batch on, nothing is left for the CPU.
    crossover = min(faster) if slower else 0
    figures = "; ".join(map(compared, (*slower[-1:], min(faster))))
    return [graphs, Choice("crossover", crossover, figures)]


def _buckets(graphs: Curve, plain: Curve) -> tuple[tuple[int, ...], str]:
    """Choose the batches that deserve a graph: quicker than a plain run, and than being padded to the next larger."""
    kept: list[int] = []
    for batch in sorted(graphs, reverse=True):
        instead = graphs[kept[-1]] if kept else plain[batch]
        if graphs[batch] <= (1 - _GRAPH_SAVES) * instead:
            kept.append(batch)
    batch = min(kept or graphs)
    why = f"{plural(batch, 'row')} in {duration(graphs[batch])} as a graph, {duration(plain[batch])} as a plain run"
    if dropped := ", ".join(f"{batch:,}" for batch in sorted(set(graphs) - set(kept))):
        why += f"; a graph of {dropped} rows would save less than {_GRAPH_SAVES:.0%}"
    return tuple(sorted(kept)), why


def _padded(batch: int, buckets: Sequence[int], timed: Latencies) -> float:
    """Say what a batch takes on CUDA with these graphs: that of the one with room for it, or else a plain run."""
    return next((timed.graphs[bucket] for bucket in buckets if bucket >= batch), timed.plain[batch])


def _workers(rates: Throughput) -> Choice:
    """Choose the most processes up to which each step gains enough."""
    counts = sorted(rates.rates)
    chosen = counts[0]
    for more in counts[1:]:
        if rates.rates[more] < _WORKERS_GAIN * rates.rates[chosen]:
            break
        chosen = more
    figures = ", ".join(f"{rates.rates[count]:,.0f} with {count}" for count in counts)
    return Choice("workers", chosen, f"rows per second in batches of {MAX_BATCH:,}: {figures}")


def _options(choices: Sequence[Choice], timed: Latencies) -> Options:
    """Give what a process runs with that serves with these settings."""
    values: dict[str, Any] = {choice.setting: choice.value for choice in choices}
    return Options(**{"device": "cuda" if timed.plain else "cpu"} | values)


# --- this machine ----------------------------------------------------------------------------------------------------


def _machine(timed: Latencies) -> str:
    return ", ".join([_cpu_model(), _processors(), *(_gpu() if timed.plain else ["no GPU"])])


def _cpu_model() -> str:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return "".join(filter(str.isprintable, line.partition(":")[2].strip()))
    return platform.processor() or platform.machine()


def _processors() -> str:
    return plural(cgroup.threads(), "processor")


def _busy() -> tuple[str, ...]:
    try:
        load, _, _ = os.getloadavg()  # of the host, over the last minute
    except OSError:
        return ()
    host = os.cpu_count() or 1
    if load <= _BUSY * host:
        return ()
    return (f"a busy machine: before this began, a load of {load:.1f} on {plural(host, 'processor')}; measure again",)


def _gpu() -> Iterator[str]:
    try:
        yield cuda.gpus()[0].name  # the first is the one that serves
    except DeviceError:
        yield "a GPU"


def _versions() -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("foldserve", *wheels.installed()))
    return f"{packages}, Python {platform.python_version()}"
