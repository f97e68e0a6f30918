"""The intermediate form of an imported model: a graph of layers over float64 arrays, and its exact evaluation.

A front end (ONNX, Keras, scikit-learn, PyTorch) maps its model to the intermediate form with a `Builder`. Folding and
the export use only the intermediate form. The module does not depend on a file format or a framework.

The value `INPUT` has one column for each feature, as in a bundle. In `INPUT`, a category is an index, and a missing
value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.layers import Array, Layer

INPUT = "input"
# The certificate evaluates 4,096 rows at once, so a value of `MAX_COLUMNS` columns takes 2 GiB as float32.
MAX_COLUMNS = 2**17


@dataclass(frozen=True, eq=False)
class Node:
    """A node of the graph: a layer and its inputs.

    name: the unique name of the node and of its output. inputs: the names of the values that the layer reads.
    """

    name: str
    layer: Layer
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """An acyclic graph of layers. Each node comes after the nodes that it reads.

    features: the number of columns of `INPUT`. output: the name of the value that is the result of the network. The
    result contains probabilities [rows, classes], or the values of a regression [rows, 1].
    """

    features: int
    nodes: tuple[Node, ...]
    output: str

    def widths(self) -> dict[str, int]:
        """Return the number of columns of every value, by the name of the value."""
        widths = {INPUT: self.features}
        for node in self.nodes:
            widths[node.name] = node.layer.columns(*(widths[name] for name in node.inputs))
        return widths

    def evaluate(self, rows: npt.NDArray[np.floating[Any]]) -> Array:
        """Evaluate the network in float64 on raw rows [rows, features]. Return float64 [rows, outputs]."""
        values = {INPUT: np.asarray(rows, np.float64)}
        # Maps the name of a value to the index of the last node that reads the value.
        readers = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        for i, node in enumerate(self.nodes):
            values[node.name] = node.layer.apply(*(values[name] for name in node.inputs))
            for name in set(node.inputs):
                if readers[name] == i and name != self.output:
                    del values[name]
        return values[self.output]


class Builder:
    """Builds a `Network` node by node, and checks the columns of each node.

    Raises `ModelImportError` if the network has more than `MAX_COLUMNS` features.
    """

    def __init__(self, features: int) -> None:
        if features > MAX_COLUMNS:
            raise ModelImportError(f"the model has {features:,} features; an import takes at most {MAX_COLUMNS:,}")
        self._features = features
        self._nodes: list[Node] = []
        self.columns = {INPUT: features}

    def add(self, name: str, kind: str, layer: Layer, *inputs: str) -> str:
        """Add a layer that reads `inputs`, and return the unique name of its value.

        name, kind: the name and the type of the layer in the original model, for messages and the report. Raises
        `ModelImportError` if the layer can't read `inputs`.
        """
        try:
            columns = layer.columns(*(self.columns[each] for each in inputs))
        except ValueError as error:
            raise ModelImportError(f"{kind} {name!r}: {error}") from error
        if columns > MAX_COLUMNS:
            raise refuse(name, kind, f"it gives {columns:,} columns; an import takes at most {MAX_COLUMNS:,}")
        unique, count = name, 2
        while unique in self.columns:
            unique, count = f"{name}.{count}", count + 1
        self._nodes.append(Node(unique, layer, inputs))
        self.columns[unique] = columns
        return unique

    def network(self, output: str) -> Network:
        """Return the network that computes the value `output`, without the nodes that `output` does not need."""
        return prune(Network(self._features, tuple(self._nodes), output))


def prune(network: Network) -> Network:
    """Return the network without the nodes that its output does not need."""
    needed, kept = {network.output}, []
    for node in reversed(network.nodes):
        if node.name in needed:
            kept.append(node)
            needed.update(node.inputs)
    return Network(network.features, tuple(reversed(kept)), network.output)


def refuse(name: str, kind: str, reason: str, remedy: str = "") -> ModelImportError:
    """Return the error that refuses the layer `name` of the type `kind`. remedy: advice for the user."""
    return ModelImportError(f"{kind} {name!r}: {reason}" + (f"; {remedy}" if remedy else ""))


def chain(builder: Builder, steps: Sequence[tuple[str, str, Layer]], value: str = INPUT) -> str:
    """Add layers one after the other.

    Each layer reads the value of the layer before it. steps: the name, the type and the layer of each step. Return the
    name of the value of the last layer.
    """
    for name, kind, layer in steps:
        value = builder.add(name, kind, layer, value)
    return value
