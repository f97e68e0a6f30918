"""Folding of an imported graph: moves every affine step into the weights of the Dense next to it.

`fold` applies the rules again and again, until no rule changes the graph. Each rule is mathematically exact. No rule
moves a layer across a function that is not affine. All values are float64, and `write.py` rounds them to float32 once.
All arithmetic of folding is in the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from foldserve.service.bundle import Folding
from foldserve.training.imports.affine_rules import AFFINE_RULES
from foldserve.training.imports.form import Network, prune
from foldserve.training.imports.graph import Graph
from foldserve.training.imports.layers import Affine
from foldserve.training.imports.structure_rules import STRUCTURE_RULES

# The rules that change the structure come first, because they move affine maps next to a Dense.
RULES = (*STRUCTURE_RULES, *AFFINE_RULES)


@dataclass(frozen=True, eq=False)
class FoldedNetwork:
    """The folded network, and a report: one line for each layer of the original that was folded, dropped or kept."""

    network: Network
    report: tuple[Folding, ...]


def fold(network: Network) -> FoldedNetwork:
    """Fold every affine layer of `network`, and return a network that computes the same function."""
    graph = Graph(prune(network))
    changed = True
    while changed:
        changed = False
        for node in list(graph.sorted()):
            while node.name in graph.nodes and any(rule(graph, graph.nodes[node.name]) for rule in RULES):
                changed = True
    for node in graph.nodes.values():
        if isinstance(node.layer, Affine):
            graph.note(node.name, "kept: no Dense beside it", node.name)
    return FoldedNetwork(Network(graph.features, tuple(graph.sorted()), graph.output), tuple(graph.report))
