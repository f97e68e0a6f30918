"""Chooses each setting from measurements. The module has only pure functions: it measures nothing and writes nothing.

A setting may cost memory or processor time. The constants in this module say how large the gain from a setting must be
to justify its cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foldserve.service.commands.tune.latency import Curve, Latencies
from foldserve.service.commands.tune.throughput import Throughput
from foldserve.service.commands.tune.workload import MAX_BATCH
from foldserve.service.figures import count_of, format_duration
from foldserve.service.runtime.session import Device

# A CUDA graph needs GPU memory, so `tune` chooses a graph only if the graph saves at least this share of the time. The
# graph must be faster than the next larger graph, and faster than a run without a graph.
_GRAPH_SAVING = 0.05
# The number of threads is doubled only if the runs become faster by this factor, on average over the batch sizes. If
# doubling the threads gains less, it is better to use the cores for more processes: two processes on two cores do twice
# the work of one process.
_THREADS_GAIN = 1.5
# Each process needs memory for a copy of the model, so more processes are chosen only if the rows per second grow by at
# least this factor.
_WORKERS_GAIN = 1.1


@dataclass(frozen=True)
class Choice:
    """The name of a setting, its chosen value, and one line with the measurements that justify the choice."""

    setting: str
    value: int | str | tuple[int, ...]
    why: str


def choose(latencies: Latencies, throughput: Throughput, device: Device) -> tuple[Choice, ...]:
    """Choose a value for each setting that was measured. A setting without measurements is left out.

    device: the device that the caller requested.
    """
    threads, why = _choose_threads(latencies.cpu)
    on_cpu = latencies.cpu[threads]
    choices = [Choice("threads", threads, why)]
    if latencies.plain:
        choices += _choose_on_cuda(on_cpu, latencies, device)
    elif device == "cpu":
        smallest = min(on_cpu)
        figures = f"requested; {count_of(smallest, 'row')} in {format_duration(on_cpu[smallest])}"
        choices.insert(0, Choice("device", "cpu", figures))
    if throughput.rates:
        choices.append(_choose_workers(throughput))
    return tuple(choices)


def _choose_threads(cpu: Mapping[int, Curve]) -> tuple[int, str]:
    """Choose the number of threads.

    Try larger numbers of threads in turn. Stop at the first number that does not save enough time, on average over the
    batch sizes that a server runs.
    """
    counts = sorted(cpu)
    chosen, why = counts[0], "this process may use one processor"
    for more in counts[1:]:
        batches = [batch for batch in cpu[more] if batch <= MAX_BATCH]
        gain = statistics.geometric_mean([cpu[chosen][batch] / cpu[more][batch] for batch in batches])
        enough = 1 + (_THREADS_GAIN - 1) * (more / chosen - 1)
        why = (
            f"{count_of(more, 'thread')} are {gain:.2f} times as fast as {chosen}, over batches of {min(batches)} to "
            f"{max(batches):,} rows; {enough:.3g} would be enough"
        )
        if gain < enough:
            break
        chosen = more
    return chosen, why


def _choose_on_cuda(on_cpu: Curve, latencies: Latencies, device: Device) -> list[Choice]:
    """Choose the settings for a machine with a working CUDA: the graphs, and the batches that run on the CPU."""
    buckets, why = _choose_buckets(latencies.graphs, latencies.plain)
    graphs = Choice("buckets", buckets, why)
    on_cuda = {batch: _cuda_seconds(batch, buckets, latencies) for batch in on_cpu if batch <= MAX_BATCH}
    slower = [batch for batch in on_cuda if on_cuda[batch] >= on_cpu[batch]]
    faster = [batch for batch in on_cuda if batch > max(slower, default=0)]

    def compare(batch: int) -> str:
        cuda, cpu = format_duration(on_cuda[batch]), format_duration(on_cpu[batch])
        return f"{count_of(batch, 'row')} in {cuda} on CUDA, {cpu} on the CPU"

    largest = compare(max(on_cuda))
    if device == "cuda":  # --device cuda makes the server run every batch on CUDA
        return [Choice("device", "cuda", f"requested; {largest}"), graphs]
    if not faster:
        return [Choice("device", "cpu", f"CUDA is not faster at a full batch: {largest}")]
    # If CUDA is faster at every batch size, no batch runs on the CPU.
    crossover = min(faster) if slower else 0
    figures = "; ".join(map(compare, (*slower[-1:], min(faster))))
    return [graphs, Choice("crossover", crossover, figures)]


def _choose_buckets(graphs: Curve, plain: Curve) -> tuple[tuple[int, ...], str]:
    """Choose the batch sizes whose graph is faster than both a plain run and the next larger graph."""
    kept: list[int] = []
    for batch in sorted(graphs, reverse=True):
        alternative = graphs[kept[-1]] if kept else plain[batch]
        if graphs[batch] <= (1 - _GRAPH_SAVING) * alternative:
            kept.append(batch)
    batch = min(kept or graphs)
    as_graph, as_run = format_duration(graphs[batch]), format_duration(plain[batch])
    why = f"{count_of(batch, 'row')} in {as_graph} as a graph, {as_run} as a plain run"
    if dropped := ", ".join(f"{batch:,}" for batch in sorted(set(graphs) - set(kept))):
        why += f"; a graph of {dropped} rows would save less than {_GRAPH_SAVING:.0%}"
    return tuple(sorted(kept)), why


def _cuda_seconds(batch: int, buckets: Sequence[int], latencies: Latencies) -> float:
    """Return the time of one batch on CUDA, in seconds.

    The batch runs in the smallest graph that holds the batch, or in a plain run if no graph is large enough.
    """
    return next((latencies.graphs[bucket] for bucket in buckets if bucket >= batch), latencies.plain[batch])


def _choose_workers(throughput: Throughput) -> Choice:
    """Choose the number of processes.

    Try larger numbers of processes in turn, and stop at the first number that does not give enough additional rows per
    second.
    """
    rates = throughput.rates
    counts = sorted(rates)
    chosen = counts[0]
    for more in counts[1:]:
        if rates[more] < _WORKERS_GAIN * rates[chosen]:
            break
        chosen = more
    figures = ", ".join(f"{rates[count]:,.0f} with {count}" for count in counts)
    return Choice("workers", chosen, f"rows per second in batches of {MAX_BATCH:,}: {figures}")
