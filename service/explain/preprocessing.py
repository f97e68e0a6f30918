"""Runs the nodes that come before the network.

The preprocessing turns raw rows into encoded columns, in float32 as in ONNX Runtime.
Each encoded column depends on a single feature, and this module finds that feature. This module does not depend on the
neural network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Rows
from foldserve.service.explain.graph import Graph, Node

Array = npt.NDArray[Any]

_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Floor": np.floor,
    "Sin": np.sin,
    "Cos": np.cos,
    "IsNaN": np.isnan,
    "Equal": np.equal,
    "Not": np.logical_not,
    "Where": np.where,
    "Clip": np.clip,
    "Identity": lambda x: x,
}
_FLOAT, _BOOL = 1, 9  # data types in onnx.TensorProto


class Preprocessing:
    """The preprocessing of one model.

    source: int64 [columns], the index of the feature that each encoded column depends on.
    """

    def __init__(self, graph: Graph, features: int) -> None:
        """Raises `NotExplainable` for a node that is not known, and for a column that depends on several features."""
        self._graph = graph
        self._output = graph.network[0].inputs[0]
        self._steps = [(_function(node), node) for node in graph.preprocessing]
        sources: dict[str, Array] = {graph.input: np.arange(features)}
        # Two rows are run only to find out how many columns each tensor has.
        values = self._run(np.zeros((2, features), np.float32))
        for node in graph.preprocessing:
            sources[node.outputs[0]] = _sources(node, graph, sources, values[node.outputs[0]].shape[1])
        if self._output not in sources:
            raise graph.network[0].refuse("it does not read the preprocessed columns")
        self.source = sources[self._output]

    def encode(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Map float32 [rows, features] to float64 [rows, columns]. The arithmetic is in float32."""
        return self._run(rows)[self._output].astype(np.float64)

    def _run(self, rows: Rows) -> dict[str, Array]:
        values: dict[str, Array] = {**self._graph.constants, self._graph.input: rows}
        with np.errstate(all="ignore"):  # a missing value is NaN until a node replaces it
            for function, node in self._steps:
                values[node.outputs[0]] = function(*(values[name] for name in node.inputs))
        return values


def _function(node: Node) -> Callable[..., Array]:
    """Return the NumPy function that computes a node. Raises `NotExplainable`."""
    if node.operator in _ELEMENTWISE:
        return _ELEMENTWISE[node.operator]
    if node.operator == "Gather" and node.attributes.get("axis") == 1:
        return lambda x, columns: x.take(columns.ravel(), axis=1)
    if node.operator == "Concat" and node.attributes.get("axis") in (1, -1):
        return lambda *parts: np.concatenate(parts, axis=1)
    if node.operator == "Cast" and node.attributes.get("to") in (_FLOAT, _BOOL):
        dtype = np.float32 if node.attributes["to"] == _FLOAT else np.bool_
        return lambda x: x.astype(dtype)
    raise node.refuse()


def _sources(node: Node, graph: Graph, sources: dict[str, Array], width: int) -> Array:
    """For each output column of a node, return the index of the feature on which the column depends."""
    parts: Sequence[Array] = [sources[name] for name in node.inputs if name in sources]
    if not parts:
        raise node.refuse("it reads no feature")
    if node.operator == "Gather":
        return parts[0][graph.constants[node.inputs[1]].ravel()]
    if node.operator == "Concat":
        return np.concatenate(parts)
    spread = [np.broadcast_to(part, width) for part in parts]
    if any((part != spread[0]).any() for part in spread):
        raise node.refuse("it combines several features before the first matrix product")
    return spread[0]
