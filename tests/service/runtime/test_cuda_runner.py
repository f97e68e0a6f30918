"""Tests the runner for CUDA: the graph that each run uses, the order of the runs, and the error for each failure.

The tests simulate the GPU in the host's memory. The tests in tests/gpu use a real GPU.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from foldserve.service.errors import BundleError, DeviceError, DeviceLost, DeviceOutOfMemory, FoldserveError
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.cuda_stream import CudaError
from foldserve.service.runtime.session import Options
from tests.service.simulated_cuda import SimulatedGpu
from tests.service.support import constant, onnx_model

GENERATOR = np.random.default_rng(0)
WEIGHTS = GENERATOR.normal(size=(2, 1)).astype(np.float32)
MODEL = onnx_model([helper.make_node("MatMul", ["input", "w"], ["value"])], [constant("w", WEIGHTS)])
BUCKETS = (1, 4, 16)
OPTIONS = Options("cuda", buckets=BUCKETS)


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu()


@pytest.fixture
def runner(gpu: SimulatedGpu) -> Iterator[CudaRunner]:
    runner = opened(gpu)
    gpu.log.clear()
    yield runner
    runner.close()


def opened(gpu: SimulatedGpu, options: Options = OPTIONS) -> CudaRunner:
    return CudaRunner(MODEL, options, gpu.connect, gpu.open_session)


def rows(count: int) -> np.ndarray:
    return GENERATOR.normal(size=(count, 2)).astype(np.float32)


def test_each_size_runs_twice_without_a_graph_and_is_then_captured(gpu: SimulatedGpu) -> None:
    opened(gpu).close()
    captures = []
    for number, size in enumerate(BUCKETS, 1):
        run = [f"upload {size}", "run", f"download {size}"]
        captures += [*run, *run, "wait", f"capture {number}", *run]
    assert gpu.log == ["connect", "open", *captures, "wait", "close"]


def test_any_thread_runs_and_runs_do_not_mix(gpu: SimulatedGpu, runner: CudaRunner) -> None:
    batches = [rows(count) for count in (1, 3, 16, 40) * 5]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(runner.run, batches))
    for batch, output in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(output, batch.astype(np.float64) @ WEIGHTS, rtol=1e-5, atol=1e-6)
    # The calling thread itself makes all calls to the GPU.
    gpu.threads.clear()
    runner.run(batches[0])
    assert gpu.threads == {threading.get_ident()}


@pytest.mark.parametrize(("count", "graph"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 3)])
def test_a_batch_launches_the_smallest_graph_that_has_room(
    count: int, graph: int, gpu: SimulatedGpu, runner: CudaRunner
) -> None:
    batch = rows(count)
    outputs = runner.run(batch)
    np.testing.assert_allclose(outputs, batch.astype(np.float64) @ WEIGHTS, rtol=1e-5, atol=1e-6)
    assert gpu.log == [f"launch {graph}", "wait"]


@pytest.mark.parametrize("count", [17, 1000])
def test_a_larger_batch_runs_without_a_graph(count: int, gpu: SimulatedGpu, runner: CudaRunner) -> None:
    batch = rows(count)
    np.testing.assert_allclose(runner.run(batch), batch.astype(np.float64) @ WEIGHTS, rtol=1e-5, atol=1e-6)
    assert gpu.log == [f"upload {count}", "run", f"download {count}", "wait"]


def test_outputs_have_the_same_bits_with_and_without_graphs(runner: CudaRunner) -> None:
    without = opened(SimulatedGpu(), Options("cuda", buckets=()))
    for size in BUCKETS:
        batch = rows(size)
        assert runner.run(batch).tobytes() == without.run(batch).tobytes()
    without.close()


def test_rows_of_an_earlier_batch_do_not_change_the_outputs(runner: CudaRunner) -> None:
    runner.run(np.full((16, 2), np.nan, np.float32))
    batch = rows(5)
    outputs = runner.run(batch)
    assert np.isfinite(outputs).all()
    runner.run(rows(16))
    np.testing.assert_allclose(outputs, batch @ WEIGHTS, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (40, 3)], ids=str)
def test_rows_of_another_width_fail_their_own_run_only(shape: tuple[int, int], runner: CudaRunner) -> None:
    with pytest.raises(Exception, match="invalid dimensions"):
        runner.run(np.ones(shape, np.float32))
    assert not runner.lost
    assert runner.run(rows(3)).shape == (3, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options("cuda"), {"use_tf32": "0"}),
        (Options("cuda", precision="tf32"), {"use_tf32": "1"}),
        (Options("cuda", gpu_memory=2**30), {"use_tf32": "0", "gpu_mem_limit": "1073741824"}),
    ],
    ids=["default", "tf32", "limited"],
)
def test_the_options_are_passed_to_the_provider(options: Options, expected: dict, gpu: SimulatedGpu) -> None:
    opened(gpu, options).close()
    always = {
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",
        "enable_cudnn": "0",
        "user_compute_stream": "4711",
    }
    assert gpu.options == [expected | always]


# Error texts of ONNX Runtime 1.31, from BFCArena, CUDA_CALL and CUBLAS_CALL.
OUT_OF_MEMORY = [
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size"),
    RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h"),
    RuntimeError("CUDA error cudaErrorMemoryAllocation:out of memory"),
    RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=f ; line=1 ; expr=cudaMalloc"),
    RuntimeError("Available memory of 1024 is smaller than requested bytes of 4096"),
    CudaError("cudaMalloc", 2, "out of memory"),
]
LOST = [
    RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=f"),
    RuntimeError("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h ; file=f"),
    RuntimeError("CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered"),
    CudaError("cudaMemcpyAsync", 999, "unknown error"),
    ort.capi.onnxruntime_pybind11_state.EPFail("CUDA error 46: all CUDA-capable devices are busy"),
]


def fail_once(gpu: SimulatedGpu, error: Exception) -> None:
    errors = iter([error])
    gpu.fails = lambda: next(errors, None)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("count", [3, 40], ids=["graph", "plain"])
def test_after_out_of_memory_a_new_session_serves(
    error: Exception, count: int, gpu: SimulatedGpu, runner: CudaRunner
) -> None:
    fail_once(gpu, error)
    with pytest.raises(DeviceOutOfMemory) as refused:
        runner.run(rows(count))
    assert refused.value.retry_after == 1
    assert gpu.log.count("open") == gpu.log.count("close") == 1
    batch = rows(count)
    np.testing.assert_allclose(runner.run(batch), batch @ WEIGHTS, rtol=1e-5, atol=1e-6)
    assert not runner.lost


def test_the_session_without_memory_is_freed_before_the_next_one_opens(gpu: SimulatedGpu) -> None:
    sessions: list[weakref.ref[object]] = []
    alive: list[bool] = []

    def open_session(model: bytes, options: dict[str, str]) -> object:
        alive.append(any(session() is not None for session in sessions))
        session = gpu.open_session(model, options)
        sessions.append(weakref.ref(session))
        return session

    runner = CudaRunner(MODEL, OPTIONS, gpu.connect, open_session)
    gc.disable()  # without the collector, a reference cycle would keep the session and its GPU memory
    try:
        for count in (1, 40, 3):
            fail_once(gpu, RuntimeError("CUDA failure 2: out of memory"))
            with pytest.raises(DeviceOutOfMemory):
                runner.run(rows(count))
    finally:
        gc.enable()
    assert alive == [False] * 4
    runner.close()


def test_a_closed_runner_runs_nothing_and_can_be_closed_again(gpu: SimulatedGpu) -> None:
    runner = opened(gpu)
    runner.close()
    runner.close()
    assert gpu.log.count("close") == 1
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(rows(1))


def test_larger_batches_share_one_buffer_that_grows_and_frees_the_smaller_one(
    gpu: SimulatedGpu, runner: CudaRunner
) -> None:
    for count in (17, 1000, 20, 40):
        batch = rows(count)
        np.testing.assert_allclose(runner.run(batch), batch @ WEIGHTS, rtol=1e-5, atol=1e-6)
    # The runner frees one buffer of rows and one buffer of outputs.
    assert [line for line in gpu.log if line.startswith("free")] == ["free 32"] * 2


def test_out_of_memory_in_the_new_session_too_is_a_lost_device(gpu: SimulatedGpu) -> None:
    runner = opened(gpu)
    gpu.fails = lambda: OUT_OF_MEMORY[0]
    with pytest.raises(DeviceLost):
        runner.run(rows(1))
    assert runner.lost
    runner.close()


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_lost_device_is_never_called_again(error: Exception, gpu: SimulatedGpu) -> None:
    runner = opened(gpu)
    fail_once(gpu, error)
    with pytest.raises(DeviceLost):
        runner.run(rows(1))
    assert runner.lost
    gpu.log.clear()
    with pytest.raises(DeviceLost):
        runner.run(rows(1))
    assert gpu.log == []
    runner.close()


def test_any_error_is_a_loss_if_the_stream_reports_that_the_device_has_failed(gpu: SimulatedGpu) -> None:
    runner = opened(gpu)
    for error in (ValueError("something else"), OUT_OF_MEMORY[0]):
        fail_once(gpu, error)
        gpu.works = False
        with pytest.raises(DeviceLost):
            runner.run(rows(1))
        assert runner.lost
        runner.lost = False
        gpu.works = True
    runner.lost = True
    runner.close()


def test_on_a_failed_device_neither_the_session_nor_its_memory_is_released(gpu: SimulatedGpu) -> None:
    """On a failed device, ONNX Runtime's destructors abort the process."""
    sessions = []

    def open_session(model: bytes, options: dict[str, str]) -> object:
        session = gpu.open_session(model, options)
        sessions.append(weakref.ref(session))
        return session

    runner = CudaRunner(MODEL, OPTIONS, gpu.connect, open_session)
    fail_once(gpu, LOST[0])
    gpu.works = False
    with pytest.raises(DeviceLost):
        runner.run(rows(1))
    runner.close()
    del runner
    gc.collect()
    assert sessions[0]() is not None
    assert "close" not in gpu.log


def test_another_failure_fails_its_own_run_only(gpu: SimulatedGpu, runner: CudaRunner) -> None:
    error = ValueError("something else")
    fail_once(gpu, error)
    with pytest.raises(ValueError, match="something else"):
        runner.run(rows(1))
    assert not runner.lost


@pytest.mark.parametrize("error", [DeviceError("no"), BundleError("no"), OUT_OF_MEMORY[1], LOST[2]], ids=repr)
def test_a_failed_open_leaves_nothing_behind(error: Exception, gpu: SimulatedGpu) -> None:
    fail_once(gpu, error)
    expected = type(error) if isinstance(error, FoldserveError) else DeviceError
    with pytest.raises(expected, match=str(error)):
        opened(gpu)
    assert gpu.log[-1] == "close"
