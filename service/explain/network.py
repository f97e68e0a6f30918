"""Evaluates a network in float64 and differentiates one output of each row, node by node.

Each operation has a method for the forward pass and a method for the backward pass. The backward pass also computes the
share of the constants, which is the part of the output that comes from constants. If all activations of a network are
piecewise linear, the network is an affine map near each row. The output of a piecewise linear network is the sum of
slope * input over all inputs, plus the share of the constants. This module does not depend on the preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldserve.service.explain.curves import CURVES, Curve
from foldserve.service.explain.graph import Constant, Graph, Node

Floats = npt.NDArray[np.float64]
Values = dict[str, Floats]


@dataclass(frozen=True)
class _Product:
    """The operation y = alpha * x @ weight + bias. weight: float64 [inputs, outputs]; bias: float64 [outputs]."""

    x: str
    y: str
    weight: Floats
    bias: Floats
    is_piecewise_linear = True

    def forward(self, values: Values) -> None:
        values[self.y] = values[self.x] @ self.weight + self.bias

    def backward(self, _: Values, slopes: Values) -> Floats | float:
        slope = slopes[self.y]
        _add(slopes, self.x, slope @ self.weight.T)
        share: Floats = slope @ self.bias
        return share


@dataclass(frozen=True)
class _Activation:
    """An activation: a curve that is applied to each number separately."""

    x: str
    y: str
    curve: Curve

    @property
    def is_piecewise_linear(self) -> bool:
        return self.curve.is_piecewise_linear

    def forward(self, values: Values) -> None:
        values[self.y] = self.curve.value(values[self.x])

    def backward(self, values: Values, slopes: Values) -> Floats | float:
        _add(slopes, self.x, slopes[self.y] * self.curve.slope(values[self.x]))
        return 0.0


@dataclass(frozen=True)
class _Scale:
    """The operation y = x * factor + shift. factor and shift have one number for each column, or one number for all
    columns.
    """

    x: str
    y: str
    factor: Floats
    shift: Floats
    is_piecewise_linear = True

    def forward(self, values: Values) -> None:
        values[self.y] = values[self.x] * self.factor + self.shift

    def backward(self, _: Values, slopes: Values) -> Floats | float:
        slope = slopes[self.y]
        _add(slopes, self.x, slope * self.factor)
        share: Floats = (slope * self.shift).sum(1)
        return share


@dataclass(frozen=True)
class _Sum:
    """The operation y = a + b, as in a residual connection."""

    a: str
    b: str
    y: str
    is_piecewise_linear = True

    def forward(self, values: Values) -> None:
        values[self.y] = values[self.a] + values[self.b]

    def backward(self, _: Values, slopes: Values) -> Floats | float:
        _add(slopes, self.a, slopes[self.y])
        _add(slopes, self.b, slopes[self.y])
        return 0.0


@dataclass(frozen=True)
class _Times:
    """The operation y = a * b, as in the activation SiLU."""

    a: str
    b: str
    y: str
    is_piecewise_linear = False

    def forward(self, values: Values) -> None:
        values[self.y] = values[self.a] * values[self.b]

    def backward(self, values: Values, slopes: Values) -> Floats | float:
        _add(slopes, self.a, slopes[self.y] * values[self.b])
        _add(slopes, self.b, slopes[self.y] * values[self.a])
        return 0.0


@dataclass(frozen=True)
class _Split:
    """Cuts the columns into parts of equal width. An ensemble has one part for each member."""

    x: str
    parts: tuple[str, ...]
    is_piecewise_linear = True

    def forward(self, values: Values) -> None:
        values.update(zip(self.parts, np.split(values[self.x], len(self.parts), axis=1), strict=True))

    def backward(self, _: Values, slopes: Values) -> Floats | float:
        _add(slopes, self.x, np.concatenate([slopes[part] for part in self.parts], axis=1))
        return 0.0


@dataclass(frozen=True)
class _Concat:
    """Puts the columns of several tensors side by side."""

    parts: tuple[str, ...]
    y: str
    is_piecewise_linear = True

    def forward(self, values: Values) -> None:
        values[self.y] = np.concatenate([values[part] for part in self.parts], axis=1)

    def backward(self, values: Values, slopes: Values) -> Floats | float:
        start = 0
        for part in self.parts:
            end = start + values[part].shape[1]
            _add(slopes, part, slopes[self.y][:, start:end])
            start = end
        return 0.0


_Operation = _Product | _Activation | _Scale | _Sum | _Times | _Split | _Concat


def _add(slopes: Values, name: str, slope: Floats) -> None:
    slopes[name] = slopes[name] + slope if name in slopes else slope


class Network:
    """The network of one model, from the encoded columns to the logits or the value.

    is_piecewise_linear: whether the network is affine around each row.
    """

    def __init__(self, graph: Graph) -> None:
        """Raises `NotExplainable` for a node that is not known."""
        self._input, self._output = graph.network[0].inputs[0], graph.output
        self._operations = [_operation(node, graph.constants) for node in graph.network]
        self.is_piecewise_linear = all(operation.is_piecewise_linear for operation in self._operations)

    def forward(self, columns: Floats) -> Values:
        """Run the network on float64 [rows, columns], and return a mapping from the name of each tensor to its
        values.
        """
        values = {self._input: columns}
        for operation in self._operations:
            operation.forward(values)
        return values

    def outputs(self, values: Values) -> Floats:
        """Return the logits or the value, float64 [rows, outputs], from the tensors that `forward` returned."""
        return values[self._output]

    def backward(self, values: Values, chosen: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Differentiate output `chosen[i]` of each row i.

        Returns the slopes, float64 [rows, columns], and the share of the constants, float64 [rows].
        """
        start = np.zeros_like(self.outputs(values))
        start[np.arange(len(chosen)), chosen] = 1.0
        slopes = {self._output: start}
        share: Floats = np.zeros(len(chosen))
        for operation in reversed(self._operations):
            share = share + operation.backward(values, slopes)
        return slopes[self._input], share


