"""The types of values in the translation of an ONNX graph, and the context of the translation.

A value is a constant, raw columns of the input, numbers, truth values, or the stacked members of an ensemble. The
module does not depend on the operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import INPUT, Builder
from foldserve.training.imports.layers import Layer, OneHot, Select
from foldserve.training.table.schema import Category


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant array. The numbers are float64, or integers for shapes and indices."""

    array: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Raw:
    """Columns of the input that no operator has used as numbers or as categories yet.

    shape: the shape of one row, without the batch. rounded_by: the type and the name of the Cast that turns the
    numbers into integers; "" if no Cast does. An encoder accepts such columns, because it accepts only whole numbers.
    """

    columns: tuple[int, ...]
    shape: tuple[int, ...]
    rounded_by: str = ""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A value of the intermediate form.

    shape: the shape of one row, without the batch. The product of all sizes in the shape is the number of columns.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Truth:
    """A boolean tensor, stored as a value of the intermediate form that contains only the numbers 0 and 1.

    missing_of: the value whose missing numbers this value marks; None if it marks no missing numbers.
    """

    name: str
    shape: tuple[int, ...]
    missing_of: Raw | Numbers | None = None


@dataclass(frozen=True, eq=False)
class Stacked:
    """The members of an ensemble, whose values are stacked along a new first axis in front of the rows."""

    parts: tuple[Numbers, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Raise `Refused`: only an operator that reduces the new first axis can read stacked values."""
        raise Refused("it reads values that are stacked in front of the rows; their sum and their mean are understood")


Value = Constant | Raw | Numbers | Truth | Stacked


class Refused(Exception):  # noqa: N818 (it is no error yet: the node may be kept)
    """The reason why an operator can't be translated, and a remedy."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass
class RawColumn:
    """One column of the input.

    name: the name of the column. is_text: whether the column contains texts. categories: the categories that the
    encoders of the column have added.

    missing: whether the model replaces missing values of the column. read_as_number: whether an operator computes with
    the numbers of the column. is_closed: whether no more categories may be added.
    """

    name: str
    is_text: bool
    is_whole: bool
    categories: list[Category] = field(default_factory=list)
    missing: bool = False
    read_as_number: bool = False
    is_closed: bool = False

    def code(self, category: Category) -> int:
        """Return the index of a category. A new category gets the next index."""
        key = [(type(each) is str, each) for each in self.categories]
        if (type(category) is str, category) not in key:
            if self.is_closed:
                raise Refused(f"another encoder reads column {self.name!r} with other categories")
            self.categories.append(category)
            return len(self.categories) - 1
        return key.index((type(category) is str, category))


class Context:
    """The state of the translation of one graph.

    values: the translated values, by the names of their tensors. notes: facts for the user.
    """

    def __init__(self, columns: Sequence[RawColumn], opsets: Mapping[str, int]) -> None:
        self.columns = list(columns)
        self.opsets = dict(opsets)
        self.builder = Builder(len(columns))
        self.values: dict[str, Value] = {}
        self.notes: list[str] = []

    def add(self, node: onnx.NodeProto, layer: Layer, *inputs: str) -> str:
        """Add a layer for a node, and return the name of its value.

        Raises `Refused` if the layer can't read `inputs`.
        """
        try:
            return self.builder.add(node.name or node.output[0], node.op_type, layer, *inputs)
        except ModelImportError as error:
            raise Refused(str(error).partition(": ")[2]) from error

    def make(self, create: Callable[[], Layer]) -> Layer:
        """Create a layer. Raises `Refused` if the values of the layer are wrong."""
        try:
            return create()
        except ValueError as error:
            raise Refused(str(error)) from error

    def numbers(self, node: onnx.NodeProto, value: Value) -> Numbers:
        """Return a value as numbers of the graph.

        Raises `Refused` for a constant, and for columns of texts. Raises `ModelImportError` for columns that a Cast has
        rounded, because the error names the Cast.
        """
        if isinstance(value, Numbers):
            return value
        if isinstance(value, Truth):
            return Numbers(value.name, value.shape)
        if isinstance(value, Constant):
            raise Refused("it computes with a constant where values of the rows are expected")
        if isinstance(value, Stacked):
            raise Refused("it computes with stacked values; their sum and their mean are understood")
        if value.rounded_by:
            reader = f"{node.op_type} {node.name or node.output[0]!r}"
            raise ModelImportError(
                f"{value.rounded_by}: it rounds numbers that {reader} computes with; only an encoder may read the "
                "result; export the model without it, or with an input of integers"
            )
        for place in value.columns:
            if self.columns[place].is_text:
                raise Refused(f"it computes with column {self.columns[place].name!r}, which holds texts")
            self.columns[place].read_as_number = True
        if list(value.columns) == list(range(len(self.columns))):
            return Numbers(INPUT, value.shape)
        return Numbers(self.add(node, Select(np.array(value.columns)), INPUT), value.shape)

    def encode(self, node: onnx.NodeProto, column: int, categories: Sequence[Category]) -> str:
        """Add the one-hot encoding of a raw column, and return the name of its value."""
        codes = [self.columns[column].code(category) for category in categories]
        return self.add(node, OneHot(np.full(len(codes), column), np.array(codes, np.float64)), INPUT)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node, by their names. Texts have the type str."""
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {name: _decode(value) for name, value in found.items()}


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [each.decode("utf-8", "replace") for each in value]
    return value


def width(shape: tuple[int, ...]) -> int:
    """Return the number of columns of a row with the shape `shape`."""
    return math.prod(shape)
