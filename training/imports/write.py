"""Writes a folded graph as ONNX nodes. This module rounds each value to float32, once.

The module knows the layers and their operators, and does not depend on the format of the original file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.bundle import Task
from foldserve.training.errors import FoldError, ModelImportError
from foldserve.training.fold.export import INPUT as MODEL_INPUT
from foldserve.training.fold.export import OPSET, OUTPUT, write_model
from foldserve.training.imports.form import INPUT, Network, Node
from foldserve.training.imports.functions import FUNCTIONS
from foldserve.training.imports.layers import (
    Activation,
    Add,
    Affine,
    Array,
    Concat,
    Dense,
    Impute,
    IsMissing,
    Kept,
    Layer,
    Multiply,
    Normalize,
    Offset,
    OneHot,
    PRelu,
    Select,
    Softmax,
)

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NORM = {"l1": "ReduceL1", "l2": "ReduceL2", "max": "ReduceMax"}


def to_onnx(network: Network, task: Task, *, description: str | None = None) -> bytes:
    """Write `network` as the ONNX model of a bundle.

    Raises `FoldError` if a weight overflows float32, and `ExportError` if `onnx.checker` refuses the graph.
    """
    return write_network(network, MODEL_INPUT, OUTPUT[task], description)


def write_network(
    network: Network, source: str, output: str, description: str | None = None, shape: tuple[int, ...] = ()
) -> bytes:
    """Write `network` as an ONNX model with the input `source` [batch, features] and the output `output`.

    shape: the shape of a row of `source`, if a row has more than one axis. Raises the same errors as `to_onnx`.
    """
    columns = network.widths()[network.output]
    if len(shape) < 2:
        shape, flat = (network.features,), source
    else:
        flat = f"{source}.flat"
    writer = Writer(network, flat, output, reserved=(source,))
    if flat != source:
        writer.node("Flatten", flat, source, axis=1)
    for node in network.nodes:
        writer.write(node)
    return write_model(writer.nodes, writer.initializers, (source, *shape), (output, columns), description)


class Writer:
    """Collects the ONNX nodes and constants of a network.

    Each value has the name of its node. The caller names the output of the network.

    A name in a graph can be any text. If two values have the same name, the writer appends underscores to one of the
    names. reserved: further names that are already in use.
    """

    def __init__(self, network: Network, source: str, output: str, reserved: Sequence[str] = ()) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names = {INPUT: source}
        self._reserved = {source, output, *reserved}
        for node in network.nodes:
            self._names[node.name] = self._reserve(node.name)
        self._names[network.output] = output
        self._widths = network.widths()
        self._splits = _find_splits(network)

    def write(self, node: Node) -> None:
        """Write the operators of one node. The output of the last operator is the value of the node."""
        name, inputs = self._names[node.name], [self._names[each] for each in node.inputs]
        layer = node.layer
        if isinstance(layer, Select) and node.inputs[0] in self._splits:
            self._write_split(node)
        elif isinstance(layer, Dense):
            self._checked(node, layer.weight, layer.bias)
            weight, bias = self.constant(f"{name}.weight", layer.weight), self.constant(f"{name}.bias", layer.bias)
            self.node("Gemm", name, inputs[0], weight, bias, transB=1)
        elif isinstance(layer, Affine):
            self._write_affine(node, layer)
        elif isinstance(layer, Activation):
            self._write_function(name, inputs[0], layer)
        elif isinstance(layer, Kept):
            self._write_kept(node, layer)
        elif isinstance(layer, Normalize):
            self._write_norm(name, inputs[0], layer)
        elif isinstance(layer, OneHot | IsMissing | Impute):
            self._write_encoding(name, inputs[0], layer)
        else:
            self._write_simple(name, inputs, layer)

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a constant. Floating-point numbers are rounded to float32."""
        name = self._reserve(name)
        content = values.astype(np.float32) if values.dtype.kind == "f" else values
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(content), name))
        return name

    def step(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator that computes an intermediate result of a layer, and return the name of its output."""
        return self.node(operator, self._reserve(name), *inputs, **attributes)

    def _reserve(self, name: str) -> str:
        """Return `name`, and append underscores to it if another value has the same name."""
        while name in self._reserved:
            name += "_"
        self._reserved.add(name)
        return name

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator whose output is called `name`."""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def _checked(self, node: Node, *arrays: Array) -> None:
        if not all((abs(array) <= _FLOAT32_MAX).all() for array in arrays):
            raise FoldError(node.name, "its folded weights overflow float32")

    def _write_affine(self, node: Node, layer: Affine) -> None:
        name, value = self._names[node.name], self._names[node.inputs[0]]
        shift = layer.shift - layer.scale * layer.offset
        self._checked(node, layer.scale, shift)
        has_shift = bool(shift.any())
        if (layer.scale != 1).any() or not has_shift:
            scale = self.constant(f"{name}.scale", _shorten(layer.scale))
            value = self.node("Mul", self._reserve(f"{name}.scaled") if has_shift else name, value, scale)
        if has_shift:
            self.node("Add", name, value, self.constant(f"{name}.shift", _shorten(shift)))

    def _write_function(self, name: str, value: str, layer: Activation) -> None:
        operator = FUNCTIONS[layer.function].operator
        if operator is not None:
            kind, attributes = operator(layer.parameters)
            self.node(kind, name, value, **attributes)
        elif layer.function == "silu":
            self.node("Mul", name, value, self.step("Sigmoid", f"{name}.sigmoid", value))
        elif layer.function == "power":
            self.node("Pow", name, value, self.constant(f"{name}.exponent", np.array(layer.parameters["exponent"])))
        else:  # for clip, a finite limit is an input, and an infinite limit is left out
            limits = []
            for part in ("low", "high"):
                limit = layer.parameters[part]
                limits.append(self.constant(f"{name}.{part}", np.array(limit)) if np.isfinite(limit) else "")
            self.node("Clip", name, value, *limits)

    def _write_norm(self, name: str, value: str, layer: Normalize) -> None:
        axes, zero = self.constant(f"{name}.axes", np.array([1])), self.constant(f"{name}.zero", np.array(0.0))
        one = self.constant(f"{name}.one", np.array(1.0))
        size = self.step(_NORM[layer.norm], f"{name}.norm", value, axes, keepdims=1)
        is_zero = self.step("Equal", f"{name}.empty", size, zero)
        self.node("Div", name, value, self.step("Where", f"{name}.divisor", is_zero, one, size))

    def _write_simple(self, name: str, inputs: list[str], layer: Layer) -> None:
        """Write a layer that is a single operator, and its constants."""
        if isinstance(layer, Select):
            self._gather(name, inputs[0], layer.source)
        elif isinstance(layer, PRelu):
            self.node("PRelu", name, inputs[0], self.constant(f"{name}.slope", layer.slope))
        elif isinstance(layer, Offset):
            self.node("Sub", name, inputs[0], self.constant(f"{name}.offset", layer.offset))
        elif isinstance(layer, Softmax):
            self.node("LogSoftmax" if layer.log else "Softmax", name, inputs[0], axis=1)
        elif isinstance(layer, Concat):
            self.node("Concat", name, *inputs, axis=1)
        elif isinstance(layer, Multiply):
            self._fold_left("Mul", name, inputs)
        elif isinstance(layer, Add):
            self._fold_left("Add", name, inputs)
        else:
            raise ModelImportError(f"layer {name!r} has no ONNX form: {type(layer).__name__}")

    def _write_encoding(self, name: str, value: str, layer: OneHot | IsMissing | Impute) -> None:
        """Write an encoding, or the replacement of NaN.

        An encoding first compares, and then casts only the boolean result, so that the cast never gets NaN.
        """
        if isinstance(layer, Impute):
            fill = self.constant(f"{name}.fill", layer.fill)
            self.node("Where", name, self.step("IsNaN", f"{name}.missing", value), fill, value)
            return
        picked = self._gather(self._reserve(f"{name}.raw"), value, layer.source)
        if isinstance(layer, OneHot):
            found = self.step("Equal", f"{name}.equal", picked, self.constant(f"{name}.code", layer.code))
        else:
            found = self.step("IsNaN", f"{name}.nan", picked)
        self.node("Cast", name, found, to=TensorProto.FLOAT)

    def _fold_left(self, operator: str, name: str, inputs: Sequence[str]) -> None:
        value = inputs[0]
        if len(inputs) == 1:
            self.node("Identity", name, value)
            return
        for place, each in enumerate(inputs[1:-1], start=2):
            value = self.step(operator, f"{name}.{place}", value, each)
        self.node(operator, name, value, inputs[-1])

    def _gather(self, name: str, value: str, columns: npt.NDArray[np.int64]) -> str:
        """Select columns. ONNX Runtime copies consecutive columns much faster with a Slice than with a Gather."""
        if len(columns) > 1 and (np.diff(columns) == 1).all():
            limits = {"start": columns[0], "end": columns[-1] + 1, "axis": 1}
            constants = [self.constant(f"{name}.{part}", np.array([limit])) for part, limit in limits.items()]
            return self.node("Slice", name, value, *constants)
        return self.node("Gather", name, value, self.constant(f"{name}.columns", columns), axis=1)

    def _write_split(self, node: Node) -> None:
        """Write all selections of one value as a single Split, at the place of the first selection."""
        first, selections = self._splits[node.inputs[0]]
        if node.name != first:
            return
        name, outputs = f"{self._names[node.inputs[0]]}.split", [self._names[each.name] for each in selections]
        sizes = self.constant(f"{name}.sizes", np.array([self._widths[each.name] for each in selections]))
        self.nodes.append(helper.make_node("Split", [self._names[node.inputs[0]], sizes], outputs, name, axis=1))

    def _write_kept(self, node: Node, layer: Kept) -> None:
        name = self._names[node.name]
        copy = onnx.NodeProto.FromString(layer.node)
        if layer.opset > OPSET and copy.domain in ("", "ai.onnx"):
            raise ModelImportError(
                f"{copy.op_type} {node.name!r} needs opset {layer.opset}; a bundle has opset {OPSET}"
            )
        constants = [self.constant(f"{name}.{key}", values) for key, values in layer.constants.items()]
        data = [self._names[each] for each in node.inputs]
        del copy.input[:]
        copy.input.extend([*data, *constants])
        copy.name = name
        del copy.output[:]
        copy.output.append(name)
        self.nodes.append(copy)


def _shorten(values: Array) -> Array:
    """Return one number for all columns if all numbers are equal, and `values` otherwise."""
    return values[:1] if (values == values[0]).all() else values


def _find_splits(network: Network) -> dict[str, tuple[str, list[Node]]]:
    """Find the values that selections cut into consecutive parts.

    A single Split can replace all selections of such a value. For each value that is found, the result contains the
    name of the first selection in the network, and all selections in the order of their columns.
    """
    selections: dict[str, list[Node]] = {}
    for node in network.nodes:
        if isinstance(node.layer, Select):
            selections.setdefault(node.inputs[0], []).append(node)
    widths = network.widths()
    found: dict[str, tuple[str, list[Node]]] = {}
    for source, nodes in selections.items():
        ordered = sorted(nodes, key=_first_column)
        columns = [column for node in ordered if isinstance(node.layer, Select) for column in node.layer.source]
        if len(nodes) > 1 and source != INPUT and columns == list(range(widths[source])):
            found[source] = (nodes[0].name, ordered)
    return found


def _first_column(node: Node) -> int:
    return int(node.layer.source[0]) if isinstance(node.layer, Select) else 0
