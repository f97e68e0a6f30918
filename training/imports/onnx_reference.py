"""Runs the original ONNX model as the reference: its graph in float64 in onnx, and its unchanged file in ONNX Runtime.

To compute in float64, onnx's `ReferenceEvaluator` runs a copy of the graph in which float64 replaces every float32. The
reference shares no code with the intermediate form or with folding. The module does not depend on the layers of the
intermediate form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from foldserve.service.runtime.session import CPU, open_session
from foldserve.training.imports.onnx_constants import widen
from foldserve.training.table.schema import Column

_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_HALVES: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_UNSEEN = "(a category that the model does not know)"

Rows = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Feed:
    """One input of the original model: its name, its type, the shape of a row, and its raw columns."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    columns: tuple[int, ...]


def make_feeds(feeds: Sequence[Feed], columns: Sequence[Column], rows: Rows, number: Any) -> dict[str, Array]:
    """Return the inputs of the original model for raw rows. number: the NumPy type for floating-point inputs."""
    return {feed.name: _feed(feed, columns, rows, number) for feed in feeds}


def _feed(feed: Feed, columns: Sequence[Column], rows: Rows, number: Any) -> Array:
    parts = [_values(columns[place], rows[:, place]) for place in feed.columns]
    array: Array = np.stack(parts, 1).reshape((len(rows), *feed.shape))
    if feed.dtype == TensorProto.STRING:
        return array.astype(object)
    if feed.dtype in _NARROW or feed.dtype == TensorProto.DOUBLE:
        return array.astype(number)
    return array.astype(helper.tensor_dtype_to_np_dtype(feed.dtype))


def _values(column: Column, codes: npt.NDArray[np.float32]) -> Array:
    """Return the values of one column as the original model reads them. A category is a text or a number."""
    if column.kind != "categorical":
        return codes.astype(np.float64)
    if isinstance(column.categories[0], str):
        names = np.array([*column.categories, _UNSEEN], object)
    else:
        known = [float(category) for category in column.categories]
        names = np.array([*known, max(known) + 1])
    indices = np.nan_to_num(codes, nan=float(len(column.categories))).astype(np.int64)
    return names[indices]


def run_reference(
    model: onnx.ModelProto, output: str, feeds: Callable[[Rows], dict[str, Array]]
) -> Callable[[Rows], Array]:
    """Return a function that evaluates the tensor `output` of the original in float64: raw rows -> [rows, ...]."""
    session = ReferenceEvaluator(to_float64(model, output), new_ops=[_OneHotEncoder, _LabelEncoder])

    def evaluate(rows: Rows) -> Array:
        with np.errstate(all="ignore"):
            results = cast("list[Array]", session.run([output], feeds(rows)))
        return np.asarray(results[0], np.float64)

    return evaluate


def run_original(
    model: onnx.ModelProto, output: str, feeds: Callable[[Rows], dict[str, Array]]
) -> Callable[[Rows], Array]:
    """Return a function that runs the original in ONNX Runtime on the CPU, without any optimisation.

    A model that was exported for a fixed number of rows, often 1, gets this number of rows in each run. If ONNX Runtime
    refuses the model, the function raises the exception of ONNX Runtime.
    """
    session = open_session(cut(model, output).SerializeToString(), CPU, optimise=False)
    fixed = {each.shape[0] for each in session.get_inputs() if each.shape and isinstance(each.shape[0], int)}
    batch = min(fixed, default=0)

    def evaluate(rows: Rows) -> Array:
        if not batch or len(rows) == batch:
            return np.asarray(session.run([output], feeds(rows))[0])
        padded = np.concatenate([rows, rows[-1:].repeat(-len(rows) % batch, 0)])
        parts = [session.run([output], feeds(padded[i : i + batch]))[0] for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(rows)]

    return evaluate


def find_narrow(model: onnx.ModelProto, needed: Collection[str]) -> str:
    """Return a text that names the part of the original that rounds more than float32 does, or "" for no such part.

    needed: the names of the tensors that the output needs.
    """
    for node in model.graph.node:
        to = next((each.i for each in node.attribute if each.name == "to"), None)
        if node.op_type == "Cast" and to in _HALVES and node.output[0] in needed:
            return f"Cast {node.name or node.output[0]!r} rounds to {_HALVES[to]}"
    numbers = [(each.name, each.data_type) for each in model.graph.initializer]
    numbers += [(each.name, each.type.tensor_type.elem_type) for each in model.graph.input]
    for name, kind in numbers:
        if kind in _HALVES and name in needed:
            return f"the tensor {name!r} is {_HALVES[kind]}"
    return ""


def cut(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return a copy of the model that computes only the tensor `output`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    needed, nodes = {output}, []
    for node in reversed(copy.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    outputs = [each for each in copy.graph.output if each.name == output]
    constants = [each for each in copy.graph.initializer if each.name in needed]
    inputs = [each for each in copy.graph.input if each.name in needed]
    graph = helper.make_graph(
        kept, "cut", inputs, outputs or [helper.make_tensor_value_info(output, 0, None)], constants
    )
    if not outputs:
        graph.output[0].ClearField("type")
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    copy.graph.CopyFrom(graph)
    return copy


def to_float64(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return a copy of the model that computes only `output`, with float64 in place of every float32."""
    copy = cut(model, output)
    for tensor in copy.graph.initializer:
        _widen(tensor)
    for info in (*copy.graph.input, *copy.graph.output):
        if info.type.tensor_type.elem_type in _NARROW:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                numbers = [attribute.f] if attribute.name == "value_float" else list(attribute.floats)
                array = np.array(numbers[0] if attribute.name == "value_float" else numbers, np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = TensorProto.DOUBLE
    return copy


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        tensor.CopyFrom(numpy_helper.from_array(widen(numpy_helper.to_array(tensor)), tensor.name))


class _OneHotEncoder(OpRun):
    """Computes the operator OneHotEncoder of ai.onnx.ml in float64. onnx's own implementation returns float32."""

    op_domain = "ai.onnx.ml"

    def _run(self, x: Array, cats_int64s: Any = None, cats_strings: Any = None, zeros: Any = None) -> tuple[Array]:
        del zeros
        known = np.array(cats_strings or cats_int64s)
        return ((x[..., None] == known).astype(np.float64),)


_OneHotEncoder.__name__ = "OneHotEncoder"


class _LabelEncoder(OpRun):
    """Computes the operator LabelEncoder of ai.onnx.ml in float64.

    onnx's own implementation does not accept a tensor with several keys.
    """

    op_domain = "ai.onnx.ml"

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        def first(*names: str) -> list[Any]:
            found = next(given[name] for name in names if given.get(name) is not None)
            return list(np.asarray(found).reshape(-1).tolist())

        keys = first("keys_strings", "keys_int64s", "keys_floats", "keys_tensor")
        numbers = first("values_int64s", "values_floats", "values_tensor")
        ordered = (("values_int64s", "default_int64", -1), ("values_floats", "default_float", 0.0))
        default = next((given.get(name, missing) for values, name, missing in ordered if given.get(values)), None)
        if default is None:
            default = first("default_tensor")[0]
        table = dict(zip(keys, numbers, strict=True))
        flat = [table.get(key, default) for key in x.reshape(-1).tolist()]
        return (np.array(flat, np.float64).reshape(x.shape),)


_LabelEncoder.__name__ = "LabelEncoder"
