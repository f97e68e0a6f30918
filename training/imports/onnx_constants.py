"""Evaluates in float64 each ONNX operator whose inputs are all constants.

Exporters write graphs that compute shapes and parameters from constants. The size of every result is checked before the
result is computed, so that a file can't exhaust the memory. The module does not depend on the layers of the
intermediate form.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from foldserve.training.imports.onnx_file import MAX_NUMBERS
from foldserve.training.imports.onnx_values import Constant, Refused, attributes

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Equal", "Where", "Max", "Min", "Mod"}
_SAME_SIZE = {"Identity", "Cast", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Floor", "Transpose", "Not"}
_RESHAPE = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Shape", "Size", "ReduceProd", "ReduceSum", "Split"}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

Array = npt.NDArray[np.generic]


def to_array(tensor: TensorProto) -> Array:
    """Return a tensor as an array. Floating-point numbers become float64.

    Raises `Refused` if the number of values does not fit the shape of the tensor.
    """
    try:
        array: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused("its constant does not have the numbers that its shape says") from error
    return widen(array)


def widen(array: Array) -> Array:
    """Return an array of floating-point numbers as float64, and any other array unchanged."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


def constant_node(node: onnx.NodeProto) -> Constant:
    """Return the value of a node with the operator Constant.

    Raises `Refused` if the value is sparse or of an unknown kind.
    """
    for name, value in attributes(node).items():
        if name == "value":
            return Constant(to_array(value))
        if name in ("value_float", "value_floats"):
            return Constant(np.array(value, np.float64))
        if name in ("value_int", "value_ints"):
            return Constant(np.array(value, np.int64))
        if name in ("value_string", "value_strings"):
            return Constant(np.array(value))
    raise Refused("its constant is sparse or of an unknown kind", "store it as a dense tensor")


def evaluate(node: onnx.NodeProto, inputs: list[Array | None], opset: int) -> list[Constant]:
    """Evaluate a node whose inputs are constants.

    Raises `Refused` if no rule covers the operator, if the result is too large, or if onnx can't evaluate the node.
    """
    present = [each for each in inputs if each is not None]
    if _size(node, present) > MAX_NUMBERS:
        raise Refused("its constant result has too many numbers")
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
            attribute.i = TensorProto.DOUBLE
    graph = onnx.helper.make_graph(
        [copy],
        "constants",
        [onnx.helper.make_tensor_value_info(name, 0, None) for name in dict.fromkeys(node.input) if name],
        [onnx.helper.make_tensor_value_info(name, 0, None) for name in node.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {name: each for name, each in zip(node.input, inputs, strict=True) if name and each is not None}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        raise Refused("its constant inputs can't be evaluated") from error
    return [Constant(widen(np.asarray(each))) for each in results]


def _size(node: onnx.NodeProto, inputs: list[Array]) -> int:
    """Return an upper limit for the number of values of the result."""
    kind = node.op_type
    if kind in _ELEMENTWISE:
        try:
            return math.prod(np.broadcast_shapes(*(each.shape for each in inputs)))
        except ValueError:
            raise Refused("its inputs have shapes that don't fit") from None
    if kind == "Concat":
        return sum(each.size for each in inputs)
    if kind == "Gather":
        return inputs[0].size * max(inputs[1].size, 1)
    if kind in ("Expand", "ConstantOfShape"):
        return math.prod(abs(int(size)) for size in inputs[-1].reshape(-1)) * (
            inputs[0].size if kind == "Expand" else 1
        )
    if kind == "Range":
        first, last, step = (float(each.reshape(-1)[0]) for each in inputs)
        return int(abs((last - first) / step)) + 1 if step else 0
    if kind in _SAME_SIZE or kind in _RESHAPE:
        return inputs[0].size if inputs else 0
    raise Refused("no rule covers this operator")
