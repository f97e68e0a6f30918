"""A runtime opens on the requested device only. The model must reproduce the golden outputs on the requested device."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from foldserve.service import bundle
from foldserve.service.bundle import BundleError
from foldserve.service.errors import DeviceError, DeviceLost, DeviceOutOfMemory
from foldserve.service.machine import nvidia
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.session import Options
from tests.service.runtime.handmade import GOLDEN, linear
from tests.service.simulated_cuda import SimulatedGpu
from tests.service.support import bundle_in_memory, constant, onnx_model, oracle, square_root

# --- the CPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_whole_bundle_gives_its_golden_outputs(name: str, trained: Path) -> None:
    whole = bundle.read(trained / name / "1")
    loaded, parity = runtime.load(whole, Options("cpu"))
    assert parity.holds
    assert parity.rows == len(whole.manifest.golden.inputs) > 0
    rows = np.array(whole.manifest.golden.inputs, np.float32)
    assert loaded.run(rows) == pytest.approx(np.array(whole.manifest.golden.outputs), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 500])
def test_a_run_gives_the_outputs_of_onnx_runtime(rows: int, digits: bundle.Bundle) -> None:
    loaded, _ = runtime.load(digits, Options("cpu"))
    drawn = np.random.default_rng(rows).integers(0, 17, (rows, 64)).astype(np.float32)
    outputs = loaded.run(drawn)
    assert outputs.dtype == np.float32
    assert outputs.shape == (rows, 10)
    assert np.array_equal(outputs, oracle(digits.model)(drawn))


def test_a_handmade_graph_runs_like_a_trained_one() -> None:
    loaded, parity = runtime.load(bundle_in_memory(linear(), GOLDEN), Options("cpu"))
    assert parity.max_absolute == 0
    assert loaded.run(np.array([[10, 1]], np.float32)).tolist() == [[23]]


def test_a_runtime_names_its_provider_and_the_reason(digits: bundle.Bundle) -> None:
    loaded, _ = runtime.load(digits, Options("cpu"))
    assert (loaded.provider, loaded.why) == ("CPUExecutionProvider", "requested")


no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is built in")


@no_cuda
def test_auto_chooses_the_cpu_without_cuda_and_says_so(digits: bundle.Bundle) -> None:
    loaded, _ = runtime.load(digits, Options("auto"))
    assert loaded.provider == "CPUExecutionProvider"
    assert loaded.why == "this machine has no NVIDIA GPU" or (nvidia.has_gpu() and "without CUDA" in loaded.why)


@no_cuda
def test_a_request_for_cuda_is_refused_without_cuda(digits: bundle.Bundle) -> None:
    with pytest.raises(DeviceError, match="without CUDA"):
        runtime.load(digits, Options("cuda"))


# --- CUDA, simulated -------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    simulated = SimulatedGpu()
    on_it = partial(CudaRunner, connect=simulated.connect, open_session=simulated.open_session)
    monkeypatch.setattr(runtime, "CudaRunner", on_it)
    return simulated


def test_auto_chooses_cuda_where_it_is_available(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    loaded, parity = runtime.load(digits, Options("auto"))
    assert (loaded.provider, loaded.why) == ("CUDAExecutionProvider", "CUDA is available")
    assert parity.holds
    gpu.log.clear()
    drawn = np.random.default_rng(0).integers(0, 17, (3, 64)).astype(np.float32)
    np.testing.assert_allclose(loaded.run(drawn), oracle(digits.model)(drawn), rtol=1e-4, atol=1e-5)
    assert gpu.log == ["launch 2", "wait"]
    loaded.close()
    assert gpu.log[-1] == "close"


def test_every_captured_size_is_checked_on_the_golden_rows(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    loaded, _ = runtime.load(digits, Options("cuda", buckets=(2, 64, 500)))
    loaded.close()
    assert {"launch 1", "launch 2", "launch 3"} <= set(gpu.log)


@pytest.mark.parametrize("crossover", [1, 8])
def test_fewer_rows_than_the_crossover_run_on_the_cpu_and_both_devices_are_checked(
    crossover: int, digits: bundle.Bundle, gpu: SimulatedGpu
) -> None:
    loaded, _ = runtime.load(digits, Options("auto", crossover=crossover))
    assert f"fewer than {crossover} rows run on the CPU" in loaded.why
    assert loaded.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    gpu.log.clear()
    drawn = np.random.default_rng(0).integers(0, 17, (crossover, 64)).astype(np.float32)
    if crossover > 1:
        loaded.run(drawn[1:])
    assert gpu.log == []
    loaded.run(drawn)
    assert gpu.log[0] == ("launch 1" if crossover == 1 else "launch 3")
    loaded.close()


def test_a_device_with_wrong_outputs_is_refused_and_released(
    digits: bundle.Bundle, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: onnx.ModelProto, precision: str) -> bytes:  # noqa: ARG001
        for weights in model.graph.initializer:
            weights.raw_data = (onnx.numpy_helper.to_array(weights) * 1.01).astype(np.float32).tobytes()
        return model.SerializeToString()

    monkeypatch.setattr(runtime, "convert", other)
    with pytest.raises(BundleError, match="on CUDAExecutionProvider the golden outputs differ by"):
        runtime.load(digits, Options("cuda"))
    assert gpu.log[-1] == "close"


def test_a_model_with_a_node_of_many_inputs_runs_without_graphs_and_says_so(gpu: SimulatedGpu) -> None:
    names = [f"part{number}" for number in range(33)]
    model = onnx_model(
        [
            helper.make_node("Identity", ["input"], ["first"]),
            *(helper.make_node("Identity", ["first"], [name]) for name in names),
            helper.make_node("Concat", names, ["wide"], axis=1),
            helper.make_node("ReduceSum", ["wide", "axes"], ["value"], keepdims=1),
        ],
        [constant("axes", [1], np.int64)],
    )
    golden = bundle.Golden(inputs=((1.0, 3.0),), outputs=((132.0,),))
    loaded, _ = runtime.load(bundle_in_memory(model, golden), Options("auto"))
    assert loaded.why == "CUDA is available; no CUDA graphs, since a node has more than 32 inputs"
    assert not any(line.startswith("capture") for line in gpu.log)
    loaded.close()


def test_with_requested_cuda_every_batch_runs_on_cuda_for_any_crossover(
    digits: bundle.Bundle, gpu: SimulatedGpu
) -> None:
    loaded, _ = runtime.load(digits, Options("cuda", crossover=8))
    assert (loaded.why, loaded.providers) == ("requested", ("CUDAExecutionProvider",))
    gpu.log.clear()
    loaded.run(np.zeros((1, 64), np.float32))
    assert gpu.log[0] == "launch 1"
    loaded.close()


@pytest.mark.parametrize(
    "text", ["CUDA failure 700: an illegal memory access", "CUDA failure 2: out of memory"], ids=["lost", "memory"]
)
@pytest.mark.parametrize("call", [3, 30], ids=["while it is captured", "on the golden rows"])
def test_a_device_that_fails_during_the_check_is_not_an_error_of_the_bundle(
    call: int, text: str, digits: bundle.Bundle, gpu: SimulatedGpu
) -> None:
    calls = itertools.count()
    gpu.fails = lambda: RuntimeError(text) if next(calls) >= call else None
    with pytest.raises(DeviceError):
        runtime.load(digits, Options("cuda"))
    assert gpu.log[-1] == "close"
    calls = itertools.count()
    loaded, parity = runtime.load(digits, Options("auto"))
    assert loaded.provider == "CPUExecutionProvider"
    assert parity.holds


def test_a_reopened_session_is_checked_before_it_serves(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    loaded, _ = runtime.load(digits, Options("cuda"))
    errors = iter([RuntimeError("CUDA failure 2: out of memory")])
    gpu.fails = lambda: next(errors, None)
    gpu.log.clear()
    with pytest.raises(DeviceOutOfMemory):
        loaded.run(np.zeros((1, 64), np.float32))
    assert "launch 3" in gpu.log[gpu.log.index("open") :]  # the golden rows
    assert loaded.run(np.zeros((1, 64), np.float32)).shape == (1, 10)
    loaded.close()


def test_a_reopened_session_with_wrong_outputs_is_a_lost_device(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    loaded, _ = runtime.load(digits, Options("cuda"))
    calls = itertools.count()
    opened = gpu.open_session

    def other(model: bytes, options: dict[str, str]) -> object:
        graph = onnx.load_model_from_string(model)
        for weights in graph.graph.initializer:
            weights.raw_data = (onnx.numpy_helper.to_array(weights) * 1.01).astype(np.float32).tobytes()
        return opened(graph.SerializeToString(), options)

    loaded._cuda._open_session = other
    gpu.fails = lambda: RuntimeError("CUDA failure 2: out of memory") if next(calls) == 0 else None
    with pytest.raises(DeviceLost):
        loaded.run(np.zeros((1, 64), np.float32))
    assert loaded.lost
    loaded.close()


def test_auto_chooses_the_cpu_when_cuda_fails_and_says_why(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    gpu.fails = lambda: DeviceError("CUDA is not available: no driver")
    loaded, _ = runtime.load(digits, Options("auto"))
    assert (loaded.provider, loaded.why) == ("CPUExecutionProvider", "CUDA is not available: no driver")
    with pytest.raises(DeviceError, match="no driver"):
        runtime.load(digits, Options("cuda"))


def test_the_reason_names_another_precision_than_fp32(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    loaded, parity = runtime.load(digits, Options("auto", precision="tf32"))
    assert loaded.why == "CUDA is available; products in tf32"
    assert parity.holds
    assert gpu.options[0]["use_tf32"] == "1"
    loaded.close()


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_precision_for_cuda_is_refused_on_the_cpu(device: str, digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    gpu.fails = lambda: DeviceError("no driver")
    with pytest.raises(DeviceError, match=r"precision fp16 needs CUDA: (no driver|the CPU is requested)"):
        runtime.load(digits, Options(device, precision="fp16"))


# --- one run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0)])
@pytest.mark.parametrize("rows", [2, 40], ids=["few", "many"])
def test_a_row_without_a_finite_output_does_not_change_other_rows(bad: tuple[float, float], rows: int) -> None:
    model, golden = square_root()
    loaded, _ = runtime.load(bundle_in_memory(model, golden), Options("cpu"))
    mixed = np.array([(1.0, 3.0)] * (rows - 1) + [bad], np.float32)
    outputs = loaded.run(mixed)
    assert outputs.tobytes() == oracle(model)(mixed).tobytes()
    assert outputs[:-1].tolist() == [[2]] * (rows - 1)
    assert not np.isfinite(outputs[-1]).any()
    assert loaded.run(np.array([(1.0, 3.0)], np.float32)).tolist() == [[2]]


def test_outputs_belong_to_the_caller_and_survive_the_next_run() -> None:
    loaded, _ = runtime.load(bundle_in_memory(linear(), GOLDEN), Options("cpu"))
    first = loaded.run(np.array([[1, 0]], np.float32))
    loaded.run(np.array([[0, 1]], np.float32))
    assert first.tolist() == [[2]]


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (1, 1), (40, 3)], ids=str)
def test_rows_of_another_width_fail_their_own_run_only(shape: tuple[int, int]) -> None:
    loaded, _ = runtime.load(bundle_in_memory(linear(), GOLDEN), Options("cpu"))
    with pytest.raises(Exception, match="invalid dimensions"):
        loaded.run(np.ones(shape, np.float32))
    assert loaded.run(np.array([[1, 0]], np.float32)).tolist() == [[2]]
