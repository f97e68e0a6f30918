"""The batch-norm MLP: which layers stand in which order, and nothing about how they are trained or folded.

A network is a flat `nn.Sequential` of named leaf layers. A chain is all that folding has to understand, and a
layer's name is how every report and every error speaks of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from foldserve.training.network.dropout import Dropout
from foldserve.training.plan import Activation, Architecture

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Affine(nn.Module):
    """x * scale + shift, column by column: a standardisation before the network, or its inverse after it.

    scale, shift: float64 [columns]. Both are buffers: they are computed from the data, not learned.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.double())
        self.register_buffer("shift", shift.double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, columns] to the same shape and dtype."""
        return (x * self.scale + self.shift).to(x.dtype)


class Mean(nn.Module):
    """The mean of what several networks give for the same input: an ensemble's logits, or its value."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, features] to [batch, outputs]."""
        return torch.stack([member(x) for member in self.members]).mean(0)


def mlp(features: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    """Build [batch, features] -> [batch, outputs], ending in a Dense layer: logits or a value, no softmax.

    Layers are named `dense1`, `norm1`, `relu1`, `dropout1`, `dense2`, ...; a BN on the input is `norm0`. A Dense
    that a BN follows directly has no bias, since the BN's mean would take it out again. `eps` and `momentum` are
    PyTorch's: Keras's momentum of 0.99 is 0.01 here, and its default epsilon 1e-3.
    """
    a = architecture
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if a.batch_norm and a.input_norm:
        layers["norm0"] = nn.BatchNorm1d(features, a.eps, a.momentum)
    width = features
    for i, units in enumerate(a.hidden, start=1):
        norm_first = a.batch_norm and a.placement == "pre"
        layers[f"dense{i}"] = nn.Linear(width, units, bias=not norm_first)
        if norm_first:
            layers[f"norm{i}"] = nn.BatchNorm1d(units, a.eps, a.momentum)
        layers[f"{a.activation}{i}"] = ACTIVATIONS[a.activation]()
        if a.batch_norm and not norm_first:
            layers[f"norm{i}"] = nn.BatchNorm1d(units, a.eps, a.momentum)
        if a.dropout:
            layers[f"dropout{i}"] = Dropout(a.dropout)
        width = units
    layers[f"dense{len(a.hidden) + 1}"] = nn.Linear(width, outputs)
    return nn.Sequential(layers)
