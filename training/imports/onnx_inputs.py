"""Reads the inputs of an ONNX graph: chooses the output, and finds the columns and tensors that the output needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.imported import Options
from foldserve.training.imports.meaning import choose_names
from foldserve.training.imports.onnx_reference import Feed
from foldserve.training.imports.onnx_values import Raw, RawColumn, Value
from foldserve.training.text import join_some

_MOST_COLUMNS = 100_000
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
# Operators that leave the class scores unchanged, or that compute a label from them.
_LABELS = {"ZipMap", "Identity", "Cast", "ArgMax", "ArrayFeatureExtractor", "Squeeze", "Reshape", "LabelEncoder"}


@dataclass(frozen=True)
class Inputs:
    """The columns and the values of the input tensors, and a `Feed` for each input of the original model.

    output: the name of the tensor that becomes the output of the bundle. needed: the tensors from which `output` is
    computed. named: whether the columns have names from the model or from the user.
    """

    columns: tuple[RawColumn, ...]
    feeds: tuple[Feed, ...]
    values: Mapping[str, Value]
    output: str
    needed: frozenset[str]
    named: bool
    notes: tuple[str, ...]


def read_inputs(model: onnx.ModelProto, options: Options) -> Inputs:
    """Choose the output, and find the input columns that the output needs. Raises `ModelImportError`."""
    output, notes = _choose_output(model.graph, options.output)
    needed = {output}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in constants]
    if unused := [info.name for info in inputs if info.name not in needed]:
        notes.append(f"inputs that the output does not need are left out: {join_some(unused, 5)}")
    used = [info for info in inputs if info.name in needed]
    if not used:
        raise ModelImportError(f"the output {output!r} does not depend on an input")
    columns, feeds, values = _read_columns(used, len(options.features))
    if options.features:
        if len(options.features) != len(columns):
            raise ModelImportError(
                f"--features names {len(options.features)} columns, and the model has {len(columns)}"
            )
        own = tuple(column.name for column in columns) if len(used) > 1 else ()
        names, renamed = choose_names(options.features, own, "--features")
        notes += renamed
        for column, name in zip(columns, names, strict=True):
            column.name = name
    if len({column.name for column in columns}) < len(columns):
        raise ModelImportError("two features have the same name: name all of them with --features")
    named = len(used) > 1 or bool(options.features)
    return Inputs(tuple(columns), tuple(feeds), values, output, frozenset(needed), named, tuple(notes))


def _read_columns(
    used: Sequence[onnx.ValueInfoProto], given: int
) -> tuple[list[RawColumn], list[Feed], dict[str, Value]]:
    """Return the columns, the feeds and the values of the inputs. given: the number of feature names from the user."""
    columns: list[RawColumn] = []
    feeds: list[Feed] = []
    values: dict[str, Value] = {}
    for info in used:
        dtype, shape = _read_type(info, given if len(used) == 1 else 0)
        count = math.prod(shape)
        if len(columns) + count > _MOST_COLUMNS:
            raise ModelImportError(f"input {info.name!r}: at most {_MOST_COLUMNS:,} columns are read")
        places = tuple(range(len(columns), len(columns) + count))
        names = [info.name] if count == 1 and len(used) > 1 else [f"{info.name}_{i}" for i in range(count)]
        columns += [RawColumn(name, dtype == TensorProto.STRING, dtype in _INTEGERS) for name in names]
        feeds.append(Feed(info.name, dtype, shape, places))
        values[info.name] = Raw(places, shape)
    return columns, feeds, values


def _read_type(info: onnx.ValueInfoProto, given: int) -> tuple[int, tuple[int, ...]]:
    """Return the type of an input, and the shape of one row.

    given: the number of feature names from the user, or 0.
    """
    if not info.type.HasField("tensor_type"):
        raise ModelImportError(f"input {info.name!r} is not a tensor")
    tensor = info.type.tensor_type
    if tensor.elem_type not in (*_FLOATS, *_INTEGERS, TensorProto.STRING):
        raise ModelImportError(f"input {info.name!r} has a type that is not understood; numbers and texts are")
    sizes = [each.dim_value for each in tensor.shape.dim]
    if len(sizes) < 2:
        raise ModelImportError(
            f"input {info.name!r} has no axis for the rows: export it with the shape [rows, features]"
        )
    shape = tuple(sizes[1:])
    if len(shape) == 1 and shape[0] < 1 and given:
        shape = (given,)
    if any(size < 1 for size in shape):
        raise ModelImportError(f"input {info.name!r} does not say how many columns it has: name them with --features")
    return tensor.elem_type, shape


def _choose_output(graph: onnx.GraphProto, wanted: str) -> tuple[str, list[str]]:
    """Return the name of the tensor with the probabilities or the value, and notes.

    Later nodes may compute a label from the returned tensor.
    """
    names = [info.name for info in graph.output]
    if wanted and wanted not in names:
        raise ModelImportError(f"--output: the model has no output {wanted!r}; it has {join_some(names, 5)}")
    producers = {name: node for node in graph.node for name in node.output}
    scores = [info.name for info in graph.output if _is_score(info, producers)]
    found = [wanted] if wanted else scores if scores else names
    if len(found) > 1:
        raise ModelImportError(f"the model has the outputs {join_some(found, 5)}: choose one with --output")
    notes = []
    if left_out := [name for name in names if name != found[0] and name in [*scores, *([] if scores else names)]]:
        notes.append(f"outputs that are left out: {join_some(left_out, 5)}")
    name = found[0]
    while (node := producers.get(name)) is not None and node.op_type in _LABELS:
        if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze") and not _leads_to_label(node, producers):
            break
        name = node.input[1] if node.op_type == "ArrayFeatureExtractor" else node.input[0]
        if node.op_type == "ArgMax":
            notes.append(
                f"the model gives only the class; the bundle also has the scores that ArgMax {node.name!r} reads"
            )
    return name, notes


def _is_score(info: onnx.ValueInfoProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    if not info.type.HasField("tensor_type"):
        return True  # this output is a sequence of maps, made by a ZipMap
    node = producers.get(info.name)
    if node is not None and node.op_type == "LinearClassifier":
        return bool(info.name == node.output[-1])
    return bool(info.type.tensor_type.elem_type in _FLOATS)


def _leads_to_label(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the input of a node is a label, such as the result of an ArgMax or a ZipMap."""
    for _ in range(len(_LABELS)):
        before = producers.get(node.input[0])
        if before is None or before.op_type not in _LABELS:
            return False
        if before.op_type in ("ArgMax", "ZipMap", "ArrayFeatureExtractor", "LabelEncoder"):
            return before.op_type != "LabelEncoder" or _leads_to_label(before, producers)
        node = before
    return False
