"""Translates the operators of ONNX's main domain to layers of the intermediate form.

Each function translates one node: the arguments are the context, the node, its inputs and its attributes, and the
result contains the values of all outputs of the node. A function raises `Refused` with the reason if the intermediate
form can't express the node. To add an operator, write a function with the decorator `operator`. The functions follow
the definitions of https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from foldserve.training.imports.layers import (
    Activation,
    Add,
    Affine,
    Array,
    Concat,
    Dense,
    Multiply,
    batch_norm,
)
from foldserve.training.imports.onnx_values import Constant, Context, Numbers, Raw, Refused, Stacked, Value, width

Translate = Callable[[Context, onnx.NodeProto, Sequence[Value | None], dict[str, Any]], Sequence[Value]]

OPERATORS: dict[tuple[str, str], Translate] = {}


def operator(*names: str, domain: str = "") -> Callable[[Translate], Translate]:
    """Return a decorator that registers a function as the translation of the operators `names`."""

    def register(function: Translate) -> Translate:
        OPERATORS.update({(domain, name): function for name in names})
        return function

    return register


def required(inputs: Sequence[Value | None], place: int) -> Value:
    """Return the input at `place`. Raises `Refused` if the node has no such input."""
    value = inputs[place] if place < len(inputs) else None
    if value is None:
        raise Refused(f"it lacks input {place}")
    return value


def constant(inputs: Sequence[Value | None], place: int, name: str) -> npt.NDArray[Any] | None:
    """Return a constant input as an array, or None if the node has no such input.

    Raises `Refused` if the input is not constant.
    """
    value = inputs[place] if place < len(inputs) else None
    if value is None:
        return None
    if not isinstance(value, Constant):
        raise Refused(f"its {name} is not a constant")
    return value.array


def constant_or_attribute(
    inputs: Sequence[Value | None], place: int, given: dict[str, Any], name: str
) -> npt.NDArray[Any] | None:
    """Return a constant that is an attribute in older opsets and an input in newer opsets."""
    array = constant(inputs, place, name)
    return np.array(given[name]) if array is None and name in given else array


def spread(array: npt.NDArray[Any], value: Numbers) -> Array:
    """Return a constant as one number for each column of `value`.

    Raises `Refused` if the constant has different values in different rows.
    """
    shape = array.shape
    while len(shape) > len(value.shape):
        if shape[0] != 1:
            raise Refused(f"its constant has the shape {list(array.shape)}, which differs from row to row")
        shape = shape[1:]
    try:
        numbers = np.broadcast_to(array.reshape(shape).astype(np.float64), value.shape)
    except ValueError:
        raise Refused(f"its constant has the shape {list(array.shape)}, and its rows {list(value.shape)}") from None
    return numbers.reshape(-1)


def _widened(context: Context, node: onnx.NodeProto, value: Numbers, array: npt.NDArray[Any]) -> Numbers:
    """If the value has a single column and the constant has more columns, repeat the column of the value."""
    if width(value.shape) == 1 and array.size > 1 and array.shape[-1] == array.size:
        repeat = Dense(np.ones((array.size, 1)), np.zeros(array.size))
        return Numbers(context.add(node, repeat, value.name), (array.size,))
    return value


@operator("Add", "Sub", "Mul", "Div")
def _arithmetic(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    if given.get("axis") is not None and given.get("broadcast"):
        raise Refused("it broadcasts along an axis, as opset 6 and older did")
    left, right = required(inputs, 0), required(inputs, 1)
    if isinstance(left, Constant) or isinstance(right, Constant):
        return [_with_constant(context, node, left, right)]
    one, other = context.numbers(node, left), context.numbers(node, right)
    shape = one.shape if width(one.shape) >= width(other.shape) else other.shape
    narrow = min(width(one.shape), width(other.shape))
    if one.shape != other.shape and narrow != 1:
        raise Refused(f"it combines rows of the shapes {list(one.shape)} and {list(other.shape)}")
    name = other.name
    if node.op_type == "Sub":
        negative = Affine.of(-1.0, 0.0, 0.0, width(other.shape))
        return [Numbers(context.add(node, Add(), one.name, context.add(node, negative, name)), shape)]
    if node.op_type == "Div":
        name = context.add(node, Activation("reciprocal"), name)
    layer = Add() if node.op_type == "Add" else Multiply()
    return [Numbers(context.add(node, layer, one.name, name), shape)]


def _with_constant(context: Context, node: onnx.NodeProto, left: Value, right: Value) -> Numbers:
    kind, is_left = node.op_type, isinstance(left, Constant)
    array = left.array if isinstance(left, Constant) else right.array if isinstance(right, Constant) else np.empty(0)
    value = _widened(context, node, context.numbers(node, right if is_left else left), array)
    c, columns = spread(array, value), width(value.shape)
    if kind == "Div" and is_left:
        inverse = context.add(node, Activation("reciprocal"), value.name)
        return Numbers(context.add(node, context.make(lambda: Affine.of(c, 0.0, 0.0, columns)), inverse), value.shape)
    if kind == "Div" and (c == 0).any():
        raise Refused("it divides by 0")
    forms: dict[str, Callable[[], Affine]] = {
        "Add": lambda: Affine.of(1.0, -c, 0.0, columns),
        "Sub": lambda: Affine.of(-1.0 if is_left else 1.0, c, 0.0, columns),
        "Mul": lambda: Affine.of(c, 0.0, 0.0, columns),
        "Div": lambda: Affine.of(1 / c, 0.0, 0.0, columns),
    }
    return Numbers(context.add(node, context.make(forms[kind]), value.name), value.shape)


@operator("Neg")
def _negative(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    value = context.numbers(node, required(inputs, 0))
    layer = Affine.of(-1.0, 0.0, 0.0, width(value.shape))
    return [Numbers(context.add(node, layer, value.name), value.shape)]


@operator("Sum", "Mean")
def _sum(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    values = [context.numbers(node, required(inputs, place)) for place in range(len(inputs))]
    if len({value.shape for value in values}) > 1:
        raise Refused("its inputs have different shapes")
    name, shape = context.add(node, Add(), *(value.name for value in values)), values[0].shape
    if node.op_type == "Mean":
        name = context.add(node, Affine.of(1 / len(values), 0.0, 0.0, width(shape)), name)
    return [Numbers(name, shape)]


@operator("Pow")
def _power(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    exponent = constant(inputs, 1, "exponent")
    if exponent is None or exponent.size != 1:
        raise Refused("its exponent is not one number")
    value, power = context.numbers(node, required(inputs, 0)), float(exponent.reshape(-1)[0])
    if power == 1:
        return [value]
    if power in (2, 3):
        return [Numbers(context.add(node, Multiply(), *[value.name] * int(power)), value.shape)]
    layer = Activation("sqrt") if power == 0.5 else Activation("power", {"exponent": power})
    return [Numbers(context.add(node, layer, value.name), value.shape)]


@operator("Gemm")
def _gemm(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    if given.get("transA", 0):
        raise Refused("it transposes its rows (transA=1)")
    weight, bias = constant(inputs, 1, "weight"), constant(inputs, 2, "bias")
    if weight is None or weight.ndim != 2:
        raise Refused("its weight is not a matrix")
    if not given.get("transB", 0):
        weight = weight.T
    return [_dense(context, node, required(inputs, 0), given.get("alpha", 1.0) * weight, given.get("beta", 1.0), bias)]


@operator("MatMul")
def _matmul(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    if isinstance(required(inputs, 0), Constant):
        raise Refused("its first input is a constant; rows times a constant weight are understood")
    weight = constant(inputs, 1, "weight")
    while weight is not None and weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    if weight is None or weight.ndim != 2:
        raise Refused("its weight is not a matrix")
    return [_dense(context, node, required(inputs, 0), weight.T, 0.0, None)]


def _dense(
    context: Context,
    node: onnx.NodeProto,
    value: Value,
    weight: npt.NDArray[Any],
    beta: float,
    bias: npt.NDArray[Any] | None,
) -> Numbers:
    rows = context.numbers(node, value)
    if not rows.shape or rows.shape[-1] != width(rows.shape) or weight.shape[1] != width(rows.shape):
        raise Refused(f"its weight reads {weight.shape[1]} columns, and its rows have the shape {list(rows.shape)}")
    shape = (*rows.shape[:-1], len(weight))
    terms = np.zeros(len(weight)) if bias is None else beta * spread(bias, Numbers("", (len(weight),)))
    layer = context.make(lambda: Dense(np.ascontiguousarray(weight, np.float64), terms))
    return Numbers(context.add(node, layer, rows.name), shape)


@operator("BatchNormalization")
def _batch_normalization(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    older = context.opsets[""] < 7 and not given.get("is_test", 0)
    if older or given.get("training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise Refused("it is in training mode, where a row depends on the batch", "export the model in eval mode")
    value = context.numbers(node, required(inputs, 0))
    names = ("scale", "bias", "mean", "variance")
    parameters = [constant(inputs, place, name) for place, name in enumerate(names, start=1)]
    channels, rest = value.shape[0] if value.shape else 1, width(value.shape[1:])
    parts = []
    for name, array in zip(names, parameters, strict=True):
        if array is None or array.size != channels:
            raise Refused(f"its {name} does not have {channels} numbers")
        parts.append(np.repeat(array.reshape(-1).astype(np.float64), rest))
    gamma, beta, mean, variance = parts
    layer = context.make(lambda: batch_norm(gamma, beta, mean, variance, given.get("epsilon", float(np.float32(1e-5)))))
    return [Numbers(context.add(node, layer, value.name), value.shape)]


@operator("ReduceMean", "ReduceSum")
def _reduce(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    """Translate a sum or a mean over an axis of a row to a Dense with a constant weight."""
    axes = constant_or_attribute(inputs, 1, given, "axes")
    stacked = required(inputs, 0)
    if isinstance(stacked, Stacked):
        return [_reduce_stacked(context, node, stacked, axes, given)]
    value = context.numbers(node, stacked)
    places = [] if axes is None else [axis % (len(value.shape) + 1) for axis in axes.reshape(-1).tolist()]
    if not places or 0 in places:
        raise Refused("it works across the rows")
    shape = tuple(1 if place in places else size for place, size in enumerate(value.shape, start=1))
    if width(shape) * width(value.shape) > 2**24:
        raise Refused("it has too many columns")
    groups = np.broadcast_to(np.arange(width(shape)).reshape(shape), value.shape).reshape(-1)
    weight = (groups == np.arange(width(shape))[:, None]).astype(np.float64)
    if node.op_type == "ReduceMean":
        weight /= weight.sum(1, keepdims=True)
    if not given.get("keepdims", 1):
        shape = tuple(size for place, size in enumerate(value.shape, start=1) if place not in places)
    return [Numbers(context.add(node, Dense(weight, np.zeros(len(weight))), value.name), shape)]


def _reduce_stacked(
    context: Context, node: onnx.NodeProto, stacked: Stacked, axes: npt.NDArray[Any] | None, given: dict[str, Any]
) -> Numbers:
    """Translate the sum or the mean of the members of an ensemble."""
    shape, count = stacked.parts[0].shape, len(stacked.parts)
    if axes is None or axes.reshape(-1).tolist() not in ([0], [-len(shape) - 2]) or given.get("keepdims", 1):
        raise Refused("it works along other axes than that of the stacked values, or keeps this axis")
    name = context.add(node, Add(), *(part.name for part in stacked.parts))
    if node.op_type == "ReduceMean":
        name = context.add(node, Affine.of(1 / count, 0.0, 0.0, width(shape)), name)
    return Numbers(name, shape)


def join_raw(raws: Sequence[Raw], shape: tuple[int, ...]) -> Raw:
    """Return raw columns, joined one after the other."""
    columns = tuple(column for raw in raws for column in raw.columns)
    return Raw(columns, shape, next((raw.rounded_by for raw in raws if raw.rounded_by), ""))


@operator("Concat")
def _concat(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    values = [required(inputs, place) for place in range(len(inputs))]
    stacked = [value for value in values if isinstance(value, Stacked)]
    if len(stacked) == len(values) and given.get("axis") == 0:
        parts = tuple(part for value in stacked for part in value.parts)
        if len({part.shape for part in parts}) == 1:
            return [Stacked(parts)]
    shapes = [value.shape for value in values if not isinstance(value, Constant)]
    rank = len(shapes[0]) + 1
    axis = given.get("axis", 1) % rank
    if axis != 1 or len(shapes) < len(values) or len({shape[1:] for shape in shapes}) > 1 or not shapes[0]:
        raise Refused(f"it joins along axis {given.get('axis', 1)} of rows of the shapes {list(map(list, shapes))}")
    shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    raws = [value for value in values if isinstance(value, Raw)]
    if len(raws) == len(values):
        return [join_raw(raws, shape)]
    return [Numbers(context.add(node, Concat(), *(context.numbers(node, value).name for value in values)), shape)]
