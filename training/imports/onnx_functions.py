"""Translates comparisons, and functions of single numbers, from ONNX to layers of the intermediate form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from foldserve.training.imports.layers import Activation, Affine, Impute, IsMissing, Normalize, OneHot, PRelu, Softmax
from foldserve.training.imports.onnx_operators import constant, constant_or_attribute, operator, required, spread
from foldserve.training.imports.onnx_values import Constant, Context, Numbers, Raw, Refused, Truth, Value, width

# Exporters write a limit of this size, such as the largest float32, for a column without a limit.
_NO_LIMIT = 1e30
# For each ONNX operator: the function of the intermediate form, and the defaults of the operator's attributes.
_FUNCTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "Relu": ("relu", {}),
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Celu": ("celu", {"alpha": 1.0}),
    "Selu": ("selu", {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "Sigmoid": ("sigmoid", {}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
    "HardSwish": ("hard_swish", {}),
    "Tanh": ("tanh", {}),
    "Softplus": ("softplus", {}),
    "Softsign": ("softsign", {}),
    "Mish": ("mish", {}),
    "Exp": ("exp", {}),
    "Log": ("log", {}),
    "Sqrt": ("sqrt", {}),
    "Abs": ("abs", {}),
    "Erf": ("erf", {}),
    "Reciprocal": ("reciprocal", {}),
}


@operator(*_FUNCTIONS)
def _function(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    rows = context.numbers(node, required(inputs, 0))
    function, defaults = _FUNCTIONS[node.op_type]
    # The default is rounded to float32, because an attribute in a file has the type float32.
    layer = Activation(function, {name: given.get(name, float(np.float32(value))) for name, value in defaults.items()})
    return [Numbers(context.add(node, layer, rows.name), rows.shape)]


@operator("Gelu")
def _gelu(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = context.numbers(node, required(inputs, 0))
    layer = Activation("gelu_tanh" if given.get("approximate", "none") == "tanh" else "gelu")
    return [Numbers(context.add(node, layer, value.name), value.shape)]


@operator("PRelu")
def _prelu(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    value, slope = context.numbers(node, required(inputs, 0)), constant(inputs, 1, "slope")
    layer = PRelu(spread(np.array(0.0) if slope is None else slope, value))
    return [Numbers(context.add(node, layer, value.name), value.shape)]


@operator("Clip", "Max", "Min")
def _clip(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    low: npt.NDArray[Any] | None
    high: npt.NDArray[Any] | None
    if node.op_type == "Clip":
        low = constant_or_attribute(inputs, 1, given, "min")
        high = constant_or_attribute(inputs, 2, given, "max")
        value = required(inputs, 0)
    else:
        if len(inputs) != 2:
            raise Refused("two inputs are understood")
        first, second = required(inputs, 0), required(inputs, 1)
        value, limit = (second, first) if isinstance(first, Constant) else (first, second)
        if not isinstance(limit, Constant):
            raise Refused("it compares two values of the rows")
        low, high = (limit.array, None) if node.op_type == "Max" else (None, limit.array)
    rows = context.numbers(node, value)
    if any(array is not None and array.size != 1 for array in (low, high)):
        return [_clip_columns(context, node, rows, low, high)]
    limits = {
        "low": -np.inf if low is None else float(low.reshape(-1)[0]),
        "high": np.inf if high is None else float(high.reshape(-1)[0]),
    }
    layer = Activation("relu") if limits == {"low": 0.0, "high": np.inf} else Activation("clip", limits)
    return [Numbers(context.add(node, layer, rows.name), rows.shape)]


def _clip_columns(
    context: Context,
    node: onnx.NodeProto,
    rows: Numbers,
    low: npt.NDArray[Any] | None,
    high: npt.NDArray[Any] | None,
) -> Numbers:
    """Translate a limit for each column: max(x, c) = c + relu(x - c), and min(x, c) = c - relu(c - x).

    A column whose limit is at least `_NO_LIMIT` away from 0 keeps its values: a PRelu with the slope 1 takes the place
    of the relu. Folding moves the affine steps of the translation into the neighbouring layers.
    """
    name, columns = rows.name, width(rows.shape)
    for limit, sign in ((low, 1.0), (high, -1.0)):
        if limit is not None:
            c = spread(limit, rows)
            is_free = sign * c <= -_NO_LIMIT
            c = np.where(is_free, 0.0, c)
            distance = context.add(node, context.make(partial(Affine.of, sign, c, 0.0, columns)), name)
            layer = PRelu(is_free.astype(np.float64)) if is_free.any() else Activation("relu")
            positive = context.add(node, layer, distance)
            name = context.add(node, context.make(partial(Affine.of, sign, 0.0, c, columns)), positive)
    return Numbers(name, rows.shape)


@operator("Softmax", "LogSoftmax")
def _softmax(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = context.numbers(node, required(inputs, 0))
    axis = given.get("axis", -1 if context.opsets[""] >= 13 else 1)
    if len(value.shape) != 1 or axis not in (1, -1):
        raise Refused(f"it works along axis {axis} of rows of the shape {list(value.shape)}")
    return [Numbers(context.add(node, Softmax(log=node.op_type == "LogSoftmax"), value.name), value.shape)]


@operator("LpNormalization")
def _lp_normalization(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = context.numbers(node, required(inputs, 0))
    if len(value.shape) != 1 or given.get("axis", -1) not in (1, -1) or given.get("p", 2) not in (1, 2):
        raise Refused("it does not divide each row by its L1 or L2 norm")
    return [Numbers(context.add(node, Normalize("l1" if given.get("p", 2) == 1 else "l2"), value.name), value.shape)]


@operator("IsNaN")
def _is_nan(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    value = required(inputs, 0)
    rows = context.numbers(node, value)
    if isinstance(value, Raw):
        for place in value.columns:
            context.columns[place].missing = True
    columns = np.arange(width(rows.shape))
    source = value if isinstance(value, Raw) else rows
    return [Truth(context.add(node, IsMissing(columns), rows.name), rows.shape, missing_of=source)]


@operator("Equal")
def _equal(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    left, right = required(inputs, 0), required(inputs, 1)
    value, code = (right, left) if isinstance(left, Constant) else (left, right)
    if not isinstance(code, Constant) or isinstance(value, Truth):
        raise Refused("it compares two values of the rows")
    if isinstance(value, Raw) and len(value.columns) == 1:
        categories = [each.item() for each in code.array.reshape(-1)]
        name = context.encode(node, value.columns[0], categories)
        return [Truth(name, (len(categories),))]
    rows = context.numbers(node, value)
    columns = width(rows.shape)
    source = np.zeros(code.array.size, np.int64) if columns == 1 else np.arange(columns)
    codes = code.array.reshape(-1).astype(np.float64) if columns == 1 else spread(code.array, rows)
    shape = rows.shape if columns > 1 else (len(codes),)
    return [Truth(context.add(node, OneHot(source, codes), rows.name), shape)]


@operator("Where")
def _where(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    mask, yes, no = (required(inputs, place) for place in range(3))
    if not isinstance(mask, Truth):
        raise Refused("its condition is not IsNaN or Equal")
    if isinstance(yes, Constant) and isinstance(no, Constant):
        shape = Numbers(mask.name, mask.shape)
        a, b = spread(yes.array, shape), spread(no.array, shape)
        layer = context.make(lambda: Affine.of(a - b, 0.0, b, len(a)))
        return [Numbers(context.add(node, layer, mask.name), mask.shape)]
    is_same = no is mask.missing_of or (
        isinstance(no, Numbers) and isinstance(mask.missing_of, Numbers) and no.name == mask.missing_of.name
    )
    if isinstance(yes, Constant) and is_same:
        rows = context.numbers(node, no)
        return [Numbers(context.add(node, Impute(spread(yes.array, rows)), rows.name), rows.shape)]
    raise Refused("it is not the replacement of missing values by a constant")
