"""Merging: turns the folded members of an ensemble into one chain that computes the mean of their outputs.

The mean of the outputs is an affine map, so the mean folds into the last Dense layers. The first Dense layers of all
members read the same input, so their weights are stacked into one Dense. The last Dense layers of the members become
one Dense, whose output is the mean. The Dense layers between the first and the last are not combined: each member of
the ensemble keeps its own. Merging never changes the networks that are passed to it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold.fold import Fold, Folded, fold, make_dense
from foldserve.training.network.layers import Blocks, Layer, is_activation


def fold_mean(networks: Sequence[nn.Sequential]) -> Folded:
    """Fold each of `networks`, and merge them into one chain that computes the mean of their outputs.

    All networks must be chains of the same architecture in eval mode.

    Raises `FoldError` with the name of the layer that can't be folded or merged.
    """
    folded = [fold(network) for network in networks]
    if len(folded) == 1:
        return folded[0]
    chains = [list(each.network.named_children()) for each in folded]
    # The text `repr(layer)` shows the widths and the options of a layer.
    if len({tuple((name, repr(layer)) for name, layer in chain) for chain in chains}) > 1:
        raise FoldError(chains[0][0][0], "the members of an ensemble have different layers")
    dense = [name for name, layer in chains[0] if isinstance(layer, nn.Linear)]
    report: list[Fold] = []
    merged = OrderedDict[str, nn.Module]()
    for counterparts in zip(*chains, strict=True):
        name, layers = counterparts[0][0], [layer for _, layer in counterparts]
        if name not in dense:
            merged[name] = _share(name, layers, on_input=not dense or dense[0] not in merged)
            continue
        merged[name], rule = _merge_dense(layers, first=name == dense[0], last=name == dense[-1])
        report.append(Fold(f"{name} of {len(networks)} members", rule, name))
    # All members have the same layers, so the report of one member holds for all members.
    return Folded(nn.Sequential(merged).eval(), (*folded[0].report, *report))


def _merge_dense(layers: Sequence[nn.Module], *, first: bool, last: bool) -> tuple[nn.Module, str]:
    members = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weights, biases = [m.weight.double() for m in members], [m.bias.double() for m in members]
    count = len(members)
    mean_bias = sum(biases, torch.zeros(())) / count
    if first and last:
        return make_dense(sum(weights, torch.zeros(())) / count, mean_bias), "the mean"
    if first:
        return make_dense(torch.cat(weights), torch.cat(biases)), "stacked: W' = [W1; W2; ...]"
    if last:
        rule = "the mean: W' = [W1, W2, ...] / K, b' = mean of b"
        return make_dense(torch.cat(weights, 1) / count, mean_bias), rule
    return Blocks(copy.deepcopy(members)), "side by side"


def _share(name: str, layers: Sequence[nn.Module], *, on_input: bool) -> nn.Module:
    """Return one layer that replaces the corresponding layers of all members.

    The layers must have the same values in all members, and must be activations or layers that read the input.
    """
    states = [layer.state_dict() for layer in layers]
    same = all(
        torch.allclose(value, state[key], rtol=0, atol=0, equal_nan=True)
        for state in states[1:]
        for key, value in states[0].items()
    )
    if not same or not (is_activation(layers[0]) or (on_input and isinstance(layers[0], Layer))):
        raise FoldError(name, "it differs from one member of the ensemble to the other")
    return copy.deepcopy(layers[0])
