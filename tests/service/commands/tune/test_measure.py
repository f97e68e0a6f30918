"""Latency and throughput are measured with real runs, on the CPU and on a simulated GPU."""

from __future__ import annotations

import numpy as np
import pytest

from foldserve.service.bundle import Bundle
from foldserve.service.commands.tune.latency import measure_latencies
from foldserve.service.commands.tune.throughput import measure_throughput
from foldserve.service.commands.tune.workload import MAX_BATCH, Load, doublings, draw
from foldserve.service.errors import DeviceError, RuntimeFailure
from foldserve.service.runtime.session import Options
from tests.service.commands.tune.support import (
    SmallRunner,
    load_with_little_memory,
    load_without_gpu,
    load_without_plain_runs,
)
from tests.service.mixed import mixed_bundle
from tests.service.support import PATIENCE


@pytest.mark.parametrize("load", [load_without_gpu, load_without_plain_runs])
def test_if_cuda_refuses_the_cpu_is_measured_and_the_reason_is_kept(load: Load, digits: Bundle) -> None:
    latencies = measure_latencies(digits, "auto", 0.1, load, batches=(1, 4))
    assert latencies.skipped == ("CUDA: no GPU today",)
    assert (latencies.graphs, latencies.plain) == ({}, {})
    assert all(set(curve) == {1, 4} for curve in latencies.cpu.values())
    assert all(0 < seconds < PATIENCE for curve in latencies.cpu.values() for seconds in curve.values())


def test_a_refusal_of_requested_cuda_is_an_error(digits: Bundle) -> None:
    with pytest.raises(DeviceError, match="no GPU today"):
        measure_latencies(digits, "cuda", 0.1, load_without_gpu)


def test_a_failing_batch_that_a_server_would_run_is_an_error(digits: Bundle) -> None:
    with pytest.raises(RuntimeFailure, match=r"CPU, 1 thread: a run of 64 rows failed: no room"):
        measure_latencies(digits, "cpu", 0.1, load_with_little_memory, batches=(16, 64))


def test_a_failing_batch_that_no_server_would_run_is_skipped(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallRunner, "room", MAX_BATCH)
    latencies = measure_latencies(digits, "cpu", 0.1, load_with_little_memory, batches=(1024, 4096))
    assert set(latencies.cpu[1]) == {1024}
    assert "CPU, 1 thread, 4,096 rows: no room" in latencies.skipped


def test_several_processes_run_the_model(digits: Bundle) -> None:
    throughput = measure_throughput(digits, Options("cpu"), (1, 2), 0.1)
    assert set(throughput.rates) == {1, 2}
    assert all(rate > 0 for rate in throughput.rates.values())


def test_processes_that_can_not_open_the_model_are_an_error(digits: Bundle) -> None:
    with pytest.raises(DeviceError, match="no process can run the model: no GPU today"):
        measure_throughput(digits, Options("cuda"), (1,), 0.1, load_without_gpu)


def test_drawn_rows_are_valid_rows_of_a_request() -> None:
    manifest = mixed_bundle().manifest
    rows = draw(manifest, 500, np.random.default_rng(0))
    assert (rows.dtype, rows.shape) == (np.float32, (500, len(manifest.features)))
    for feature, column in zip(manifest.features, rows.T.astype(float).tolist(), strict=True):
        assert all(map(feature.admits, column))
        assert len(set(column)) > 1
        if feature.range:
            assert feature.range[0] <= min(column) <= max(column) <= feature.range[1]


@pytest.mark.parametrize(("largest", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_counts_double_up_to_the_largest(largest: int, counts: list[int]) -> None:
    assert doublings(largest) == counts
