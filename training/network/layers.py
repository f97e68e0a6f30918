"""The layer types of this project. Each type defines its arithmetic in PyTorch, its width and its ONNX nodes.

To add a layer type, write a subclass of `Layer`. Folding, merging and export use only the methods of `Layer`. The
module does not train or fold layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from foldserve.training.activations import FORMS, Activation
from foldserve.training.network.graph import Graph

ACTIVATIONS: dict[Activation, type[nn.Module]] = {name: getattr(nn, form.module) for name, form in FORMS.items()}
_ADD_NODES: dict[type[nn.Module], Callable[..., None]] = {ACTIVATIONS[name]: FORMS[name].add_nodes for name in FORMS}


class Layer(nn.Module):
    """The base class of the layer types. The output of a layer for one row does not depend on other rows.

    Folding moves an affine map across an `Affine`, but not across any other `Layer`.
    """

    @property
    def columns(self) -> int | None:
        """The number of output columns; None if the layer has as many output columns as input columns."""
        return None

    def add_nodes(self, graph: Graph, name: str) -> None:
        """Add the nodes of this layer to `graph`.

        The nodes read the graph's current value, and the last node has the name `name`.
        """
        raise NotImplementedError


class Affine(Layer):
    """Computes x * scale + shift for each column. An `Affine` in front of the network standardises the features. An
    `Affine` at the end of the network undoes the standardisation of the target, or divides the logits by the
    temperature.

    scale, shift: float64 [columns]. `scale` and `shift` are buffers, because they are computed from the data, not
    learned.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.double())
        self.register_buffer("shift", shift.double())

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor with the shape and dtype of `x` [batch, columns]."""
        return (x * self.scale + self.shift).to(x.dtype)

    def add_nodes(self, graph: Graph, name: str) -> None:
        """Add a Mul node and an Add node to `graph`."""
        graph.node("Mul", f"{name}.scaled", graph.constant(f"{name}.scale", self.scale))
        graph.node("Add", name, graph.constant(f"{name}.shift", self.shift))


class Shift(Layer):
    """Computes x - offset for each column in float32, as ONNX Runtime does. offset: float32 [columns]."""

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the offset from x [batch, columns]. The result has the same shape as x."""
        return x - self.offset

    def add_nodes(self, graph: Graph, name: str) -> None:
        """Add a Sub."""
        graph.node("Sub", name, graph.constant(f"{name}.offset", self.offset))


class Blocks(Layer):
    """Several Dense layers that run side by side, one for each member of an ensemble.

    Each Dense layer reads only the columns of its own member, so the layers together are one Dense layer with a
    block-diagonal weight.
    """

    def __init__(self, members: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs of all members, in order] to [batch, outputs of all members, in order]."""
        parts = zip(self.members, x.chunk(len(self.members), 1), strict=True)
        return torch.cat([member(part) for member, part in parts], 1)

    @property
    def columns(self) -> int:
        """The number of outputs of all members."""
        return sum(cast(nn.Linear, member).out_features for member in self.members)

    def add_nodes(self, graph: Graph, name: str) -> None:
        """Add a Split, one Gemm per member, and a Concat."""
        inputs = graph.split(f"{name}.of", len(self.members))
        outputs = []
        for part, (member, graph.value) in enumerate(zip(self.members, inputs, strict=True)):
            outputs.append(graph.dense(f"{name}.{part}", cast(nn.Linear, member)))
        graph.concatenate(name, outputs)


class Mean(nn.Module):
    """The mean of the outputs of several networks for the same input: the logits or the value of an ensemble."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, features] to [batch, outputs]."""
        return torch.stack([member(x) for member in self.members]).mean(0)


def is_activation(module: nn.Module) -> bool:
    """Whether `module` is one of `ACTIVATIONS`. An activation maps each number independently of the other numbers."""
    return type(module) in _ADD_NODES


def add_nodes(graph: Graph, name: str, module: nn.Module) -> bool:
    """Add the nodes of a Dense, an activation or a `Layer` to `graph`. Return False for any other module."""
    if type(module) is nn.Linear:
        graph.dense(name, module)
    elif is_activation(module):
        _ADD_NODES[type(module)](graph, name, module)
    elif isinstance(module, Layer):
        module.add_nodes(graph, name)
    else:
        return False
    return True
