"""The rules that fold the affine steps of an imported graph.

Each rule moves one affine step of a graph. After each rule, the graph still computes the same function.

A rule gets a graph and one of its nodes. A rule returns True if it has changed the graph. A Dense computes W x + c, and
an affine map computes s * (x - m) + b = s * x + t for each column. The two main rules are the same as in
training/fold/fold.py:

    backward   affine after the Dense     (diag(s) W) x + (s * c + t)
    forward    affine before the Dense    (W diag(s)) x + (c + W t)

Other rules move an affine map next to a Dense, either across a Concat, or across an Add into every branch. Two
consecutive Dense layers become one Dense if the new Dense has few weights, or no more weights than the two layers
together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foldserve.training.fold.fold import MAX_FOLDED_OFFSET
from foldserve.training.imports.form import INPUT, Node
from foldserve.training.imports.graph import Graph
from foldserve.training.imports.layers import (
    Add,
    Affine,
    Array,
    Concat,
    Dense,
    Impute,
    Offset,
    Select,
)

Rule = Callable[[Graph, Node], bool]

_BACKWARD = "backward: W' = diag(s) W, b' = s*b + t"
_FORWARD = "forward: W' = W diag(s), b' = b + W t"
# A Dense with at most `_FEW` weights takes less time than starting one more operator.
_FEW = 1024
_COMPOSED = "composed: W' = W2 W1, b' = W2 b1 + b2"


def _is_identity(layer: Affine) -> bool:
    return bool((layer.scale == 1).all() and (layer.shift == layer.offset).all())


def slope_and_term(layer: Affine) -> tuple[Array, Array]:
    """Return s and t of the affine map s * x + t that `layer` computes."""
    return layer.scale, layer.shift - layer.scale * layer.offset


def drop_identity(graph: Graph, node: Node) -> bool:
    """Remove a layer that returns its input unchanged."""
    layer = node.layer
    if isinstance(layer, Affine) and _is_identity(layer):
        graph.note(node.name, "dropped: changes nothing", "-")
    elif isinstance(layer, Select):
        columns = graph.widths[node.inputs[0]]
        if len(layer.source) != columns or (layer.source != np.arange(columns)).any():
            return False
    elif not (isinstance(layer, Concat | Add) and len(node.inputs) == 1):
        return False
    if node.name == graph.output and node.inputs[0] == INPUT:
        return False
    graph.bypass(node.name, node.inputs[0])
    return True


def compose_affine(graph: Graph, node: Node) -> bool:
    """Compose an affine layer with the affine layer before it, by the formula in training/fold/fold.py."""
    first = graph.layer(node.inputs[0])
    second = node.layer
    if not (isinstance(second, Affine) and isinstance(first, Affine)):
        return False
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        further = abs(second.scale * second.offset) > abs(first.scale * first.offset)
        d = np.where(further, (second.offset - first.shift) / first.scale, 0.0)
    d = np.where(np.isfinite(d), d, 0.0)
    shift = second.scale * (first.scale * d + first.shift - second.offset) + second.shift
    before = node.inputs[0]
    graph.members[node.name] = (*graph.members[before], *graph.members[node.name])
    composed = Affine(second.scale * first.scale, first.offset + d, shift)
    graph.replace(node.name, composed, *graph.nodes[before].inputs)
    return True


def fold_backward(graph: Graph, node: Node) -> bool:
    """Fold an affine layer into the Dense before it.

    If an affine layer follows an Add, fold the affine layer into the last Dense of each branch of the Add.
    """
    layer, before = node.layer, node.inputs[0]
    if not isinstance(layer, Affine) or not graph.has_single_reader(before):
        return False
    s, t = slope_and_term(layer)
    source = graph.layer(before)
    if isinstance(source, Dense):
        _scale_outputs(graph, before, s, t)
        graph.note(node.name, _BACKWARD, before)
    elif type(source) is Add and _are_dense_branches(graph, graph.nodes[before]):
        branches = graph.nodes[before].inputs
        for i, branch in enumerate(branches):
            _scale_outputs(graph, branch, s, t if i == 0 else 0 * t)
        graph.note(node.name, "backward into every branch: W' = diag(s) W", ", ".join(branches))
    else:
        return False
    graph.bypass(node.name, before)
    return True


def _scale_outputs(graph: Graph, name: str, s: Array, t: Array) -> None:
    dense = graph.nodes[name]
    if isinstance(dense.layer, Dense):
        graph.replace(name, Dense(s[:, None] * dense.layer.weight, s * dense.layer.bias + t), *dense.inputs)


def _are_dense_branches(graph: Graph, node: Node) -> bool:
    """Whether every input of an Add is a Dense that has as many output columns as the Add and no other reader."""
    return all(
        isinstance(graph.layer(each), Dense)
        and graph.has_single_reader(each)
        and graph.widths[each] == graph.widths[node.name]
        for each in node.inputs
    )


def fold_forward(graph: Graph, node: Node) -> bool:
    """Fold an affine layer into the Dense after it.

    If an input has a large offset, a separate layer subtracts the offset first.
    """
    dense, before = node.layer, node.inputs[0]
    affine = graph.layer(before)
    if not (isinstance(dense, Dense) and isinstance(affine, Affine)):
        return False
    source = graph.nodes[before].inputs[0]
    offset = _large_offset(affine) if _is_raw(graph, source) else np.zeros(0)
    if offset.any():
        kept = _add_offset(graph, source, offset)
        graph.note(before, "offset subtracted first: x - mean", kept)
        graph.replace(before, Affine(affine.scale, affine.offset - offset, affine.shift), kept)
        return True
    s, t = slope_and_term(affine)
    graph.note(before, _FORWARD, node.name)
    graph.replace(node.name, Dense(dense.weight * s, dense.bias + dense.weight @ t), source)
    return True


def _add_offset(graph: Graph, source: str, offset: Array) -> str:
    """Add a layer that subtracts `offset` from the value `source`, and return its name.

    If the graph already has a layer with this offset, as in an ensemble, return the name of that layer.
    """
    for reader in graph.readers(source):
        layer = graph.layer(reader)
        if isinstance(layer, Offset) and np.array_equal(layer.offset, offset):
            return reader
    return graph.add("offset", Offset(offset), source)


def _large_offset(layer: Affine) -> Array:
    """Return the float32 offset of each column whose offset is too large to be folded, and 0 for other columns."""
    with np.errstate(over="ignore"):
        offset: Array = layer.offset.astype(np.float32).astype(np.float64)
    large = (abs(layer.scale * layer.offset) > MAX_FOLDED_OFFSET) & np.isfinite(offset)
    return np.where(large, offset, 0.0)


def _is_raw(graph: Graph, name: str) -> bool:
    """Whether a value consists only of input columns, with or without replacement of missing values."""
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each == INPUT:
            continue
        if not isinstance(graph.layer(each), Select | Impute | Concat):
            return False
        waiting += graph.nodes[each].inputs
    return True


def compose_dense(graph: Graph, node: Node) -> bool:
    """Compose a Dense with the Dense before it, unless this makes the weights larger (see `_grows`)."""
    second, before = node.layer, node.inputs[0]
    first = graph.layer(before)
    if not (isinstance(second, Dense) and isinstance(first, Dense)) or not graph.has_single_reader(before):
        return False
    if _grows(second.weight, first.weight):
        return False
    composed = Dense(second.weight @ first.weight, second.weight @ first.bias + second.bias)
    graph.note(before, _COMPOSED, node.name)
    graph.replace(node.name, composed, *graph.nodes[before].inputs)
    return True


def _grows(second: Array, first: Array) -> bool:
    """Whether the product of two weight matrices is large, and has more numbers than both matrices together."""
    product = len(second) * first.shape[1]
    return bool(product > second.size + first.size and product > _FEW)


def lift_over_concat(graph: Graph, node: Node) -> bool:
    """Replace affine layers before a Concat by one affine layer after it.

    The rule applies only if every reader of the Concat is a Dense or an affine layer.
    """
    if not isinstance(node.layer, Concat) or node.name == graph.output:
        return False
    lifted = [e for e in node.inputs if isinstance(graph.layer(e), Affine) and graph.has_single_reader(e)]
    if not lifted or not all(isinstance(graph.layer(each), Dense | Affine) for each in graph.readers(node.name)):
        return False
    parts, inputs = [], []
    for each in node.inputs:
        layer, columns = graph.layer(each), graph.widths[each]
        if each in lifted and isinstance(layer, Affine):
            parts.append((layer.scale, layer.offset, layer.shift))
            inputs.append(graph.nodes[each].inputs[0])
        else:
            parts.append((np.ones(columns), np.zeros(columns), np.zeros(columns)))
            inputs.append(each)
    members = tuple(member for each in lifted for member in graph.members[each])
    joined = graph.add(f"{node.name}.columns", Concat(), *inputs)
    graph.replace(node.name, Affine(*(np.concatenate(column) for column in zip(*parts, strict=True))), joined)
    graph.members[node.name] = members
    return True


def fold_through_concat(graph: Graph, node: Node) -> bool:
    """Compose a Dense after a Concat with the Dense layers before the Concat.

    Each input of the Concat is multiplied by its own part of the weights. If a Dense computes the input, the part is
    composed with this Dense, unless this makes the weights larger (see `_grows`).
    """
    dense, before = node.layer, node.inputs[0]
    if not (isinstance(dense, Dense) and isinstance(graph.layer(before), Concat) and graph.has_single_reader(before)):
        return False
    weights, bias, inputs, start, changed = [], dense.bias, [], 0, False
    for each in graph.nodes[before].inputs:
        part = dense.weight[:, start : start + graph.widths[each]]
        start += graph.widths[each]
        inner = graph.layer(each)
        if not (isinstance(inner, Dense) and graph.has_single_reader(each) and not _grows(part, inner.weight)):
            weights.append(part)
            inputs.append(each)
            continue
        weights.append(part @ inner.weight)
        bias = bias + part @ inner.bias
        inputs.append(graph.nodes[each].inputs[0])
        graph.note(each, _COMPOSED, node.name)
        changed = True
    if changed:
        joined = graph.add(f"{before}.columns", Concat(), *inputs)
        graph.replace(node.name, Dense(np.concatenate(weights, 1), bias), joined)
    return changed


AFFINE_RULES: tuple[Rule, ...] = (
    drop_identity,
    compose_affine,
    fold_backward,
    lift_over_concat,
    fold_through_concat,
    fold_forward,
    compose_dense,
)
