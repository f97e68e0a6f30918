"""The batch-norm MLP: its layers and their order. The module does not train or fold layers.

A network is a flat `nn.Sequential` of named layers. Folding needs a flat chain of layers. Reports and errors use the
names of the layers.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from foldserve.training.network.dropout import Dropout
from foldserve.training.network.layers import ACTIVATIONS
from foldserve.training.plan import Architecture


def build_mlp(features: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    """Build a network that maps [batch, features] to [batch, outputs].

    The network ends with a Dense layer, without a softmax, so it returns logits, or values in a regression.

    Layers are named `dense1`, `norm1`, `relu1`, `dropout1`, `dense2`, ...; a BN on the input is `norm0`. A Dense
    directly before a BN has no bias, because the BN subtracts the mean of its input. `eps` and `momentum` have the same
    meaning as in PyTorch. Keras's momentum of 0.99 corresponds to 0.01 here, and Keras's default epsilon is 1e-3.
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
