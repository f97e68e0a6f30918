"""A conversion to fp16 or bf16 keeps the operators of a model, but changes the type of the tensors inside the graph.

In fp16 or bf16, the tolerance of the golden rows is wider than in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, Tolerance
from foldserve.service.runtime.golden import check_golden, check_graph
from foldserve.service.runtime.precision import convert, widen
from tests.service.mixed import mixed_bundle

FLOATS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def digits(trained: Path) -> bundle.Bundle:
    return bundle.read(trained / "digits" / "1")


def narrowed(whole: bundle.Bundle, precision: str) -> onnx.ModelProto:
    return onnx.load_model_from_string(convert(check_graph(whole), precision))


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_precision_that_is_an_option_of_the_provider_leaves_the_graph_alone(
    precision: str, digits: bundle.Bundle
) -> None:
    assert narrowed(digits, precision) == onnx.load_model_from_string(digits.model)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_and_operators_between_them_are_narrow_and_inputs_and_outputs_are_not(
    precision: str, digits: bundle.Bundle
) -> None:
    model = narrowed(digits, precision)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        *("Cast", "Gemm", "Relu", "Gemm", "Relu", "Gemm", "Cast", "Softmax")
    ]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in model.graph.node[1:6]:
        assert types[node.output[0]] == FLOATS[precision]
    for tensor in (*model.graph.input, *model.graph.output):
        assert tensor.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_rounded_once_to_the_nearest_number(precision: str, digits: bundle.Bundle) -> None:
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(digits.model).graph.initializer}
    bits = {"fp16": 11, "bf16": 8}[precision]
    model = narrowed(digits, precision)
    used = {name for node in model.graph.node for name in node.input}
    after = {t.name: t for t in model.graph.initializer if t.name in used}
    assert len(after) == len(before)
    for name, weights in before.items():
        rounded = numpy_helper.to_array(after[f"{name}.narrow"]).astype(np.float64)
        # The rounding error is half a unit in the last place. fp16 numbers below 2**-14 are subnormal.
        unit = 2.0 ** (np.floor(np.log2(np.maximum(abs(weights.astype(np.float64)), 2.0**-14))) - bits + 1)
        assert (abs(rounded - weights) <= unit / 2).all()


def test_encodings_stay_in_float32() -> None:
    model = narrowed(mixed_bundle(), "fp16")
    onnx.checker.check_model(model, full_check=True)
    before = [node.op_type for node in onnx.load_model_from_string(mixed_bundle().model).graph.node]
    assert [node.op_type for node in model.graph.node if not node.name.endswith(".narrow.cast")][: len(before)]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.array(mixed_bundle().manifest.golden.inputs, np.float64).astype(np.float32)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: rows})
    np.testing.assert_allclose(outputs, mixed_bundle().manifest.golden.outputs, atol=5e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_golden_outputs_are_within_the_tolerance_of_the_precision_and_not_of_float32(
    precision: str, digits: bundle.Bundle
) -> None:
    # ONNX's reference evaluator rounds after every node. A GPU rounds less often than the reference evaluator.
    evaluator = ReferenceEvaluator(narrowed(digits, precision))

    def run(rows: np.ndarray) -> np.ndarray:
        (outputs,) = evaluator.run(None, {"input": rows})
        return outputs

    certified = digits.manifest.certificate.tolerance
    parity = check_golden(run, "CUDA", digits.manifest, widen(certified, precision))
    assert 0.001 < parity.worst < 1
    with pytest.raises(BundleError, match=r"on CUDA the golden outputs differ by .* times the tolerance"):
        check_golden(run, "CUDA", digits.manifest, certified)


@pytest.mark.parametrize(("precision", "times"), [("fp32", 1), ("tf32", 200), ("fp16", 200), ("bf16", 1600)])
def test_fewer_bits_widen_the_tolerance(precision: str, times: int) -> None:
    wider = widen(Tolerance(absolute=1e-5, relative=1e-4), precision)
    assert (wider.absolute, wider.relative) == pytest.approx((times * 1e-5, times * 1e-4))


def test_a_weight_beyond_fp16_is_refused() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gemm", ["input", "w"], ["value"])],
            "large",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 1])],
            [numpy_helper.from_array(np.array([[1e5]], np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    with pytest.raises(BundleError, match="w holds a number that is too large for fp16"):
        convert(model, "fp16")
    assert convert(model, "bf16")
