"""Translates the operators of ONNX that move or select columns, and the operators that change nothing in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from foldserve.training.imports.layers import Select
from foldserve.training.imports.onnx_operators import constant, operator, required
from foldserve.training.imports.onnx_values import (
    Constant,
    Context,
    Numbers,
    Raw,
    Refused,
    Stacked,
    Truth,
    Value,
    width,
)

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """Return the value, reshaped so that each row has the shape `shape`.

    Raises `Refused` if `shape` needs a different number of columns.
    """
    if isinstance(value, Constant):
        raise Refused("it reads a constant")
    if width(shape) != width(value.shape):
        raise Refused(f"it turns rows of the shape {list(value.shape)} into {list(shape)}")
    if isinstance(value, Raw):
        return replace(value, shape=shape)
    if isinstance(value, Truth):
        return Truth(value.name, shape, value.missing_of if shape == value.shape else None)
    if isinstance(value, Stacked):
        raise Refused("it reshapes stacked values")
    return Numbers(value.name, shape)


def _rows(value: Value) -> tuple[int, ...]:
    if isinstance(value, Constant):
        raise Refused("it reads a constant")
    return value.shape


@operator("Identity", "Dropout")
def _same(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    training = constant(inputs, 2, "training_mode")
    older = node.op_type == "Dropout" and context.opsets[""] < 7 and not given.get("is_test", 0)
    if older or (training is not None and training.any()):
        raise Refused("it is in training mode, where its outputs are random", "export the model in eval mode")
    return [required(inputs, 0)]


@operator("Cast", "CastLike")
def _cast(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = required(inputs, 0)
    to = _type_of(context, required(inputs, 1)) if node.op_type == "CastLike" else given.get("to", TensorProto.FLOAT)
    if to in _FLOATS:
        return [Numbers(value.name, value.shape) if isinstance(value, Truth) else value]
    if isinstance(value, Truth) and to in (*_INTEGERS, TensorProto.BOOL):
        return [value]
    if isinstance(value, Raw) and to in _INTEGERS:
        is_whole = all(context.columns[place].is_whole or context.columns[place].is_text for place in value.columns)
        return [value if is_whole else replace(value, rounded_by=f"{node.op_type} {node.name or node.output[0]!r}")]
    if isinstance(value, Raw) and to == TensorProto.STRING and all(context.columns[c].is_text for c in value.columns):
        return [value]
    raise Refused("it rounds values, or turns them into texts", "export the model without it")


def _type_of(context: Context, value: Value) -> int:
    """Return the type of a tensor, as far as a Cast distinguishes it: FLOAT, INT64 or BOOL."""
    if isinstance(value, Truth):
        return int(TensorProto.BOOL)
    if isinstance(value, Constant):
        is_float = value.array.dtype.kind == "f"
    elif isinstance(value, Raw):
        columns = [context.columns[place] for place in value.columns]
        is_float = not value.rounded_by and not any(column.is_whole or column.is_text for column in columns)
    else:
        is_float = True
    return int(TensorProto.FLOAT if is_float else TensorProto.INT64)


@operator("Flatten")
def _flatten(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del context, node
    value = required(inputs, 0)
    if given.get("axis", 1) not in (1, -len(_rows(value))):
        raise Refused(f"it joins rows (axis={given['axis']})")
    return [reshaped(value, (width(_rows(value)),))]


@operator("Reshape", "Expand")
def _reshape(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del context
    value, target = required(inputs, 0), constant(inputs, 1, "shape")
    sizes = given.get("shape", []) if target is None else [int(size) for size in target.reshape(-1)]
    shape = _rows(value)
    if node.op_type == "Expand":
        if tuple(sizes[1:]) != shape or sizes[:1] not in ([1], [-1]):
            raise Refused(f"it repeats rows of the shape {list(shape)} to {sizes}")
        return [value]
    if sizes == [-1] and width(shape) == 1:
        return [reshaped(value, ())]
    inner = [shape[place] if size == 0 and place < len(shape) else size for place, size in enumerate(sizes[1:])]
    if inner.count(-1) == 1:
        known = int(-np.prod(inner))
        inner[inner.index(-1)] = width(shape) // known if known > 0 else -1
    # In a target shape, a first size of -1 or 0 means all rows. In a model that was exported for a single row, the
    # first size is 1.
    if not sizes or sizes[0] not in (-1, 0, 1) or any(size < 1 for size in inner):
        raise Refused(f"it turns rows of the shape {list(shape)} into {sizes[1:]} and changes the number of rows")
    return [reshaped(value, tuple(inner))]


def _axes(inputs: Sequence[Value | None], given: dict[str, Any], rank: int) -> list[int]:
    array = constant(inputs, 1, "axes")
    axes = given.get("axes") if array is None else [int(axis) for axis in array.reshape(-1)]
    if axes is None:
        raise Refused("it has no axes")
    places = [axis % rank for axis in axes]
    if 0 in places:
        raise Refused("it changes the axis of the rows")
    return places


@operator("Squeeze")
def _squeeze(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del context, node
    value = required(inputs, 0)
    shape = _rows(value)
    places = _axes(inputs, given, len(shape) + 1)
    kept = tuple(size for place, size in enumerate(shape, start=1) if place not in places)
    return [reshaped(value, kept)]


@operator("Unsqueeze")
def _unsqueeze(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = required(inputs, 0)
    shape = list(_rows(value))
    axes = constant(inputs, 1, "axes")
    if (given.get("axes") if axes is None else axes.reshape(-1).tolist()) == [0]:
        return [Stacked((context.numbers(node, value),))]
    count = len(given["axes"] if axes is None and "axes" in given else [] if axes is None else axes.reshape(-1))
    for place in sorted(_axes(inputs, given, len(shape) + 1 + count)):
        shape.insert(place - 1, 1)
    return [reshaped(value, tuple(shape))]


@operator("Transpose")
def _transpose(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = required(inputs, 0)
    shape = _rows(value)
    order = given.get("perm", list(range(len(shape) + 1))[::-1])
    if not order or order[0] != 0 or sorted(order) != list(range(len(shape) + 1)):
        raise Refused("it moves the axis of the rows")
    inner = [place - 1 for place in order[1:]]
    columns = np.arange(width(shape)).reshape(shape).transpose(inner).reshape(-1)
    return [_select(context, node, value, columns, tuple(shape[place] for place in inner))]


def _select(
    context: Context, node: onnx.NodeProto, value: Value, columns: npt.NDArray[Any], shape: tuple[int, ...]
) -> Value:
    """Select columns of a value by their indices."""
    if isinstance(value, Raw):
        return replace(value, columns=tuple(value.columns[column] for column in columns), shape=shape)
    rows = context.numbers(node, value)
    name = context.add(node, Select(np.asarray(columns, np.int64)), rows.name)
    return Truth(name, shape) if isinstance(value, Truth) else Numbers(name, shape)


def _picked(value: Value, axis: int, pick: Any) -> npt.NDArray[np.int64]:
    """Return the indices of the columns that the NumPy index `pick` selects along an axis.

    The shape of the returned array is the shape of a row after the selection.
    """
    shape = _rows(value)
    place = axis % (len(shape) + 1)
    if place == 0:
        raise Refused("it selects rows")
    columns = np.arange(width(shape)).reshape(shape)
    try:
        picked: npt.NDArray[np.int64] = columns[(slice(None),) * (place - 1) + (pick,)]
    except IndexError:
        raise Refused(f"it selects columns that do not exist in rows of the shape {list(shape)}") from None
    if picked.size == 0 or picked.size > 2**24:
        raise Refused(f"it selects {picked.size} columns")
    return picked


@operator("Gather")
def _gather(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value, indices = required(inputs, 0), constant(inputs, 1, "index")
    if indices is None or indices.dtype.kind not in "iu":
        raise Refused("its index is not a whole number")
    columns = _picked(value, given.get("axis", 0), indices)
    return [_select(context, node, value, columns.reshape(-1), columns.shape)]


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def _extract(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    value, indices = required(inputs, 0), constant(inputs, 1, "index")
    if indices is None:
        raise Refused("it has no index")
    columns = _picked(value, -1, indices.reshape(-1).astype(np.int64))
    return [_select(context, node, value, columns.reshape(-1), columns.shape)]


@operator("Slice")
def _slice(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = required(inputs, 0)
    parts = [constant(inputs, place, name) for place, name in enumerate(("start", "end", "axis", "step"), start=1)]
    starts, ends, axes, steps = (None if part is None else part.reshape(-1).tolist() for part in parts)
    starts, ends = starts or given.get("starts"), ends or given.get("ends")
    axes = axes or given.get("axes") or (list(range(len(starts))) if starts else None)
    if not starts or not ends or not axes or len({len(starts), len(ends), len(axes)}) > 1:
        raise Refused("its limits are not constants")
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        if axis % (len(_rows(value)) + 1) == 0 and start == 0 and step == 1 and end >= 2**31 - 1:
            continue  # all rows
        columns = _picked(value, axis, slice(start, None if step < 0 and end < -(2**31) else end, step))
        value = _select(context, node, value, columns.reshape(-1), columns.shape)
    return [value]


@operator("Split")
def _split(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value, sizes = required(inputs, 0), constant(inputs, 1, "split")
    axis, shape = given.get("axis", 0), _rows(value)
    place = axis % (len(shape) + 1)
    if place == 0:
        raise Refused("it separates rows")
    total, count = shape[place - 1], len(node.output)
    parts = given.get("split") if sizes is None else sizes.reshape(-1).tolist()
    if parts is None:  # all parts are equal, except that the last part may be smaller
        part = -(-total // given.get("num_outputs", count))
        parts = [part] * (count - 1) + [total - part * (count - 1)]
    if sum(parts) != total or len(parts) != count or min(parts) < 1:
        raise Refused(f"its parts {parts} are not the {total} columns")
    ends = np.cumsum(parts).tolist()
    picked = [_picked(value, axis, slice(end - part, end)) for part, end in zip(parts, ends, strict=True)]
    return [_select(context, node, value, columns.reshape(-1), columns.shape) for columns in picked]


@operator("Shape")
def _shape(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del context, node
    # The size -1 stands for the number of rows, as in the target shape of a Reshape.
    sizes = [-1, *_rows(required(inputs, 0))]
    return [Constant(np.array(sizes[given.get("start", 0) : given.get("end")], np.int64))]
