"""Export: a folded chain -> one ONNX file whose bytes depend on the network alone.

The few nodes are built by hand: an exporter's graph carries stack traces with local paths, and changes with its
version. It knows layers and ONNX, no data and no bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from service.bundle import Task
from training.errors import ExportError
from training.fold import Shift
from training.network import Affine

# Gelu came with opset 20; every ONNX Runtime that this project allows reads 20 and IR 10.
OPSET = 20
IR_VERSION = 10

INPUT = "input"
OUTPUT: dict[Task, str] = {"classification": "probabilities", "regression": "value"}


class _Graph:
    """The nodes so far; `value` names the tensor that the next node reads."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.value = INPUT

    def constant(self, name: str, tensor: torch.Tensor) -> str:
        self.initializers.append(numpy_helper.from_array(tensor.detach().float().numpy(), name))
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> None:
        """Add a node that reads the current value, and then `inputs`."""
        self.nodes.append(helper.make_node(op, [self.value, *inputs], [name], name, **attributes))
        self.value = name


def _dense(graph: _Graph, name: str, layer: nn.Linear) -> None:
    inputs = [graph.constant(f"{name}.weight", layer.weight)]
    if layer.bias is not None:
        inputs.append(graph.constant(f"{name}.bias", layer.bias))
    graph.node("Gemm", name, *inputs, transB=1)


def _affine(graph: _Graph, name: str, layer: Affine) -> None:
    graph.node("Mul", f"{name}.scaled", graph.constant(f"{name}.scale", layer.scale))
    graph.node("Add", name, graph.constant(f"{name}.shift", layer.shift))


def _shift(graph: _Graph, name: str, layer: Shift) -> None:
    graph.node("Sub", name, graph.constant(f"{name}.offset", layer.offset))


def _gelu(graph: _Graph, name: str, layer: nn.GELU) -> None:
    graph.node("Gelu", name, approximate=layer.approximate)


def _silu(graph: _Graph, name: str, _: nn.SiLU) -> None:
    source = graph.value
    graph.node("Sigmoid", f"{name}.sigmoid")
    graph.node("Mul", name, source)


def _plain(op: str) -> Callable[[_Graph, str, nn.Module], None]:
    return lambda graph, name, _: graph.node(op, name)


_NODES: dict[type[nn.Module], Callable[..., None]] = {
    nn.Linear: _dense,
    Affine: _affine,
    Shift: _shift,
    nn.ReLU: _plain("Relu"),
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.Tanh: _plain("Tanh"),
    nn.Sigmoid: _plain("Sigmoid"),
}


def to_onnx(network: nn.Sequential, features: int, outputs: int, task: Task) -> bytes:
    """Write a folded chain as ONNX: float32 `input` [batch, features] -> the task's output [batch, outputs].

    Classification ends in a Softmax. One file, no external data, no metadata, nodes named after the layers.
    Raises `ExportError` for a layer that has no ONNX form here, and when `onnx.checker` refuses the graph.
    """
    graph = _Graph()
    for name, layer in network.named_children():
        if type(layer) not in _NODES:
            raise ExportError(f"layer {name!r} has no ONNX form: {type(layer).__name__}")
        _NODES[type(layer)](graph, name, layer)
    if task == "classification":
        graph.node("Softmax", OUTPUT[task], axis=1)
    else:
        graph.nodes[-1].output[0] = OUTPUT[task]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "foldserve",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", features])],
            [helper.make_tensor_value_info(OUTPUT[task], TensorProto.FLOAT, ["batch", outputs])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="foldserve",
        producer_version=version("foldserve"),
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    content: bytes = model.SerializeToString(deterministic=True)
    return content