def _operation(node: Node, constants: Mapping[str, Constant]) -> _Operation:
    """Return the operation that computes a node. Raises `NotExplainable`."""
    create = _CREATORS.get(node.operator)
    if create is None:
        raise node.refuse()
    return create(node, constants)


def _product(node: Node, constants: Mapping[str, Constant]) -> _Operation:
    attributes = node.attributes
    weight = constants.get(node.inputs[1])
    if weight is None or weight.ndim != 2 or attributes.get("transA"):
        raise node.refuse("its weight is not a constant matrix")
    weight = weight.astype(np.float64) * attributes.get("alpha", 1.0)
    weight = np.ascontiguousarray(weight.T if attributes.get("transB") else weight)
    bias: Floats = np.zeros(weight.shape[1])
    if len(node.inputs) > 2 and node.inputs[2]:
        if node.inputs[2] not in constants:
            raise node.refuse("its bias is not a constant")
        bias = bias + constants[node.inputs[2]].astype(np.float64).reshape(-1) * attributes.get("beta", 1.0)
    return _Product(node.inputs[0], node.outputs[0], weight, bias)


def _arithmetic(node: Node, constants: Mapping[str, Constant]) -> _Operation:
    (a, b), y = node.inputs, node.outputs[0]
    if a in constants and node.operator in ("Add", "Mul"):
        a, b = b, a
    if b not in constants:
        if node.operator == "Add":
            return _Sum(a, b, y)
        if node.operator == "Mul":
            return _Times(a, b, y)
        raise node.refuse("its second input is not a constant")
    if a in constants:
        raise node.refuse("its inputs are constants")
    number = np.asarray(constants[b], np.float64)
    one, zero = np.ones_like(number), np.zeros_like(number)
    factor, shift = {
        "Add": (one, number),
        "Sub": (one, -number),
        "Mul": (number, zero),
        "Div": (one / number, zero),
    }[node.operator]
    return _Scale(a, y, factor, shift)


def _activation(node: Node, _: Mapping[str, Constant]) -> _Operation:
    return _Activation(node.inputs[0], node.outputs[0], CURVES[node.operator](node.attributes))


def _split(node: Node, _: Mapping[str, Constant]) -> _Operation:
    if node.attributes.get("axis") not in (1, -1) or len(node.inputs) > 1:
        raise node.refuse("it does not cut the columns into equal parts")
    return _Split(node.inputs[0], node.outputs)


def _concat(node: Node, _: Mapping[str, Constant]) -> _Operation:
    if node.attributes.get("axis") not in (1, -1):
        raise node.refuse("it does not join columns")
    return _Concat(node.inputs, node.outputs[0])


_CREATORS: dict[str, Callable[[Node, Mapping[str, Constant]], _Operation]] = {
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(CURVES, _activation),
    "Split": _split,
    "Concat": _concat,
}
