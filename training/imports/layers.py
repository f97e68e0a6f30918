"""The layers of an imported model.

Each class of layers computes how many columns its output has, and computes the output itself in float64.

The inputs and the output of a layer are float64 [rows, columns]. Each row of the output depends only on the same row of
the inputs. The module does not depend on a graph, a file format or a framework. The module has more than 350 lines,
because it defines every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from foldserve.training.imports.functions import FUNCTIONS
from foldserve.training.imports.functions import Array as Array

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation. The inputs and the output are float64 [rows, columns]."""

    def columns(self, *inputs: int) -> int:
        """Return the number of output columns. inputs: the number of columns of each input.

        Raises `ValueError` if the layer can't read inputs with these numbers of columns.
        """
        raise NotImplementedError

    def apply(self, *inputs: Array) -> Array:
        """Evaluate the layer in float64."""
        raise NotImplementedError


def _require_columns(expected: int, inputs: tuple[int, ...]) -> None:
    if inputs != (expected,):
        raise ValueError(f"it takes {expected} columns and gets {' and '.join(map(str, inputs)) or 'none'}")


def _require_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("it holds a value that is not finite")


@dataclass(frozen=True, eq=False)
class Affine(Layer):
    """Computes scale * (x - offset) + shift for each column. scale, offset and shift are float64 [columns].

    offset: the mean of the data that a standardisation or a batch norm was fitted to. The offset is 0 for a layer that
    was not fitted to data. Folding a large offset into a bias would lose digits, so the graph may subtract the offset
    instead.
    """

    scale: Array
    offset: Array
    shift: Array

    @staticmethod
    def of(scale: npt.ArrayLike, offset: npt.ArrayLike, shift: npt.ArrayLike, columns: int) -> Affine:
        """Make an affine layer for `columns` columns. Each argument may also be one number for all columns.

        Raises `ValueError` if an argument has neither one value nor `columns` values.
        """
        values = [np.asarray(value, np.float64).reshape(-1) for value in (scale, offset, shift)]
        if any(value.size not in (1, columns) for value in values):
            raise ValueError(f"it has {max(value.size for value in values)} values for {columns} columns")
        return Affine(*(np.broadcast_to(value, columns).copy() for value in values))

    def __post_init__(self) -> None:
        _require_finite(self.scale, self.offset, self.shift)

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        _require_columns(len(self.scale), inputs)
        return len(self.scale)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        return self.scale * (x - self.offset) + self.shift


def batch_norm(gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Affine:
    """Return the affine layer of a batch norm in eval mode (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    All arrays are float64 [columns]. Raises `ValueError` if variance + eps is not above 0.
    """
    _require_finite(gamma, beta, mean, variance)
    if not (variance + eps > 0).all():
        raise ValueError("its variance + epsilon is not above 0")
    return Affine(gamma / np.sqrt(variance + eps), mean, beta)


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """Computes W x + b. weight: float64 [out, in]. bias: float64 [out]."""

    weight: Array
    bias: Array

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"its weight has the shape {self.weight.shape}, its bias {self.bias.shape}")
        _require_finite(self.weight, self.bias)

    def columns(self, *inputs: int) -> int:
        """Return the number of outputs, which is the number of rows of `weight`."""
        _require_columns(self.weight.shape[1], inputs)
        return int(self.weight.shape[0])

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        result: Array = x @ self.weight.T + self.bias
        return result


@dataclass(frozen=True, eq=False)
class Offset(Layer):
    """Computes x - offset for each column, before any other layer.

    offset: float64 [columns]; each number is exact in float32.

    Folding adds an `Offset` if the offset of an input is too large to be folded. Front ends never create an `Offset`.
    """

    offset: Array

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        _require_columns(len(self.offset), inputs)
        return len(self.offset)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        return x - self.offset


@dataclass(frozen=True, eq=False)
class Activation(Layer):
    """Applies one of `FUNCTIONS` to each number. parameters: the values of the function's parameters, by name."""

    function: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        return _single(inputs)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        result: Array = FUNCTIONS[self.function].compute(x, **self.parameters)
        return result


@dataclass(frozen=True, eq=False)
class PRelu(Layer):
    """Computes x for a positive x, and slope * x otherwise. slope: float64 [columns]."""

    slope: Array

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        _require_columns(len(self.slope), inputs)
        return len(self.slope)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        return np.where(x < 0, self.slope * x, x)


@dataclass(frozen=True, eq=False)
class OneHot(Layer):
    """Output column j is 1 where column `source[j]` of the input equals `code[j]`, and 0 elsewhere.

    source: int64 [outputs]. code: float64 [outputs]. A missing value does not equal any code. The value of a
    categorical column is the index of the category. For example, an encoding of the categories 0, 1 and 2 of column 4
    has the sources 4, 4, 4 and the codes 0, 1, 2. For an ordinal encoding, a Dense follows the OneHot, and the weights
    of the Dense are the numbers of the categories.
    """

    source: Indices
    code: Array

    def columns(self, *inputs: int) -> int:
        """Return the number of output columns, one for each code."""
        _require_sources(self.source, inputs)
        return len(self.source)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        result: Array = (x[:, self.source] == self.code).astype(np.float64)
        return result


