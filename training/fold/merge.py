"""Merging: the folded members of an ensemble -> one chain that gives the mean of their outputs.

A mean is affine, so it folds as well. The members' first Dense layers read the same input and become one of all their
units; the last ones become one whose product is already the mean; those between stay apart, side by side. Pure, as
folding is.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold.fold import Fold, Folded, dense_layer, fold
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import Blocks, Shift
from foldserve.training.network.mlp import ACTIVATIONS


def fold_mean(networks: Sequence[nn.Sequential]) -> Folded:
    """Fold each of `networks`, chains of one architecture in eval mode, and merge them into the mean of their outputs.

    Raises `FoldError`, naming the layer, for what can't be folded or merged.
    """
    folded = [fold(network) for network in networks]
    if len(folded) == 1:
        return folded[0]
    chains = [list(each.network.named_children()) for each in folded]
    # A layer's repr has its widths and options.
    if len({tuple((name, repr(layer)) for name, layer in chain) for chain in chains}) > 1:
        raise FoldError(chains[0][0][0], "the members of an ensemble have different layers")
    dense = [name for name, layer in chains[0] if isinstance(layer, nn.Linear)]
    report: list[Fold] = []
    merged = OrderedDict[str, nn.Module]()
    for alike in zip(*chains, strict=True):
        name, layers = alike[0][0], [layer for _, layer in alike]
        if name not in dense:
            merged[name] = _shared(name, layers)
            continue
        merged[name], rule = _merged(layers, first=name == dense[0], last=name == dense[-1])
        report.append(Fold(f"{name} of {len(networks)} members", rule, name))
    # What was folded in one member was folded in each.
    return Folded(nn.Sequential(merged).eval(), (*folded[0].report, *report))


def _merged(layers: Sequence[nn.Module], *, first: bool, last: bool) -> tuple[nn.Module, str]:
    members = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weights, biases = [m.weight.double() for m in members], [m.bias.double() for m in members]
    count = len(members)
    if first and last:
        return dense_layer(sum(weights, torch.zeros(())) / count, sum(biases, torch.zeros(())) / count), "the mean"
    if first:
        return dense_layer(torch.cat(weights), torch.cat(biases)), "stacked: W' = [W1; W2; ...]"
    if last:
        return dense_layer(
            torch.cat(weights, 1) / count, sum(biases, torch.zeros(())) / count
        ), "the mean: W' = [W1, W2, ...] / K, b' = mean of b"
    return Blocks(copy.deepcopy(members)), "side by side"


def _shared(name: str, layers: Sequence[nn.Module]) -> nn.Module:
    """Give the one layer that stands for all: an activation, or what comes before the first Dense and is the same."""
    states = [layer.state_dict() for layer in layers]
    same = all(
        torch.allclose(value, state[key], rtol=0, atol=0, equal_nan=True)
        for state in states[1:]
        for key, value in states[0].items()
    )
    if not same or not isinstance(layers[0], (Encode, Shift, *ACTIVATIONS.values())):
        raise FoldError(name, "it differs from one member of the ensemble to the other")
    return copy.deepcopy(layers[0])
