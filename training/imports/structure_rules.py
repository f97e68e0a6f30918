"""The rules that change the structure of an imported graph. The rules move more affine steps next to a Dense.

The rules join selections of columns, nested Concat and Add layers, branches of an ensemble, and functions that
exporters write as several operators. A rule gets a graph and one of its nodes. A rule returns True if it has changed
the graph. No rule changes the function that the graph computes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from foldserve.training.imports.affine_rules import Rule, slope_and_term
from foldserve.training.imports.form import Node
from foldserve.training.imports.graph import Graph
from foldserve.training.imports.layers import (
    Activation,
    Add,
    Affine,
    Array,
    Concat,
    Dense,
    Multiply,
    OneHot,
    Select,
    Softmax,
)


def flatten(graph: Graph, node: Node) -> bool:
    """Merge a Concat into the Concat that reads it, and an Add into the Add that reads it."""
    layer = node.layer
    if not isinstance(layer, Concat | Add):
        return False
    wide = graph.widths[node.name]
    nested = [
        each
        for each in node.inputs
        if type(graph.layer(each)) is type(layer)
        and graph.has_single_reader(each)
        and (isinstance(layer, Concat) or graph.widths[each] == wide)
    ]
    if not nested:
        return False
    inputs = [name for each in node.inputs for name in (graph.nodes[each].inputs if each in nested else (each,))]
    graph.replace(node.name, layer, *inputs)
    return True


def join_selections(graph: Graph, node: Node) -> bool:
    """Reduce selections of columns: compose them, join neighbours in a Concat, and reorder the weights of a Dense."""
    layer = node.layer
    if isinstance(layer, Select):
        return _move_selection(graph, node, layer)
    if isinstance(layer, Dense):
        selected = graph.layer(node.inputs[0])
        if not isinstance(selected, Select):
            return False
        source = graph.nodes[node.inputs[0]].inputs[0]
        if sorted(selected.source) != list(range(graph.widths[source])):
            return False  # a Dense on all columns would have zero weights for the columns that are not selected
        weight = np.empty_like(layer.weight)
        weight[:, selected.source] = layer.weight
        graph.replace(node.name, Dense(weight, layer.bias), source)
        return True
    if not isinstance(layer, Concat):
        return False
    return _join_neighbours(graph, node)


def _move_selection(graph: Graph, node: Node, layer: Select) -> bool:
    before = node.inputs[0]
    inner = graph.layer(before)
    if isinstance(inner, Select):
        graph.replace(node.name, Select(inner.source[layer.source]), *graph.nodes[before].inputs)
        return True
    if not graph.has_single_reader(before):
        return False
    if isinstance(inner, Dense):
        graph.replace(before, Dense(inner.weight[layer.source], inner.bias[layer.source]), *graph.nodes[before].inputs)
        graph.bypass(node.name, before)
        return True
    if isinstance(inner, Affine):
        members, source = graph.members[before], graph.nodes[before].inputs[0]
        selected = graph.add(f"{node.name}.columns", layer, source)
        taken = layer.source
        graph.replace(node.name, Affine(inner.scale[taken], inner.offset[taken], inner.shift[taken]), selected)
        graph.members[node.name] = members
        return True
    return False


def _join_neighbours(graph: Graph, node: Node) -> bool:
    """Join neighbouring inputs of a Concat that select columns of the same value."""

    def selection(name: str) -> tuple[str, list[int]]:
        layer = graph.layer(name)
        if isinstance(layer, Select):
            return graph.nodes[name].inputs[0], layer.source.tolist()
        return name, list(range(graph.widths[name]))

    joined: list[tuple[str, list[int], list[str]]] = []
    for each in node.inputs:
        source, columns = selection(each)
        if joined and joined[-1][0] == source:
            joined[-1][1].extend(columns)
            joined[-1][2].append(each)
        else:
            joined.append((source, columns, [each]))
    if len(joined) == len(node.inputs):
        return False
    inputs = [
        names[0] if len(names) == 1 else graph.add(f"{names[0]}.columns", Select(np.array(columns)), source)
        for source, columns, names in joined
    ]
    graph.replace(node.name, Concat(), *inputs)
    return True


def join_one_hots(graph: Graph, node: Node) -> bool:
    """Join two neighbouring inputs of a Concat that encode categories of the same value."""
    if not isinstance(node.layer, Concat):
        return False
    for place, (one, other) in enumerate(pairwise(node.inputs)):
        first, second = graph.layer(one), graph.layer(other)
        if not (isinstance(first, OneHot) and isinstance(second, OneHot)):
            continue
        source = graph.nodes[one].inputs
        if source != graph.nodes[other].inputs or not (graph.has_single_reader(one) and graph.has_single_reader(other)):
            continue
        both = OneHot(np.append(first.source, second.source), np.append(first.code, second.code))
        joined = graph.add(one, both, *source)
        graph.replace(node.name, Concat(), *node.inputs[:place], joined, *node.inputs[place + 2 :])
        return True
    return False


def add_dense_branches(graph: Graph, node: Node) -> bool:
    """Turn a sum of Dense layers into one Dense.

    The weights of layers that read the same value are added. If the layers read different values, these values are put
    side by side, and the new Dense reads the result.
    """
    if type(node.layer) is not Add:
        return False
    columns = graph.widths[node.name]
    branches = {
        each: layer
        for each in node.inputs
        if isinstance(layer := graph.layer(each), Dense) and graph.has_single_reader(each)
        if graph.widths[each] == columns
    }
    if len(branches) < 2:
        return False
    weights: dict[str, Array] = {}
    for each, layer in branches.items():
        source = graph.nodes[each].inputs[0]
        weights[source] = weights[source] + layer.weight if source in weights else layer.weight
        graph.note(each, "joined: W' = [W1, W2, ...], b' = sum of b", node.name)
    dense = Dense(
        np.concatenate(list(weights.values()), 1), sum((d.bias for d in branches.values()), np.zeros(columns))
    )
    rest = [each for each in node.inputs if each not in branches]
    read = next(iter(weights)) if len(weights) == 1 else graph.add(f"{node.name}.branches", Concat(), *weights)
    if rest:
        graph.replace(node.name, node.layer, graph.add(f"{node.name}.dense", dense, read), *rest)
    else:
        graph.replace(node.name, dense, read)
    return True


def stack_siblings(graph: Graph, node: Node) -> bool:
    """Stack Dense layers that read the same value, if the same function follows each layer.

    After this change, the network applies the function only once, and each branch selects its own columns of the
    result.
    """
    function = node.layer
    if not isinstance(function, Activation) or not isinstance(graph.layer(node.inputs[0]), Dense):
        return False
    source = graph.nodes[node.inputs[0]].inputs[0]
    found = []
    for dense in dict.fromkeys(graph.readers(source)):
        layer = graph.layer(dense)
        if isinstance(layer, Dense) and graph.has_single_reader(dense):
            after = graph.nodes[graph.readers(dense)[0]]
            if isinstance(after.layer, Activation) and _same_function(after.layer, function):
                found.append((dense, layer, after.name))
    if len(found) < 2 or any(name == graph.output for _, _, name in found):
        return False
    weight, bias = (np.concatenate([getattr(layer, part) for _, layer, _ in found]) for part in ("weight", "bias"))
    stacked = graph.add(f"{found[0][0]}.stacked", Dense(weight, bias), source)
    applied = graph.add(f"{node.name}.stacked", function, stacked)
    start = 0
    for dense, layer, after_name in found:
        graph.note(dense, "stacked: W' = [W1; W2; ...]", stacked)
        graph.replace(after_name, Select(np.arange(start, start + len(layer.bias))), applied)
        start += len(layer.bias)
    return True


def _same_function(one: Activation, other: Activation) -> bool:
    return one.function == other.function and dict(one.parameters) == dict(other.parameters)


def join_gate(graph: Graph, node: Node) -> bool:
    """Replace x * sigmoid(x) by SiLU, and x * tanh(softplus(x)) by Mish."""
    if not isinstance(node.layer, Multiply) or len(node.inputs) != 2:
        return False
    for x, gate in (node.inputs, node.inputs[::-1]):
        layer = graph.layer(gate)
        if not isinstance(layer, Activation) or not graph.has_single_reader(gate):
            continue
        source = graph.nodes[gate].inputs[0]
        inner = graph.layer(source)
        if layer.function == "sigmoid" and source == x:
            graph.replace(node.name, Activation("silu"), x)
            return True
        is_softplus = isinstance(inner, Activation) and inner.function == "softplus"
        if layer.function == "tanh" and is_softplus and graph.nodes[source].inputs == (x,):
            graph.replace(node.name, Activation("mish"), x)
            return True
    return False


def join_binary(graph: Graph, node: Node) -> bool:
    """Replace [1 - sigmoid(z), sigmoid(z)] by softmax([0, z]).

    The new Dense for the logits then folds into the Dense before it.
    """
    if not isinstance(node.layer, Concat) or len(node.inputs) != 2:
        return False
    for place, (rest, positive) in enumerate((node.inputs, node.inputs[::-1])):
        layer, complement = graph.layer(positive), graph.layer(rest)
        is_sigmoid = isinstance(layer, Activation) and layer.function == "sigmoid" and graph.widths[positive] == 1
        if is_sigmoid and isinstance(complement, Affine) and graph.nodes[rest].inputs == (positive,):
            s, t = slope_and_term(complement)
            if s[0] == -1 and t[0] == 1:
                weight = np.array([[0.0], [1.0]] if place == 0 else [[1.0], [0.0]])
                graph.note(rest, "rewritten: [1 - sigmoid(z), sigmoid(z)] = softmax([0, z])", node.name)
                logits = graph.add(f"{node.name}.logits", Dense(weight, np.zeros(2)), graph.nodes[positive].inputs[0])
                graph.replace(node.name, Softmax(), logits)
                return True
    return False


STRUCTURE_RULES: tuple[Rule, ...] = (
    join_binary,
    join_gate,
    flatten,
    join_selections,
    join_one_hots,
    stack_siblings,
    add_dense_branches,
)
