"""A session is opened on the device asked for, and is ready only when it gives the golden outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, Golden, Manifest
from foldserve.service.errors import DeviceError, DeviceLost, DeviceOutOfMemory
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.session import Options
from tests.service.cuda_on_the_cpu import Machine
from tests.service.mixed import NAMES, mixed_bundle
from tests.service.support import constant, edit_manifest, made, onnx_model, oracle, roots, tensor

WEIGHTS = np.array([[2.0], [3.0]], np.float32)
GOLDEN = Golden(inputs=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), outputs=((2.0,), (3.0,), (5.0,)))

MATMUL = helper.make_node("MatMul", ["input", "w"], ["value"])


def linear(**changes: object) -> bytes:
    """2a + 3b."""
    return onnx_model([MATMUL], [constant("w", WEIGHTS)], **changes)  # type: ignore[arg-type]


def refusal(whole: bundle.Bundle) -> str:
    with pytest.raises(BundleError) as refused:
        runtime.load(whole, Options("cpu"))
    assert str(refused.value) == f"{whole.path}: {refused.value.reason}"
    assert "\n" not in refused.value.reason
    return refused.value.reason


# --- ready -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_whole_bundle_gives_its_golden_outputs(name: str, trained: Path) -> None:
    whole = bundle.read(trained / name / "1")
    session, parity = runtime.load(whole, Options("cpu"))
    assert parity.holds
    assert parity.rows == len(whole.manifest.golden.inputs) > 0
    rows = np.array(whole.manifest.golden.inputs, np.float32)
    assert session.run(rows) == pytest.approx(np.array(whole.manifest.golden.outputs), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 500])
def test_a_run_is_what_onnx_runtime_gives(rows: int, digits: bundle.Bundle) -> None:
    session, _ = runtime.load(digits, Options("cpu"))
    drawn = np.random.default_rng(rows).integers(0, 17, (rows, 64)).astype(np.float32)
    outputs = session.run(drawn)
    assert outputs.dtype == np.float32
    assert outputs.shape == (rows, 10)
    assert np.array_equal(outputs, oracle(digits.model)(drawn))


def test_a_graph_by_hand_is_served_as_well_as_a_trained_one() -> None:
    session, parity = runtime.load(made(linear(), GOLDEN), Options("cpu"))
    assert parity.max_absolute == 0
    assert session.run(np.array([[10, 1]], np.float32)).tolist() == [[23]]


def test_a_session_says_where_it_runs_and_why(digits: bundle.Bundle) -> None:
    session, _ = runtime.load(digits, Options("cpu"))
    assert (session.provider, session.why) == ("CPUExecutionProvider", "asked for")


no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is built in")


@no_cuda
def test_auto_takes_the_cpu_where_there_is_no_cuda_and_says_so(digits: bundle.Bundle) -> None:
    session, _ = runtime.load(digits, Options("auto"))
    assert session.provider == "CPUExecutionProvider"
    assert "without CUDA" in session.why


@no_cuda
def test_cuda_is_refused_where_there_is_none(digits: bundle.Bundle) -> None:
    with pytest.raises(DeviceError, match="without CUDA"):
        runtime.load(digits, Options("cuda"))


# --- CUDA, in the host's memory ---------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    on_it = partial(CudaRunner, connect=machine.connect, open_session=machine.open_session)
    monkeypatch.setattr(runtime, "CudaRunner", on_it)
    return machine


def test_auto_takes_cuda_where_it_answers(digits: bundle.Bundle, gpu: Machine) -> None:
    session, parity = runtime.load(digits, Options("auto"))
    assert (session.provider, session.why) == ("CUDAExecutionProvider", "CUDA answers")
    assert parity.holds
    gpu.log.clear()
    drawn = np.random.default_rng(0).integers(0, 17, (3, 64)).astype(np.float32)
    assert np.array_equal(session.run(drawn), oracle(digits.model)(np.resize(drawn, (4, 64)))[:3])
    assert gpu.log == ["upload 3", "bound 2", "download 3", "wait"]
    session.close()
    assert gpu.log[-1] == "close"


def test_every_captured_size_gives_the_golden_outputs_before_it_serves(digits: bundle.Bundle, gpu: Machine) -> None:
    session, _ = runtime.load(digits, Options("cuda", buckets=(2, 64, 500)))
    session.close()
    proving = gpu.log[gpu.log.index("wait") :]
    assert {"bound 1", "bound 2", "bound 3"} <= set(proving)
    assert "upload 500" in proving


@pytest.mark.parametrize("crossover", [1, 8])
def test_fewer_rows_than_the_crossover_run_on_the_cpu_and_both_are_proven(
    crossover: int, digits: bundle.Bundle, gpu: Machine
) -> None:
    session, _ = runtime.load(digits, Options("auto", crossover=crossover))
    assert f"fewer than {crossover} rows run on the CPU" in session.why
    assert session.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    gpu.log.clear()
    drawn = np.random.default_rng(0).integers(0, 17, (crossover, 64)).astype(np.float32)
    if crossover > 1:
        session.run(drawn[1:])
    assert gpu.log == []
    session.run(drawn)
    assert gpu.log[0] == f"upload {crossover}"
    session.close()


def test_a_device_that_is_wrong_is_refused_and_given_back(
    digits: bundle.Bundle, gpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: onnx.ModelProto, precision: str) -> bytes:  # noqa: ARG001
        for weights in model.graph.initializer:
            weights.raw_data = (onnx.numpy_helper.to_array(weights) * 1.01).astype(np.float32).tobytes()
        return model.SerializeToString()

    monkeypatch.setattr(runtime, "convert", other)
    with pytest.raises(BundleError, match="on CUDAExecutionProvider the golden rows are off by"):
        runtime.load(digits, Options("cuda"))
    assert gpu.log[-1] == "close"


def test_cuda_asked_for_by_name_runs_every_batch_whatever_the_crossover(digits: bundle.Bundle, gpu: Machine) -> None:
    session, _ = runtime.load(digits, Options("cuda", crossover=8))
    assert (session.why, session.providers) == ("asked for", ("CUDAExecutionProvider",))
    gpu.log.clear()
    session.run(np.zeros((1, 64), np.float32))
    assert gpu.log[0] == "upload 1"
    session.close()


@pytest.mark.parametrize(
    "text", ["CUDA failure 700: an illegal memory access", "CUDA failure 2: out of memory"], ids=["lost", "memory"]
)
@pytest.mark.parametrize("call", [3, 30], ids=["while it is captured", "on the golden rows"])
def test_a_device_that_fails_while_it_is_proven_is_no_fault_of_the_bundle(
    call: int, text: str, digits: bundle.Bundle, gpu: Machine
) -> None:
    calls = itertools.count()
    gpu.fails = lambda: RuntimeError(text) if next(calls) >= call else None
    with pytest.raises(DeviceError):
        runtime.load(digits, Options("cuda"))
    assert gpu.log[-1] == "close"
    calls = itertools.count()
    session, parity = runtime.load(digits, Options("auto"))
    assert session.provider == "CPUExecutionProvider"
    assert parity.holds


def test_a_session_made_anew_is_proven_before_it_answers(digits: bundle.Bundle, gpu: Machine) -> None:
    session, _ = runtime.load(digits, Options("cuda"))
    errors = iter([RuntimeError("CUDA failure 2: out of memory")])
    gpu.fails = lambda: next(errors, None)
    gpu.log.clear()
    with pytest.raises(DeviceOutOfMemory):
        session.run(np.zeros((1, 64), np.float32))
    assert "upload 16" in gpu.log[gpu.log.index("open") :]  # the golden rows
    assert session.run(np.zeros((1, 64), np.float32)).shape == (1, 10)
    session.close()


def test_a_session_made_anew_that_is_another_model_is_a_device_lost(digits: bundle.Bundle, gpu: Machine) -> None:
    session, _ = runtime.load(digits, Options("cuda"))
    calls = itertools.count()
    opened = gpu.open_session

    def other(model: bytes, options: dict[str, str]) -> object:
        graph = onnx.load_model_from_string(model)
        for weights in graph.graph.initializer:
            weights.raw_data = (onnx.numpy_helper.to_array(weights) * 1.01).astype(np.float32).tobytes()
        return opened(graph.SerializeToString(), options)

    session._cuda._open_session = other
    gpu.fails = lambda: RuntimeError("CUDA failure 2: out of memory") if next(calls) == 0 else None
    with pytest.raises(DeviceLost):
        session.run(np.zeros((1, 64), np.float32))
    assert session.lost
    session.close()


def test_auto_takes_the_cpu_where_cuda_fails_and_says_why(digits: bundle.Bundle, gpu: Machine) -> None:
    gpu.fails = lambda: DeviceError("CUDA does not answer: no driver")
    session, _ = runtime.load(digits, Options("auto"))
    assert (session.provider, session.why) == ("CPUExecutionProvider", "CUDA does not answer: no driver")
    with pytest.raises(DeviceError, match="no driver"):
        runtime.load(digits, Options("cuda"))


def test_another_precision_is_said(digits: bundle.Bundle, gpu: Machine) -> None:
    session, parity = runtime.load(digits, Options("auto", precision="tf32"))
    assert session.why == "CUDA answers; products in tf32"
    assert parity.holds
    assert gpu.options[0]["use_tf32"] == "1"
    session.close()


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_precision_of_cuda_is_refused_on_the_cpu(device: str, digits: bundle.Bundle, gpu: Machine) -> None:
    gpu.fails = lambda: DeviceError("no driver")
    with pytest.raises(DeviceError, match=r"precision fp16 is for CUDA: (no driver|the CPU is asked for)"):
        runtime.load(digits, Options(device, precision="fp16"))


# --- not an ONNX model that can be run -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"not ONNX at all", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 100, np.random.default_rng(0).bytes(4096)],
    ids=["empty", "zero", "text", "ones", "zip", "noise"],
)
def test_garbage_is_refused(content: bytes) -> None:
    assert "model.onnx" in refusal(made(content, GOLDEN))


@pytest.mark.parametrize("size", [10, 100, 0.5, 0.9, -1])
def test_a_model_that_was_cut_before_it_was_certified_is_refused(size: float, digits: bundle.Bundle) -> None:
    content = digits.model[: int(size * len(digits.model)) if isinstance(size, float) else size]
    manifest = digits.manifest
    refusal(bundle.Bundle(digits.path, manifest, content))


def test_an_opset_too_new_is_refused() -> None:
    found = made(linear(opset=999), GOLDEN)
    assert refusal(found) == "model.onnx is of opset [999], the manifest says 20"
    content = found.manifest.model_dump()
    content["model"]["opset"] = 999
    honest = replace(found, manifest=Manifest.model_validate(content))
    assert "ONNX Runtime refuses model.onnx" in refusal(honest)


def test_an_ir_version_too_new_is_refused() -> None:
    assert "ONNX Runtime refuses model.onnx" in refusal(made(linear(ir_version=999), GOLDEN))


def test_a_refusal_carries_what_onnx_runtime_has_to_say_but_its_codes() -> None:
    model = onnx_model([helper.make_node("Invented", ["input"], ["value"])])
    with pytest.raises(Exception, match="Invented") as theirs:
        oracle(model)
    # "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. In Node, ... : ..."
    said = str(theirs.value).split(" : ", 3)[3]
    assert refusal(made(model, GOLDEN)) == f"ONNX Runtime refuses model.onnx: {said}"


def test_a_refusal_is_told_by_the_exception_alone(capfd: pytest.CaptureFixture[str]) -> None:
    # ONNX Runtime logs to standard error by itself, and prints when it falls back: not UTF-8 makes it do so.
    name = "Bad"
    not_text = onnx_model([helper.make_node("MatMul", ["input", name], ["value"])]).replace(b"Bad", b"B\xffd")
    for model in (linear(opset=999), not_text):
        refusal(made(model, GOLDEN))
    assert capfd.readouterr() == ("", "")


# --- external data ---------------------------------------------------------------------------------------------------


def external(name: str, location: str) -> TensorProto:
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=WEIGHTS.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
        found.external_data.add(key=key, value=value)
    return found


def in_an_initializer(location: str) -> bytes:
    return onnx_model([MATMUL], [external("w", location)])


def in_a_constant(location: str) -> bytes:
    return onnx_model([helper.make_node("Constant", [], ["w"], value=external("w", location)), MATMUL])


def in_a_subgraph(location: str) -> bytes:
    branches = [
        helper.make_graph(
            [helper.make_node("Identity", [f"{name}.w"], [name])],
            name,
            [],
            [tensor(name, 2, 1)],
            [external(f"{name}.w", location)],
        )
        for name in ("then", "else")
    ]
    choose = helper.make_node("If", ["yes"], ["w"], then_branch=branches[0], else_branch=branches[1])
    return onnx_model([choose, MATMUL], [constant("yes", True, np.bool_)])


def in_a_subgraph_without_nodes(location: str) -> bytes:
    branches = [
        helper.make_graph([], name, [], [tensor(name, 2, 1)], [external(name, location)]) for name in ("then", "else")
    ]
    choose = helper.make_node("If", ["yes"], ["w"], then_branch=branches[0], else_branch=branches[1])
    return onnx_model([choose, MATMUL], [constant("yes", True, np.bool_)])


def in_a_function(location: str) -> bytes:
    opset = [helper.make_opsetid("", 20)]
    nodes = [
        helper.make_node("Constant", [], ["w"], value=external("w", location)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    function = helper.make_function("made", "Dense", ["x"], ["y"], nodes, opset)
    return onnx_model([helper.make_node("Dense", ["input"], ["value"], domain="made")], functions=[function])


def in_a_sparse_initializer(location: str) -> bytes:
    model = onnx.load_model_from_string(onnx_model([MATMUL]))
    sparse = model.graph.sparse_initializer.add(dims=WEIGHTS.shape)
    sparse.values.CopyFrom(external("w", location))
    sparse.indices.CopyFrom(constant("indices", [0, 1], np.int64))
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "ABSOLUTE"])
@pytest.mark.parametrize(
    "build",
    [
        in_an_initializer,
        in_a_constant,
        in_a_subgraph,
        in_a_subgraph_without_nodes,
        in_a_function,
        in_a_sparse_initializer,
    ],
)
def test_a_tensor_in_another_file_is_refused_wherever_it_hides(
    build: Callable[[str], bytes], location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is there, and right: what is refused is that it is read at all, past the hash.
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path, folder):
        WEIGHTS.tofile(place / "weights.bin")
    monkeypatch.chdir(folder)
    if location == "ABSOLUTE":
        location = str(tmp_path / "weights.bin")
    assert refusal(made(build(location), GOLDEN)) == "model.onnx keeps a tensor in another file (external data)"


# --- another interface -----------------------------------------------------------------------------------------------

IDENTITY = [helper.make_node("Identity", ["input"], ["value"])]
INPUT, OUTPUT = tensor("input", "batch", 2), tensor("value", "batch", 1)


@pytest.mark.parametrize(
    ("side", "model"),
    [
        (
            "input",
            onnx_model(
                [helper.make_node("MatMul", ["other", "w"], ["value"])],
                [constant("w", WEIGHTS)],
                inputs=[tensor("other", "batch", 2)],
            ),
        ),
        (
            "input",
            onnx_model([MATMUL], [constant("w", [[1.0], [2.0], [3.0]])], inputs=[tensor("input", "batch", 3)]),
        ),
        ("input", linear(inputs=[tensor("input", 1, 2)])),
        ("input", linear(inputs=[tensor("input", "batch", "width")])),
        ("input", linear(inputs=[INPUT, tensor("second", "batch", 2)])),
        (
            "input",
            onnx_model(
                [
                    helper.make_node("Cast", ["input"], ["f"], to=TensorProto.FLOAT),
                    helper.make_node("MatMul", ["f", "w"], ["value"]),
                ],
                [constant("w", WEIGHTS)],
                inputs=[tensor("input", "batch", 2, kind=TensorProto.DOUBLE)],
            ),
        ),
        (
            "output",
            onnx_model(
                [helper.make_node("MatMul", ["input", "w"], ["other"])],
                [constant("w", WEIGHTS)],
                outputs=[tensor("other", "batch", 1)],
            ),
        ),
        ("output", onnx_model(IDENTITY, outputs=[tensor("value", "batch", 2)])),
        (
            "output",
            onnx_model(
                [MATMUL, helper.make_node("Identity", ["value"], ["second"])],
                [constant("w", WEIGHTS)],
                outputs=[OUTPUT, tensor("second", "batch", 1)],
            ),
        ),
        (
            "output",
            onnx_model(
                [
                    helper.make_node("MatMul", ["input", "w"], ["f"]),
                    helper.make_node("Cast", ["f"], ["value"], to=TensorProto.DOUBLE),
                ],
                [constant("w", WEIGHTS)],
                outputs=[tensor("value", "batch", 1, kind=TensorProto.DOUBLE)],
            ),
        ),
    ],
    ids=[
        *("name", "width", "one row only", "any width", "two", "float64"),
        *("other name", "other width", "two outputs", "float64 output"),
    ],
)
def test_an_interface_other_than_the_manifests_is_refused(side: str, model: bytes) -> None:
    assert refusal(made(model, GOLDEN)).startswith(f"the {side} of model.onnx is not the manifest's")


def test_features_that_do_not_fill_the_input_are_refused(models: Path) -> None:
    edit_manifest(models / "diabetes" / "1", lambda content: content["features"].pop())
    assert refusal(bundle.read(models / "diabetes" / "1")) == "9 features for an input of 10 columns"


def test_labels_that_do_not_fill_the_output_are_refused(models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["labels"].pop())
    assert refusal(bundle.read(models / "digits" / "1")) == "9 labels for an output of 10 columns"


def test_a_regression_with_labels_is_refused(models: Path) -> None:
    edit_manifest(models / "diabetes" / "1", lambda content: content.update(labels=["all"]))
    with pytest.raises(BundleError, match="label"):
        runtime.load(bundle.read(models / "diabetes" / "1"), Options("cpu"))


def test_a_regression_with_several_outputs_is_refused(models: Path) -> None:
    # It would answer with its first column alone.
    edit_manifest(models / "digits" / "1", lambda content: content.update(task="regression", labels=[]))
    with pytest.raises(BundleError, match="output"):
        runtime.load(bundle.read(models / "digits" / "1"), Options("cpu"))


# --- golden rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("off", [1e-3, -1e-3, 1.0])
def test_golden_outputs_that_differ_are_refused(row: int, off: float, models: Path) -> None:
    def move(content: dict) -> None:
        content["golden"]["outputs"][row][0] += off

    edit_manifest(models / "digits" / "1", move)
    text = refusal(bundle.read(models / "digits" / "1"))
    assert text.startswith("on CPUExecutionProvider the golden rows are off by ")
    assert text.endswith(" times what is allowed")


def test_golden_rows_that_differ_within_the_tolerance_are_taken(models: Path) -> None:
    def move(content: dict) -> None:
        for row in content["golden"]["outputs"]:
            row[0] += 5e-6

    edit_manifest(models / "digits" / "1", move)
    _, parity = runtime.load(bundle.read(models / "digits" / "1"), Options("cpu"))
    assert 0.01 < parity.worst <= 1


def test_a_model_whose_answer_depends_on_its_neighbours_is_refused() -> None:
    # value - mean over the batch + its own value: right for every row alone, and for no two different ones together.
    model = onnx_model(
        [
            helper.make_node("MatMul", ["input", "w"], ["own"]),
            helper.make_node("ReduceMean", ["own", "axes"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["own", "mean"], ["off"]),
            helper.make_node("Add", ["own", "off"], ["value"]),
        ],
        [constant("w", WEIGHTS), constant("axes", [0], np.int64)],
    )
    assert oracle(model)(np.array([[1, 0]], np.float32)).tolist() == [[2]]
    assert "the golden rows are off by" in refusal(made(model, GOLDEN))


def test_golden_rows_that_come_out_as_no_number_are_refused() -> None:
    model, _ = roots()
    golden = Golden(inputs=((1.0, 3.0), (-1.0, 0.0)), outputs=((2.0,), (0.0,)))
    assert refusal(made(model, golden)) == "the model gives an output that is not finite"


@pytest.mark.parametrize(
    "golden",
    [
        Golden(inputs=(), outputs=()),
        Golden(inputs=(), outputs=((1.0,),)),
        Golden(inputs=((1.0, 0.0),), outputs=()),
        Golden(inputs=((1.0, 0.0),), outputs=((2.0,), (3.0,))),
        Golden(inputs=((1.0, 0.0),), outputs=((2.0, 3.0),)),
        Golden(inputs=((1.0,),), outputs=((2.0,),)),
        Golden(inputs=((),), outputs=((),)),
        Golden(inputs=((1.0, 0.0), (1.0,)), outputs=((2.0,), (2.0,))),
        Golden(inputs=((1.0, 0.0), (0.0, 1.0)), outputs=((2.0,), (3.0, 4.0))),
        Golden(inputs=((1e300, 0.0),), outputs=((2.0,),)),
        Golden(inputs=((None, 0.0),), outputs=((2.0,),)),
    ],
    ids=[
        *("none", "no inputs", "no outputs", "more outputs than inputs", "wide outputs", "narrow inputs", "no columns"),
        *("ragged inputs", "ragged outputs", "past float32", "null without missing values"),
    ],
)
def test_golden_rows_that_are_no_rows_of_this_model_are_refused(golden: Golden) -> None:
    refusal(made(linear(), golden))


@pytest.mark.parametrize(
    ("name", "value"), [("town", 7.0), ("town", -1.0), ("town", 0.5), ("member", 2.0), ("town", None), ("age", None)]
)
def test_a_golden_row_that_no_client_may_send_is_refused(name: str, value: float | None) -> None:
    whole = mixed_bundle()
    first, *others = whole.manifest.golden.inputs
    changed = tuple(value if name == column else usual for column, usual in zip(NAMES, first, strict=True))
    golden = whole.manifest.golden.model_copy(update={"inputs": (changed, *others)})
    text = refusal(replace(whole, manifest=whole.manifest.model_copy(update={"golden": golden})))
    assert text == f"a golden row holds an invalid value in column {name!r}"


def test_golden_rows_with_missing_values_and_unseen_categories_prove_a_model() -> None:
    whole = mixed_bundle()
    assert any(value is None for row in whole.manifest.golden.inputs for value in row)
    _, parity = runtime.load(whole, Options("cpu"))
    assert (parity.rows, parity.holds) == (3, True)


# --- one run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0)])
@pytest.mark.parametrize("rows", [2, 40], ids=["few", "many"])
def test_a_row_without_a_finite_output_leaves_the_others_alone(bad: tuple[float, float], rows: int) -> None:
    model, golden = roots()
    session, _ = runtime.load(made(model, golden), Options("cpu"))
    mixed = np.array([(1.0, 3.0)] * (rows - 1) + [bad], np.float32)
    outputs = session.run(mixed)
    assert outputs.tobytes() == oracle(model)(mixed).tobytes()
    assert outputs[:-1].tolist() == [[2]] * (rows - 1)
    assert not np.isfinite(outputs[-1]).any()
    assert session.run(np.array([(1.0, 3.0)], np.float32)).tolist() == [[2]]


def test_an_output_is_the_callers_own_and_outlives_the_next_run() -> None:
    session, _ = runtime.load(made(linear(), GOLDEN), Options("cpu"))
    first = session.run(np.array([[1, 0]], np.float32))
    session.run(np.array([[0, 1]], np.float32))
    assert first.tolist() == [[2]]


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (1, 1), (40, 3)], ids=str)
def test_rows_of_another_width_fail_the_run_and_not_the_next_one(shape: tuple[int, int]) -> None:
    session, _ = runtime.load(made(linear(), GOLDEN), Options("cpu"))
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(np.ones(shape, np.float32))
    assert session.run(np.array([[1, 0]], np.float32)).tolist() == [[2]]
