"""The batch-norm MLP: which layers stand in which order, and nothing about how they are trained or folded.

A network is a flat `nn.Sequential` of named leaf layers. A chain is all that folding has to understand, and a
layer's name is how every report and every error speaks of it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Placement = Literal["pre", "post"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class Architecture:
    """What the network is made of, whatever the table.

    hidden: the widths of the hidden Dense layers, first to last; () is a linear model.
    placement: `pre` is Dense - BN - activation, `post` is Dense - activation - BN.
    activation: a key of `ACTIVATIONS`.
    dropout: the probability of dropping a hidden unit, 0 <= dropout < 1.
    batch_norm: False leaves every BN out, to compare with.
    input_norm: a BN on the (standardised) input.
    eps: added to the variance under the root.
    momentum: the weight of the newest batch in the running statistics. Keras states the weight of the past
        instead: its `momentum=0.99` is 0.01 here, and its default `epsilon` is 1e-3, where PyTorch's is 1e-5.
    """

    hidden: tuple[int, ...] = (64, 64)
    placement: Placement = "pre"
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = True
    input_norm: bool = False
    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError("a hidden layer needs at least one unit")
        if self.placement not in ("pre", "post"):
            raise ValueError("placement is 'pre' or 'post'")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout is at least 0 and below 1")
        if not (self.eps > 0 and 0 < self.momentum <= 1):
            raise ValueError("eps is above 0, momentum above 0 and at most 1")


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


def mlp(features: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    """Build [batch, features] -> [batch, outputs], ending in a Dense layer: logits or a value, no softmax.

    Layers are named `dense1`, `norm1`, `relu1`, `dropout1`, `dense2`, ...; a BN on the input is `norm0`. A Dense
    that a BN follows directly has no bias, since the BN's mean would take it out again.
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
            layers[f"dropout{i}"] = nn.Dropout(a.dropout)
        width = units
    layers[f"dense{len(a.hidden) + 1}"] = nn.Linear(width, outputs)
    return nn.Sequential(layers)
