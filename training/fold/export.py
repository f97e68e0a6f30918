"""Export: a folded chain -> one ONNX file whose bytes depend on the network alone.

The few nodes are built by hand: an exporter's graph carries stack traces with local paths, and changes with its
version. It knows layers and ONNX, no data and no bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, cast

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foldserve.service.bundle import Task
from foldserve.training.errors import ExportError
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import Affine, Blocks, Shift

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
        content = tensor.detach()
        content = content.float() if content.is_floating_point() else content
        self.initializers.append(numpy_helper.from_array(content.numpy(), name))
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node that reads the current value, and then `inputs`; its output is the current value then."""
        self.nodes.append(helper.make_node(op, [self.value, *inputs], [name], name, **attributes))
        self.value = name
        return name

    def split(self, name: str, parts: int) -> list[str]:
        """Cut the current value's columns into equal parts."""
        outputs = [f"{name}.{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [self.value], outputs, name, axis=1, num_outputs=parts))
        return outputs

    def concatenate(self, name: str, parts: Sequence[str]) -> None:
        """Put columns side by side."""
        self.value = parts[0]
        if len(parts) > 1:
            self.node("Concat", name, *parts[1:], axis=1)


def _dense(graph: _Graph, name: str, layer: nn.Linear) -> None:
    inputs = [graph.constant(f"{name}.weight", layer.weight)]
    if layer.bias is not None:
        inputs.append(graph.constant(f"{name}.bias", layer.bias))
    graph.node("Gemm", name, *inputs, transB=1)


def _blocks(graph: _Graph, name: str, layer: Blocks) -> None:
    outputs = []
    for part, (member, value) in enumerate(
        zip(layer.members, graph.split(f"{name}.of", len(layer.members)), strict=True)
    ):
        graph.value = value
        _dense(graph, f"{name}.{part}", cast(nn.Linear, member))
        outputs.append(graph.value)
    graph.concatenate(name, outputs)


def _encode(graph: _Graph, name: str, layer: Encode) -> None:
    """Guard before anything that NaN could spoil: each part reads the raw input, and compares or replaces first."""
    raw = graph.value

    def take(part: str, columns: torch.Tensor) -> None:
        graph.value = raw
        graph.node("Gather", f"{name}.{part}.raw", graph.constant(f"{name}.{part}.columns", columns), axis=1)

    parts = []
    if len(layer.numeric):
        if len(layer.categorical):
            take("numeric", layer.numeric)
        if not layer.fill.isnan().all():
            values = graph.value
            there = graph.node("IsNaN", f"{name}.numeric.missing")
            fill = graph.constant(f"{name}.numeric.fill", layer.fill.nan_to_num())
            graph.value = there
            graph.node("Where", f"{name}.numeric", fill, values)
        parts.append(graph.value)
    if len(layer.binned):
        graph.node("Gather", f"{name}.binned.raw", graph.constant(f"{name}.binned.columns", layer.binned), axis=1)
        graph.node("Sub", f"{name}.binned.above", graph.constant(f"{name}.binned.low", layer.low))
        graph.node("Mul", f"{name}.binned.share", graph.constant(f"{name}.binned.rate", layer.rate))
        zero, one = (graph.constant(f"{name}.{text}", torch.tensor(number)) for text, number in _UNIT)
        parts.append(graph.node("Clip", f"{name}.binned", zero, one))
    if len(layer.categorical):
        take("categorical", layer.categorical)
        graph.node("Equal", f"{name}.categorical.equal", graph.constant(f"{name}.categorical.index", layer.index))
        parts.append(graph.node("Cast", f"{name}.categorical", to=TensorProto.FLOAT))
    if len(layer.missing):
        take("missing", layer.missing)
        graph.node("IsNaN", f"{name}.missing.none")
        parts.append(graph.node("Cast", f"{name}.missing", to=TensorProto.FLOAT))
    graph.concatenate(name, parts)


_UNIT = (("zero", 0.0), ("one", 1.0))


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
    def add(graph: _Graph, name: str, _: nn.Module) -> None:
        graph.node(op, name)

    return add


_NODES: dict[type[nn.Module], Callable[..., None]] = {
    nn.Linear: _dense,
    Blocks: _blocks,
    Encode: _encode,
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