@dataclass(frozen=True, eq=False)
class Impute(Layer):
    """Replaces NaN by `fill`, float64 [columns]. Where `fill` is NaN, the column stays unchanged."""

    fill: Array

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        _require_columns(len(self.fill), inputs)
        return len(self.fill)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        return np.where(np.isnan(x), self.fill, x)


@dataclass(frozen=True, eq=False)
class IsMissing(Layer):
    """Output column j is 1 where column `source[j]` of the input is NaN, and 0 elsewhere. source: int64 [outputs]."""

    source: Indices

    def columns(self, *inputs: int) -> int:
        """Return the number of output columns, one for each entry of `source`."""
        _require_sources(self.source, inputs)
        return len(self.source)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        return np.isnan(x[:, self.source]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Select(Layer):
    """Output column j is column `source[j]` of the input. source: int64 [outputs]."""

    source: Indices

    def columns(self, *inputs: int) -> int:
        """Return the number of output columns, one for each entry of `source`."""
        _require_sources(self.source, inputs)
        return len(self.source)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        return x[:, self.source]


@dataclass(frozen=True, eq=False)
class Concat(Layer):
    """Puts the columns of its inputs side by side."""

    def columns(self, *inputs: int) -> int:
        """Return the total number of columns of all inputs."""
        return sum(inputs)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        return np.concatenate(inputs, 1)


@dataclass(frozen=True, eq=False)
class Add(Layer):
    """Adds its inputs element by element. An input of one column is added to every column of the other inputs."""

    def columns(self, *inputs: int) -> int:
        """Return the number of columns that all inputs share, apart from inputs of one column."""
        wide = {columns for columns in inputs if columns != 1} or {1}
        if len(wide) > 1:
            raise ValueError(f"it adds values of {' and '.join(map(str, inputs))} columns")
        return wide.pop()

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        result = inputs[0]
        for term in inputs[1:]:
            result = result + term
        return result


@dataclass(frozen=True, eq=False)
class Multiply(Add):
    """Multiplies its inputs element by element, as a gate does.

    An input of one column multiplies every column of the other inputs.
    """

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        result = inputs[0]
        for factor in inputs[1:]:
            result = result * factor
        return result


@dataclass(frozen=True, eq=False)
class Softmax(Layer):
    """Computes the softmax of each row. log: whether to return the logarithm of the softmax."""

    log: bool = False

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        return _single(inputs)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        result: Array = special.log_softmax(x, 1) if self.log else special.softmax(x, 1)
        return result


@dataclass(frozen=True, eq=False)
class Normalize(Layer):
    """Divides each row by its norm: the sum of the absolute values (l1), the Euclidean norm (l2) or the maximum (max).

    A row of zeros is unchanged, as in scikit-learn.
    """

    norm: str

    def columns(self, *inputs: int) -> int:
        """Return the number of input columns, which the layer does not change."""
        return _single(inputs)

    def apply(self, *inputs: Array) -> Array:
        """Evaluate in float64."""
        (x,) = inputs
        size = {"l1": abs(x).sum(1), "l2": np.sqrt((x * x).sum(1)), "max": x.max(1)}[self.norm][:, None]
        return x / np.where(size == 0, 1, size)


@dataclass(frozen=True, eq=False)
class Kept(Layer):
    """An ONNX operator that foldserve does not understand and keeps unchanged.

    Folding moves no layer across a kept operator.

    node: the bytes of the ONNX NodeProto, in which the inputs that depend on the rows come first. outputs: the number
    of output columns. constants: maps names in the original graph to those inputs of the node that are constant. opset:
    the version of the operator set of the node. evaluate: computes the node in float64.
    """

    node: bytes
    outputs: int
    constants: Mapping[str, npt.NDArray[Any]]
    opset: int
    evaluate: Callable[..., Array]

    def columns(self, *inputs: int) -> int:
        """Return the number of columns that the shape inference of onnx has found."""
        del inputs
        return self.outputs

    def apply(self, *inputs: Array) -> Array:
        """Evaluate the operator in float64, with the function `evaluate`."""
        return self.evaluate(*inputs)


def _single(inputs: tuple[int, ...]) -> int:
    if len(inputs) != 1:
        raise ValueError(f"it takes one input and gets {len(inputs)}")
    return inputs[0]


def _require_sources(source: Indices, inputs: tuple[int, ...]) -> None:
    columns = _single(inputs)
    if len(source) == 0 or source.min() < 0 or source.max() >= columns:
        raise ValueError(f"it selects columns that do not exist; its input has {columns}")
