"""Settings are chosen from measurements. The measurements are invented and come from no real machine."""

from __future__ import annotations

from typing import Any

import pytest

from foldserve.service.commands.tune.choose import choose
from foldserve.service.commands.tune.latency import Curve, Latencies
from foldserve.service.commands.tune.throughput import Throughput
from foldserve.service.settings import Settings
from tests.service.commands.tune.support import GRAPHS, ONE_THREAD, PLAIN, US, curve


def chosen(latencies: Latencies, throughput: Throughput | None = None, device: Any = "auto") -> dict[str, Any]:
    """Return the chosen value of each setting.

    Each value must be valid, and the reason for the value must be one line.
    """
    choices = choose(latencies, throughput or Throughput(), device)
    for choice in choices:
        assert choice.why
        assert choice.why.isprintable()
    values = {choice.setting: choice.value for choice in choices}
    assert len(values) == len(choices)
    assert Settings.model_validate(values).model_dump(include=set(values)) == values
    return values


def test_without_cuda_only_threads_are_chosen() -> None:
    assert chosen(Latencies({1: ONE_THREAD})) == {"threads": 1}


@pytest.mark.parametrize(
    ("by_threads", "threads"),
    [
        ({1: ONE_THREAD, 2: ONE_THREAD}, 1),
        ({1: ONE_THREAD, 2: curve(20, 22, 25, 45, 150, 500)}, 1),  # two threads are slower for most sizes
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6)}, 2),
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6), 4: curve(*[50] * 6)}, 2),
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6), 4: curve(*[30] * 6)}, 4),
        # For four threads, the same gain would not be enough.
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6), 3: curve(*[42] * 6)}, 3),
    ],
)
def test_more_threads_are_chosen_only_if_they_gain_enough(by_threads: dict[int, Curve], threads: int) -> None:
    assert chosen(Latencies(by_threads))["threads"] == threads


def test_batches_larger_than_a_server_runs_do_not_decide_the_threads() -> None:
    two = {**ONE_THREAD, 4096: 1 * US, 16_384: 1 * US}
    assert chosen(Latencies({1: {**ONE_THREAD, 4096: 1, 16_384: 1}, 2: two}))["threads"] == 1


def test_if_the_gpu_is_faster_from_64_rows_smaller_batches_run_on_the_cpu() -> None:
    values = chosen(Latencies({1: ONE_THREAD}, GRAPHS, PLAIN))
    assert values["crossover"] == 64
    assert "device" not in values


def test_if_the_gpu_is_always_faster_nothing_runs_on_the_cpu() -> None:
    assert chosen(Latencies({1: curve(40, 41, 50, 90, 300, 900)}, GRAPHS, PLAIN))["crossover"] == 0


def test_the_crossover_is_above_every_batch_at_which_the_gpu_is_slower() -> None:
    cpu = curve(40, 30, 50, 90, 300, 900)  # the GPU is faster at 1 row, slower at 4, and faster from 16 rows on
    assert chosen(Latencies({1: cpu}, GRAPHS, PLAIN))["crossover"] == 16


def test_if_the_gpu_is_never_faster_the_cpu_serves() -> None:
    values = chosen(Latencies({1: curve(1, 2, 3, 4, 5, 6)}, GRAPHS, PLAIN))
    assert values == {"threads": 1, "device": "cpu"}


@pytest.mark.parametrize("cpu", [curve(1, 2, 3, 4, 5, 6), ONE_THREAD])
def test_a_requested_device_is_kept(cpu: Curve) -> None:
    assert chosen(Latencies({1: cpu}, GRAPHS, PLAIN), device="cuda")["device"] == "cuda"
    assert chosen(Latencies({1: cpu}), device="cpu")["device"] == "cpu"


def test_the_crossover_compares_padded_batches() -> None:
    # The graph for 1 row saves too little and is dropped. A single row is then padded to 4 rows, and the graph for 4
    # rows is slower than the CPU.
    graphs = curve(29.5, 30.5, 50, 70, 100, 150)
    values = chosen(Latencies({1: curve(30, 60, 90, 200, 500, 900)}, graphs, PLAIN))
    assert values["buckets"][0] == 4
    assert values["crossover"] == 4


@pytest.mark.parametrize(
    ("graphs", "buckets"),
    [
        (GRAPHS, (16, 64, 256, 1024)),
        (curve(*[30] * 6), (1024,)),
        (curve(10, 20, 40, 80, 160, 150), (1, 4, 16, 64, 1024)),
        (curve(10, 20, 40, 80, 108, 159), (1, 4, 16, 64)),  # the largest graphs are not faster than plain runs
        (curve(90, 90, 90, 95, 110, 160), ()),
        (curve(190, 190, 190, 195, 210, 260), ()),
    ],
)
def test_a_graph_is_kept_if_it_saves_time(graphs: Curve, buckets: tuple[int, ...]) -> None:
    assert chosen(Latencies({1: curve(*[900] * 6)}, graphs, PLAIN))["buckets"] == buckets


@pytest.mark.parametrize(
    ("rates", "workers"),
    [
        ({1: 100.0, 2: 200.0}, 2),
        ({1: 100.0, 2: 109.0}, 1),
        ({1: 100.0, 2: 111.0}, 2),
        ({1: 100.0, 2: 195.0, 4: 350.0, 8: 360.0, 16: 500.0}, 4),
        ({1: 100.0, 2: 60.0}, 1),
    ],
)
def test_more_workers_are_chosen_only_if_they_gain_a_tenth(rates: dict[int, float], workers: int) -> None:
    assert chosen(Latencies({1: ONE_THREAD}), Throughput(rates))["workers"] == workers


def test_each_reason_names_the_figures_that_decided() -> None:
    latencies = Latencies({1: ONE_THREAD}, GRAPHS, PLAIN)
    whys = {choice.setting: choice.why for choice in choose(latencies, Throughput({1: 100.0, 2: 195.0}), "auto")}
    assert "16 rows in 33.0 µs on CUDA, 20.0 µs on the CPU; 64 rows in 40.0 µs on CUDA, 50.0 µs" in whys["crossover"]
    assert "16 rows in 33.0 µs as a graph, 90.0 µs as a plain run" in whys["buckets"]
    assert "1, 4 rows" in whys["buckets"]
    assert "100 with 1, 195 with 2" in whys["workers"]
