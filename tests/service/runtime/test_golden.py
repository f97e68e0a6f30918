"""A model is refused unless its graph, interface and golden outputs agree with the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, Golden, Manifest
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.session import Options
from tests.service.mixed import NAMES, mixed_bundle
from tests.service.runtime.handmade import GOLDEN, MATMUL, WEIGHTS, linear, refusal
from tests.service.support import bundle_in_memory, constant, edit_manifest, onnx_model, oracle, square_root, tensor

# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"not ONNX at all", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 100, np.random.default_rng(0).bytes(4096)],
    ids=["empty", "zero", "text", "ones", "zip", "noise"],
)
def test_garbage_is_refused(content: bytes) -> None:
    assert "model.onnx" in refusal(bundle_in_memory(content, GOLDEN))


@pytest.mark.parametrize("size", [10, 100, 0.5, 0.9, -1])
def test_a_truncated_model_is_refused_even_if_its_hash_fits(size: float, digits: bundle.Bundle) -> None:
    content = digits.model[: int(size * len(digits.model)) if isinstance(size, float) else size]
    manifest = digits.manifest
    refusal(bundle.Bundle(digits.path, manifest, content))


def test_an_opset_too_new_is_refused() -> None:
    found = bundle_in_memory(linear(opset=999), GOLDEN)
    assert refusal(found) == "model.onnx is of opset [999], the manifest says 20"
    content = found.manifest.model_dump()
    content["model"]["opset"] = 999
    honest = replace(found, manifest=Manifest.model_validate(content))
    assert "ONNX Runtime refuses model.onnx" in refusal(honest)


def test_an_ir_version_too_new_is_refused() -> None:
    assert "ONNX Runtime refuses model.onnx" in refusal(bundle_in_memory(linear(ir_version=999), GOLDEN))


def test_the_error_has_onnx_runtime_s_text_without_its_codes() -> None:
    model = onnx_model([helper.make_node("Invented", ["input"], ["value"])])
    with pytest.raises(Exception, match="Invented") as theirs:
        oracle(model)
    # ONNX Runtime's error text has three parts before the reason: "[ONNXRuntimeError] : 10 : INVALID_GRAPH".
    said = str(theirs.value).split(" : ", 3)[3]
    assert refusal(bundle_in_memory(model, GOLDEN)) == f"ONNX Runtime refuses model.onnx: {said}"


def test_a_refusal_prints_and_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    # ONNX Runtime logs to standard error, and prints a line when it falls back to another provider. ONNX Runtime falls
    # back to another provider if a name in the model is not UTF-8.
    name = "Bad"
    not_text = onnx_model([helper.make_node("MatMul", ["input", name], ["value"])]).replace(b"Bad", b"B\xffd")
    for model in (linear(opset=999), not_text):
        refusal(bundle_in_memory(model, GOLDEN))
    assert capfd.readouterr() == ("", "")


# --- the interface ---------------------------------------------------------------------------------------------------


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
def test_another_interface_than_the_manifest_s_is_refused(side: str, model: bytes) -> None:
    assert refusal(bundle_in_memory(model, GOLDEN)).startswith(f"the {side} of model.onnx is not the manifest's")


def test_fewer_features_than_columns_of_the_input_are_refused(models: Path) -> None:
    edit_manifest(models / "diabetes" / "1", lambda content: content["features"].pop())
    assert refusal(bundle.read(models / "diabetes" / "1")) == "9 features for an input of 10 columns"


def test_fewer_labels_than_columns_of_the_output_are_refused(models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["labels"].pop())
    assert refusal(bundle.read(models / "digits" / "1")) == "9 labels for an output of 10 columns"


def test_a_regression_with_labels_is_refused(models: Path) -> None:
    edit_manifest(models / "diabetes" / "1", lambda content: content.update(labels=["all"]))
    with pytest.raises(BundleError, match="label"):
        runtime.load(bundle.read(models / "diabetes" / "1"), Options("cpu"))


def test_a_regression_with_several_outputs_is_refused(models: Path) -> None:
    # If the server accepted the model, its responses would have only the first output column.
    edit_manifest(models / "digits" / "1", lambda content: content.update(task="regression", labels=[]))
    with pytest.raises(BundleError, match="output"):
        runtime.load(bundle.read(models / "digits" / "1"), Options("cpu"))


# --- golden rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("off", [1e-3, -1e-3, 1.0])
def test_wrong_golden_outputs_are_refused(row: int, off: float, models: Path) -> None:
    def move(content: dict) -> None:
        content["golden"]["outputs"][row][0] += off

    edit_manifest(models / "digits" / "1", move)
    text = refusal(bundle.read(models / "digits" / "1"))
    assert text.startswith("on CPUExecutionProvider the golden outputs differ by ")
    assert text.endswith(" times the tolerance")


def test_golden_outputs_within_the_tolerance_are_accepted(models: Path) -> None:
    def move(content: dict) -> None:
        for row in content["golden"]["outputs"]:
            row[0] += 5e-6

    edit_manifest(models / "digits" / "1", move)
    _, parity = runtime.load(bundle.read(models / "digits" / "1"), Options("cpu"))
    assert 0.01 < parity.worst <= 1


def test_a_model_whose_output_depends_on_other_rows_is_refused() -> None:
    # For each value, the model computes 2 * value - (mean of the batch). The output is right for a batch of one row,
    # and wrong for a batch of two different rows.
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
    assert "the golden outputs differ by" in refusal(bundle_in_memory(model, GOLDEN))


def test_golden_rows_with_an_output_of_nan_are_refused() -> None:
    model, _ = square_root()
    golden = Golden(inputs=((1.0, 3.0), (-1.0, 0.0)), outputs=((2.0,), (0.0,)))
    assert refusal(bundle_in_memory(model, golden)) == "the model gives an output that is not finite"


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
def test_golden_rows_of_another_shape_are_refused(golden: Golden) -> None:
    refusal(bundle_in_memory(linear(), golden))


@pytest.mark.parametrize(
    ("name", "value"), [("town", 7.0), ("town", -1.0), ("town", 0.5), ("member", 2.0), ("town", None), ("age", None)]
)
def test_a_golden_row_with_an_invalid_value_is_refused(name: str, value: float | None) -> None:
    whole = mixed_bundle()
    first, *others = whole.manifest.golden.inputs
    changed = tuple(value if name == column else usual for column, usual in zip(NAMES, first, strict=True))
    golden = whole.manifest.golden.model_copy(update={"inputs": (changed, *others)})
    text = refusal(replace(whole, manifest=whole.manifest.model_copy(update={"golden": golden})))
    assert text == f"a golden row holds an invalid value in column {name!r}"


def test_golden_rows_may_have_missing_values_and_unseen_categories() -> None:
    whole = mixed_bundle()
    assert any(value is None for row in whole.manifest.golden.inputs for value in row)
    _, parity = runtime.load(whole, Options("cpu"))
    assert (parity.rows, parity.holds) == (3, True)
