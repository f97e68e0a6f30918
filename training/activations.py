"""The activations.

Each activation has a name, a PyTorch module and ONNX nodes. To add an activation, add an entry to `FORMS`.

This module does not import torch or onnx, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]


class Graph(Protocol):
    """The methods of `network.graph.Graph` that an activation needs."""

    value: str

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node that reads the current value and the values named in `inputs`. The output of the node becomes the
        current value.
        """


@dataclass(frozen=True)
class Form:
    """One activation. module: a class of `torch.nn`. add_nodes: a function with three arguments: the graph, the name of
    the layer, and the module.
    """

    module: str
    add_nodes: Callable[[Graph, str, Any], None]


def _operator(operator: str, *options: str) -> Callable[[Graph, str, Any], None]:
    """Return a function that adds one ONNX node with this operator. options: the attributes that have the same name in
    the PyTorch module and in the ONNX operator.
    """

    def add_nodes(graph: Graph, name: str, module: Any) -> None:
        graph.node(operator, name, **{option: getattr(module, option) for option in options})

    return add_nodes


def _silu(graph: Graph, name: str, _: Any) -> None:
    """Add the nodes of x * sigmoid(x). ONNX opset 20 has no operator for SiLU."""
    x = graph.value
    graph.node("Sigmoid", f"{name}.sigmoid")
    graph.node("Mul", name, x)


FORMS: dict[Activation, Form] = {
    "relu": Form("ReLU", _operator("Relu")),
    "gelu": Form("GELU", _operator("Gelu", "approximate")),
    "silu": Form("SiLU", _silu),
    "tanh": Form("Tanh", _operator("Tanh")),
    "sigmoid": Form("Sigmoid", _operator("Sigmoid")),
}
