"""Every supported operator reproduces the expected results of onnx's own test cases for backends."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.folding import fold
from foldserve.training.imports.imported import Options
from foldserve.training.imports.onnx_inputs import read_inputs
from foldserve.training.imports.onnx_model import translate
from foldserve.training.imports.onnx_values import Raw, Stacked
from foldserve.training.imports.write import write_network

# In onnx's test cases, the operators below use tensors without rows, or combine several tensors. The graphs below use
# the operators as models do.
GRAPHS = {
    "Max": "y = Max (x, half)",
    "Min": "y = Min (half, x)",
    "Max of columns": "y = Max (x, limits)",
    "Min of columns": "y = Min (limits, x)",
    "Max of columns without a limit": "y = Max (x, lowest)",
    "Min of columns without a limit": "y = Min (highest, x)",
    "Pow -1": "positive = Abs (x)  above = Add (positive, half)  y = Pow (above, minus)",
    "Pow 1.7": "positive = Abs (x)  y = Pow (positive, odd)",
    "Pow 5": "y = Pow (x, five)",
    "Pow 0.5": "positive = Abs (x)  y = Pow (positive, half)",
    "Pow 1": "y = Pow (x, one)",
    "Pow 2": "y = Pow (x, two)",
    "Pow 3": "y = Pow (x, three)",
    "IsNaN": "missing = IsNaN (x)  y = Cast <to = 1> (missing)",
    "Where IsNaN": "missing = IsNaN (x)  y = Where (missing, medians, x)",
    "Where Equal": "is_two = Equal (x, two)  y = Where (is_two, medians, half)",
    "Sum of one value": "y = Sum (x)",
    "Mean of one value": "y = Mean (x)",
    "Shape": "sizes = Shape (x)  y = Reshape (x, sizes)",
    "Shape, one axis": "columns = Shape <start = 1> (x)  rows = Constant <value_ints = [-1]> ()  "
    "sizes = Concat <axis = 0> (rows, columns)  y = Reshape (x, sizes)",
}
_GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
test (float[rows, 3] x) => (float[rows, 3] y)
<float[3] limits = {-0.5, 0.25, 1.0}, float[3] lowest = {-0.5, -3.4e38, 1.0}, float[3] highest = {3.4e38, 0.25, 3.4e38},
float minus = {-1.0}, float odd = {1.7}, float five = {5.0}, float half = {0.5},
float[1] one = {1.0}, float two = {2.0}, float three = {3.0}, float[3] medians = {5.0, 6.0, 7.0}>
"""

# The number of onnx's test cases that each operator must pass. Every other test case of the operator must be refused,
# or give the results of onnx. The refused test cases compute across the rows, or combine several tensors.
UNDERSTOOD = {
    **{
        "Abs": 1,
        "Add": 1,
        "BatchNormalization": 1,
        "Celu": 1,
        "Clip": 3,
        "Concat": 0,
        "Div": 1,
        "Dropout": 2,
        "Elu": 2,
    },
    **{"Equal": 1, "Log": 1},
    **{"Erf": 1, "Exp": 1, "Expand": 0, "Flatten": 1, "Gather": 1, "Gelu": 2, "Gemm": 6, "HardSigmoid": 2},
    **{"HardSwish": 1, "Identity": 1, "LeakyRelu": 2, "LogSoftmax": 2, "MatMul": 1, "Mean": 0, "Mish": 0, "Mul": 1},
    **{"Neg": 1, "PRelu": 1, "Reciprocal": 1, "ReduceMean": 1, "ReduceSum": 1, "Relu": 1, "Reshape": 0, "Selu": 2},
    **{"Sigmoid": 1, "Slice": 1, "Softmax": 2, "Softplus": 1, "Softsign": 1, "Split": 1, "Sqrt": 1, "Squeeze": 0},
    **{"Sub": 1, "Sum": 0, "Tanh": 1, "ThresholdedRelu": 2, "Transpose": 1, "Unsqueeze": 2, "LpNormalization": 0},
}


def collect(operator: str) -> list[TestCase]:
    """Return onnx's test cases of one operator.

    `collect_testcases` would make the cases of all operators, which takes ten seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = {"BatchNormalization": "batch_normalization"}.get(operator, operator.lower())
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    return [case for case in node._NodeTestCases if case.model.graph.node[-1].op_type == operator]


def with_constants(case) -> tuple[onnx.ModelProto, np.ndarray]:
    """Return the case. Its first input stays an input, and all other inputs become constants.

    The first axis of the first input may have any length.
    """
    model, (inputs, _) = onnx.ModelProto.FromString(case.model.SerializeToString()), case.data_sets[0]
    first, *rest = list(model.graph.input)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(each), info.name) for info, each in zip(rest, inputs[1:], strict=True)
    )
    del model.graph.input[1:]
    shape = ["rows", *inputs[0].shape[1:]]
    first.CopyFrom(helper.make_tensor_value_info(first.name, first.type.tensor_type.elem_type, shape))
    return model, inputs[0]


def result(model: onnx.ModelProto, rows: np.ndarray) -> list[np.ndarray]:
    """Return the result of the translated graph in float64, and of the folded graph in ONNX Runtime."""
    inputs = read_inputs(model, Options(output=model.graph.output[0].name))
    context = translate(model, inputs, Options())
    value = context.values[inputs.output]
    if isinstance(value, Raw):
        value = context.numbers(model.graph.node[0], value)
    if isinstance(value, Stacked):
        raise ModelImportError("the result is stacked in front of the rows")
    network = context.builder.network(value.name)
    flat = rows.reshape(len(rows), -1)
    outputs = [network.evaluate(flat)]
    if network.nodes:
        content = write_network(fold(network).network, "in_", "out_")
        outputs.append(ort.InferenceSession(content).run(None, {"in_": flat.astype(np.float32)})[0])
    return [output.reshape(len(rows), *value.shape) for output in outputs]


@pytest.mark.parametrize("operator", UNDERSTOOD)
def test_an_operator_gives_the_results_of_onnx(operator):
    passed = 0
    for case in collect(operator):
        inputs, expected = case.data_sets[0]
        if (
            not inputs
            or not isinstance(inputs[0], np.ndarray)
            or inputs[0].dtype.name not in ("float32", "float64", "int32", "int64")
        ):
            continue
        try:
            model, rows = with_constants(case)
            outputs = result(model, rows)
        except ModelImportError:
            continue
        for output in outputs:
            np.testing.assert_allclose(output, expected[0], rtol=1e-3, atol=1e-6, err_msg=case.name)
        passed += 1
    assert passed >= UNDERSTOOD[operator]
    assert passed or UNDERSTOOD[operator] == 0


@pytest.mark.parametrize("nodes", GRAPHS.values(), ids=GRAPHS)
def test_an_operator_gives_the_results_of_the_reference(nodes):
    """onnx's own evaluator is the oracle."""
    model = onnx.parser.parse_model(f"{_GRAPH}{{ {nodes} }}")
    gaps = np.array([[np.nan, 2.0, -1.0], [0.25, np.nan, 2.0]] if "IsNaN" in nodes else [[0.0, 2.0, -1.0]], np.float32)
    rows = np.concatenate([gaps, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)])
    [expected] = ReferenceEvaluator(model).run(None, {"x": rows})
    for output in result(model, rows):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
