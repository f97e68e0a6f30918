"""The batch-norm MLP: which layers stand in which order, and nothing about how they are trained or folded.

A network is a flat `nn.Sequential` of named leaf layers. A chain is all that folding has to understand, and a
layer's name is how every report and every error speaks of it.
"""

from __future__ import annotations

from collections import OrderedDict

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


def build_mlp(features: int, outputs: int, architecture: Architecture) -> nn.Sequential:
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
