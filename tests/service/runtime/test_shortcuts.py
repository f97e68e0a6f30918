"""The shortcuts of the CUDA runner do not change the function that a model computes. If a check fails, the shortcuts
are turned off.

The tests in tests/cuda_harness run the shortcuts with ONNX Runtime's own CUDA provider.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from foldserve.service import bundle
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.session import Options
from foldserve.service.runtime.shortcuts import Shortcuts, prepare
from tests.service.mixed import mixed_bundle
from tests.service.simulated_cuda import SimulatedGpu
from tests.service.support import constant, onnx_model, oracle, tensor

GENERATOR = np.random.default_rng(0)


def network(*widths: int, hidden: str = "Relu", last: str = "Softmax", first: str | None = None) -> bytes:
    """Make a network of Gemms.

    first: the operator before the first Gemm. hidden: the operator between two Gemms. last: the operator at the end.
    """
    nodes, constants, value = [], [], "input"
    if first:
        nodes.append(helper.make_node(first, ["input"], [value := "first"]))
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        for name, shape in (("w", (outputs, inputs)), ("b", (outputs,))):
            constants.append(constant(f"{name}{number}", GENERATOR.normal(size=shape).astype(np.float32)))
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [f"h{number}"], transB=1))
        nodes.append(helper.make_node(hidden, [f"h{number}"], [value := f"r{number}"]))
    nodes[-1] = helper.make_node(last, [nodes[-1].input[0]], ["value"])
    interface = {"inputs": (tensor("input", "batch", widths[0]),), "outputs": (tensor("value", "batch", widths[-1]),)}
    return onnx_model(nodes, constants, **interface)


def with_ones(rows: np.ndarray, count: int) -> np.ndarray:
    added = np.zeros((len(rows), count), np.float32)
    added[:, :1] = 1
    return np.hstack([rows, added])


@pytest.mark.parametrize(
    ("model", "ones", "biases"),
    [
        (network(64, 64, 64, 10), 4, 0),
        (network(5, 7, 6, 9, 3), 3, 0),
        (network(3, 2), 1, 0),
        (network(6, 8, 4, hidden="Tanh"), 2, 1),  # the second Gemm follows no Relu, so it keeps its bias
        (network(6, 8, 8, 4, first="Abs"), 0, 1),  # the first Gemm needs its bias to make the 1 for the next Gemm
        (network(6, 8, 8, 4, first="Abs", hidden="Sigmoid"), 0, 3),
    ],
)
def test_biases_become_rows_of_the_weights_and_the_outputs_stay(model: bytes, ones: int, biases: int) -> None:
    graph = onnx.load_model_from_string(model)
    before = graph.SerializeToString(deterministic=True)
    prepared, shortcuts = prepare(graph, Options("cuda"))
    assert graph.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(prepared, full_check=True)
    gemms = [node for node in prepared.graph.node if node.op_type == "Gemm"]
    assert (shortcuts.ones, sum(len(node.input) == 3 for node in gemms)) == (ones, biases)
    rows = GENERATOR.normal(size=(50, graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value)).astype(np.float32)
    outputs = oracle(prepared.SerializeToString())(with_ones(rows, ones))
    np.testing.assert_allclose(outputs, oracle(model)(rows), rtol=1e-4, atol=1e-5)


def test_a_row_that_overflows_in_a_hidden_layer_has_no_number_as_output() -> None:
    graph = onnx.load_model_from_string(network(1, 1, 1, 2))
    for weights, value in zip(graph.graph.initializer, (4, 0, -1, 0, 1, 0), strict=True):
        weights.CopyFrom(numpy_helper.from_array(np.full(weights.dims, value, np.float32), weights.name))
    prepared, shortcuts = prepare(graph, Options("cuda"))
    rows = np.array([[1], [3e38]], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        assert oracle(graph.SerializeToString())(rows).tolist() == [[0.5, 0.5], [0.5, 0.5]]
        outputs = oracle(prepared.SerializeToString())(with_ones(rows, shortcuts.ones))
    assert np.isfinite(outputs).all(axis=1).tolist() == [True, False]


def test_a_model_with_encoded_columns_keeps_its_outputs() -> None:
    whole = mixed_bundle()
    prepared, _ = prepare(onnx.load_model_from_string(whole.model), Options("cuda"))
    rows = np.array(whole.manifest.golden.inputs, np.float32)
    outputs = oracle(prepared.SerializeToString())(rows)
    np.testing.assert_allclose(outputs, oracle(whole.model)(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (network(512, 1024, 10), Options("cuda"), Shortcuts(0, host_outputs=True)),  # above 1 MiB
        (network(8, 8, 2), Options("cuda", precision="fp16"), Shortcuts(0, host_outputs=True)),
        (network(8, 8, 2, last="Sigmoid"), Options("cuda"), Shortcuts(4, host_outputs=True)),
        # The outputs stay on the device, because the last kernel may read them.
        (network(8, 8, 1, last="Identity"), Options("cuda"), Shortcuts(4)),
        (network(512, 4), Options("cuda", max_batch=4096), Shortcuts(4, host_outputs=True)),
        (network(512, 4), Options("cuda", max_batch=4097), Shortcuts(4, host_outputs=True, piece=4096)),
    ],
    ids=["large", "fp16", "sigmoid", "regression", "one piece", "pieces"],
)
def test_the_shortcuts_depend_on_the_model_and_the_options(model: bytes, options: Options, expected: Shortcuts) -> None:
    graph = onnx.load_model_from_string(model)
    prepared, shortcuts = prepare(graph, options)
    assert shortcuts == expected
    assert (prepared is graph) == (expected.ones == 0)


# --- the runner, on a simulated GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8, 9, 16, 17, 24, 61])
def test_a_large_batch_runs_in_pieces_with_two_buffers(count: int) -> None:
    model, gpu = network(3, 5, 2), SimulatedGpu()
    prepared, _ = prepare(onnx.load_model_from_string(model), Options("cuda"))
    shortcuts = Shortcuts(1, host_outputs=True, piece=8)
    options = Options("cuda", buckets=(2,))
    runner = CudaRunner(prepared.SerializeToString(), options, gpu.connect, gpu.open_session, shortcuts)
    for _ in range(2):
        gpu.log.clear()
        rows = GENERATOR.normal(size=(count, 3)).astype(np.float32)
        np.testing.assert_allclose(runner.run(rows), oracle(model)(rows), rtol=1e-4, atol=1e-5)
    pieces = -(-count // 8)
    assert gpu.log.count("wait for") == (pieces if pieces > 1 else 0)
    if pieces == 3:  # the second piece begins before the host waits for the first one
        begin = ["upload 8", "run", "record"]
        last = [f"upload {count - 16}", "run", "record"]
        assert gpu.log == [*begin, *begin, "wait for", *last, "wait for", "wait for"]
    with pytest.raises(ValueError, match="invalid dimensions"):
        runner.run(np.ones((count, 4), np.float32))
    runner.close()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    simulated = SimulatedGpu()

    def on_it(model: bytes, options: Options, *, shortcuts: Shortcuts) -> CudaRunner:
        return CudaRunner(model, options, simulated.connect, simulated.open_session, shortcuts)

    monkeypatch.setattr(runtime, "CudaRunner", on_it)
    return simulated


def test_pieces_are_checked_on_the_golden_rows(digits: bundle.Bundle, gpu: SimulatedGpu) -> None:
    loaded, _ = runtime.load(digits, Options("cuda", buckets=(), max_batch=40_000))
    assert gpu.log.count("upload 32768") == 2
    assert loaded.why == "requested"
    loaded.close()


@pytest.mark.parametrize("broken", ["wrong outputs", "error"])
def test_without_the_golden_outputs_the_shortcuts_are_turned_off_and_the_reason_is_given(
    broken: str, digits: bundle.Bundle, gpu: SimulatedGpu
) -> None:
    opened = gpu.open_session

    def open_session(model: bytes, options: dict[str, str]) -> object:
        graph = onnx.load_model_from_string(model)
        # Only the model with a column of ones has more than 64 inputs.
        if graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value > 64:
            if broken == "error":
                raise RuntimeError("no such kernel")
            for weights in graph.graph.initializer:
                weights.raw_data = (onnx.numpy_helper.to_array(weights) * 1.01).astype(np.float32).tobytes()
        return opened(graph.SerializeToString(), options)

    gpu.open_session = open_session  # type: ignore[method-assign]
    loaded, parity = runtime.load(digits, Options("cuda"))
    assert parity.holds
    reason = {"error": "no such kernel", "wrong outputs": "the golden outputs differ by"}[broken]
    assert loaded.why.startswith("requested; no shortcuts, since with them: ")
    assert reason in loaded.why
    rows = np.array(digits.manifest.golden.inputs, np.float32)
    assert np.array_equal(loaded.run(rows[:4]), oracle(digits.model)(rows[:4]))
    loaded.close()
