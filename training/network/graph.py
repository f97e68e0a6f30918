"""An ONNX graph under construction, one node after the other. The module does not depend on layers.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper
from torch import Tensor, nn


class Graph:
    """The nodes and constants that have been added so far. value: the name of the current value, which is the tensor
    that the next node reads.
    """

    def __init__(self, value: str) -> None:
        self.value = value
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, tensor: Tensor) -> str:
        """Add the constant `tensor` with the name `name`.

        A floating-point tensor is stored as float32, and any other tensor keeps its dtype.
        """
        content = tensor.detach()
        content = content.float() if content.is_floating_point() else content
        self.initializers.append(numpy_helper.from_array(content.numpy(), name))
        return name

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node. Its first input is the current value, and its other inputs are `inputs`.

        The output of the node is called `name`, and becomes the current value.
        """
        self.nodes.append(helper.make_node(operator, [self.value, *inputs], [name], name, **attributes))
        self.value = name
        return name

    def dense(self, name: str, layer: nn.Linear) -> str:
        """Add a Gemm with the weight and bias of `layer`."""
        inputs = [self.constant(f"{name}.weight", layer.weight)]
        if layer.bias is not None:
            inputs.append(self.constant(f"{name}.bias", layer.bias))
        return self.node("Gemm", name, *inputs, transB=1)

    def batch_norm(self, name: str, layer: nn.BatchNorm1d) -> str:
        """Add a BatchNormalization with the parameters and the running statistics of `layer`."""
        tensors = {"scale": layer.weight, "B": layer.bias, "mean": layer.running_mean, "var": layer.running_var}
        inputs = [self.constant(f"{name}.{part}", tensor) for part, tensor in tensors.items() if tensor is not None]
        return self.node("BatchNormalization", name, *inputs, epsilon=layer.eps)

    def split(self, name: str, parts: int) -> list[str]:
        """Cut the current value into `parts` equal groups of columns, and return the names of the groups."""
        outputs = [f"{name}.{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [self.value], outputs, name, axis=1, num_outputs=parts))
        return outputs

    def concatenate(self, name: str, parts: Sequence[str]) -> None:
        """Put the columns of `parts` side by side. If there is only one part, this part becomes the current value, and
        no node is added.
        """
        self.value = parts[0]
        if len(parts) > 1:
            self.node("Concat", name, *parts[1:], axis=1)
