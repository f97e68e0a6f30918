"""Export: turns a folded chain into one ONNX file. The same network and description always give the same bytes.

This module builds the ONNX nodes itself, without PyTorch's exporter. PyTorch's exporter would add stack traces with
local paths, and its graphs change from version to version. The class of each layer adds its own nodes to the graph.
This module does not depend on data or on bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import onnx
from onnx import TensorProto, helper
from torch import nn

from foldserve.service.bundle import DESCRIPTION_KEY, Task
from foldserve.training.errors import ExportError
from foldserve.training.network.graph import Graph
from foldserve.training.network.layers import add_nodes

# ONNX has the operator Gelu since opset 20. Every ONNX Runtime that this project allows reads opset 20 and IR version
# 10.
OPSET = 20
IR_VERSION = 10

INPUT = "input"
OUTPUT: dict[Task, str] = {"classification": "probabilities", "regression": "value"}


def to_onnx(
    network: nn.Sequential,
    features: int,
    outputs: int,
    task: Task,
    *,
    unfolded: bool = False,
    description: str | None = None,
) -> bytes:
    """Write a folded chain as an ONNX model.

    The model maps float32 `input` [batch, features] to the output of the task [batch, outputs].

    For classification, the graph ends in a Softmax. The model is one file without external data. Each node has the name
    of its layer. unfolded: whether to keep the batch norms of a chain in eval mode, as PyTorch's exporter does with
    `optimize=False`. Unfolded graphs are used only in comparisons. description: the text that becomes the only metadata
    entry, as `bundle.describe` returns it; None for no metadata. Raises `ExportError` if a layer has no ONNX form in
    this module, or if `onnx.checker` refuses the graph.
    """
    graph = Graph(INPUT)
    for name, layer in network.named_children():
        if unfolded and isinstance(layer, nn.BatchNorm1d):
            graph.batch_norm(name, layer)
        elif not add_nodes(graph, name, layer):
            raise ExportError(f"layer {name!r} has no ONNX form: {type(layer).__name__}")
    if task == "classification":
        graph.node("Softmax", OUTPUT[task], axis=1)
    else:
        graph.nodes[-1].output[0] = OUTPUT[task]
    return write_model(graph.nodes, graph.initializers, (INPUT, features), (OUTPUT[task], outputs), description)


def write_model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    inputs: tuple[str, *tuple[int, ...]],
    outputs: tuple[str, *tuple[int, ...]],
    description: str | None = None,
) -> bytes:
    """Write an ONNX model with one float32 input [batch, columns] and one float32 output [batch, columns].

    inputs, outputs: the name of the tensor, followed by its number of columns or by the shape of its rows. Raises
    `ExportError` if `onnx.checker` refuses the graph.
    """
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in ((inputs[0], inputs[1:]), (outputs[0], outputs[1:]))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "foldserve", tensors[:1], tensors[1:], initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="foldserve",
        producer_version=version("foldserve"),
    )
    if description is not None:
        helper.set_model_props(model, {DESCRIPTION_KEY: description})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    content: bytes = model.SerializeToString(deterministic=True)
    return content
