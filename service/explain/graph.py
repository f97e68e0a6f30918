"""Reads the graph of `model.onnx` in two parts: the preprocessing, and the network that begins with the first Gemm.

This module reads ONNX files. This module does not depend on the arithmetic of the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from foldserve.service.errors import NotExplainable

Constant = npt.NDArray[Any]

_PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Node:
    """One node.

    inputs: the names of the tensors that the node reads. An empty name stands for an optional input that the node does
    not have.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def refuse(self, reason: str = "its operator is not known") -> NotExplainable:
        """Return the error for a graph that has this node."""
        return NotExplainable(f"the model can't be explained: node {self.name!r} ({self.operator}): {reason}")


@dataclass(frozen=True)
class Graph:
    """The nodes of the graph, in the order of the file.

    constants: maps the name of each constant to its value. output: the logits of a classification, or the value.
    """

    input: str
    output: str
    preprocessing: tuple[Node, ...]
    network: tuple[Node, ...]
    constants: dict[str, Constant]


def read_graph(model: bytes) -> Graph:
    """Read the graph of a model.

    A Softmax at the end of the graph is ignored, because foldserve explains the logits, not the probabilities.

    Raises `NotExplainable` in these cases: the file is not ONNX; the graph has no matrix product; the Softmax is not
    over the classes.
    """
    try:
        graph = onnx.load_model_from_string(model).graph
    except DecodeError as error:
        raise NotExplainable("the model can't be explained: its file is not ONNX") from error
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [_node(proto) for proto in graph.node]
    output = graph.output[0].name
    if nodes and nodes[-1].operator == "Softmax":
        last = nodes.pop()
        if last.outputs != (output,) or last.attributes.get("axis", -1) not in (1, -1):
            raise last.refuse("it is not over the classes")
        output = last.inputs[0]
    start = next((place for place, node in enumerate(nodes) if node.operator in _PRODUCTS), None)
    if start is None:
        raise NotExplainable("the model can't be explained: its graph has no Gemm and no MatMul")
    given = [value.name for value in graph.input if value.name not in constants]
    return Graph(given[0], output, tuple(nodes[:start]), tuple(nodes[start:]), constants)


def _node(proto: onnx.NodeProto) -> Node:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in proto.attribute}
    name = proto.name or ", ".join(proto.output)
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes)
