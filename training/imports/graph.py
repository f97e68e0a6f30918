"""Holds the graph of an imported model. The folding rules change this graph.

The graph knows which nodes read each value, and records every fold for the report.

The module contains no folding rules.
"""

from __future__ import annotations

from collections.abc import Iterator

from foldserve.service.bundle import Folding
from foldserve.training.imports.form import INPUT, Network, Node
from foldserve.training.imports.layers import Layer


class Graph:
    """The nodes of a network, and the nodes that read each value. The folding rules change the nodes.

    members: for each node, the names of the original layers that are combined in this node.
    """

    def __init__(self, network: Network) -> None:
        self.features, self.output = network.features, network.output
        self.nodes = {node.name: node for node in network.nodes}
        self.widths = network.widths()
        self.report: list[Folding] = []
        self.members: dict[str, tuple[str, ...]] = {name: (name,) for name in self.nodes}
        self._readers: dict[str, list[str]] = {name: [] for name in (INPUT, *self.nodes)}
        for node in network.nodes:
            for name in node.inputs:
                self._readers[name].append(node.name)

    def layer(self, name: str) -> Layer | None:
        """Return the layer that computes the value `name`; None for the input."""
        node = self.nodes.get(name)
        return None if node is None else node.layer

    def readers(self, name: str) -> list[str]:
        """Return the names of the nodes that read the value `name`.

        A node that reads the value twice is listed twice.
        """
        return self._readers[name]

    def has_single_reader(self, name: str) -> bool:
        """Whether exactly one node reads the value, and this node reads it only once.

        For the input and the output of the network, the function returns False.
        """
        return len(self._readers[name]) == 1 and name != self.output and name != INPUT

    def replace(self, name: str, layer: Layer, *inputs: str) -> None:
        """Replace the layer and the inputs of the node `name`.

        If no node reads a former input any more, the node of this input is removed.
        """
        old = self.nodes[name].inputs
        self.nodes[name] = Node(name, layer, inputs)
        self.widths[name] = layer.columns(*(self.widths[each] for each in inputs))
        for each in inputs:
            self._readers[each].append(name)
        for each in old:
            self._release(each, name)

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Add a node under a name that is not taken, and return this name."""
        while name in self._readers:
            name += "_"
        self.nodes[name] = Node(name, layer, inputs)
        self.members[name] = (name,)
        self._readers[name] = []
        self.widths[name] = layer.columns(*(self.widths[each] for each in inputs))
        for each in inputs:
            self._readers[each].append(name)
        return name

    def bypass(self, name: str, value: str) -> None:
        """Make every node that reads `name` read `value` instead, and remove the node `name`."""
        for reader in self._readers[name]:
            node = self.nodes[reader]
            inputs = tuple(value if each == name else each for each in node.inputs)
            self.nodes[reader] = Node(reader, node.layer, inputs)
        self._readers[value] += self._readers[name]
        self._readers[name] = []
        if self.output == name:
            self.output = value
        self._remove(name)

    def _release(self, value: str, reader: str) -> None:
        self._readers[value].remove(reader)
        if value in self.nodes and not self._readers[value] and value != self.output:
            self._remove(value)

    def _remove(self, name: str) -> None:
        # The loop uses a stack, because a chain of nodes can be too long for a recursion.
        removed = [name]
        while removed:
            node = self.nodes.pop(removed.pop())
            for each in node.inputs:
                self._readers[each].remove(node.name)
                if each in self.nodes and not self._readers[each] and each != self.output:
                    removed.append(each)

    def note(self, name: str, rule: str, into: str) -> None:
        """Report that the original layers of the node `name` were folded into the node `into`."""
        self.report += [Folding(layer=member, rule=rule, into=into) for member in self.members[name]]

    def sorted(self) -> Iterator[Node]:
        """Yield each node after the nodes that it reads."""
        waiting = {name: len(set(node.inputs) - {INPUT}) for name, node in self.nodes.items()}
        ready = [name for name in reversed(self.nodes) if not waiting[name]]
        while ready:
            name = ready.pop()
            yield self.nodes[name]
            for reader in reversed(dict.fromkeys(self._readers[name])):
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
