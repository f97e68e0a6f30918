"""The activations: the name, the PyTorch module and the ONNX nodes of each. To add an activation, add it here.

This module imports neither torch nor onnx, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]


class Graph(Protocol):
    """The part of `network.graph.Graph` that an activation needs."""

    value: str

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node that reads the current value and `inputs`; its output becomes the current value."""


@dataclass(frozen=True)
class Form:
    """One activation. module: a class of `torch.nn`. add_nodes: called with the graph, the layer's name, the module."""

    module: str
    add_nodes: Callable[[Graph, str, Any], None]


def _operator(operator: str, *options: str) -> Callable[[Graph, str, Any], None]:
    """One node of `operator`. options: the attributes that module and operator have under the same name."""

    def add_nodes(graph: Graph, name: str, module: Any) -> None:
        graph.node(operator, name, **{option: getattr(module, option) for option in options})

    return add_nodes


def _silu(graph: Graph, name: str, _: Any) -> None:
    """x * sigmoid(x), for which opset 20 has no operator of its own."""
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
