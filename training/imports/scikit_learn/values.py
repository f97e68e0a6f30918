"""The values between the steps of a scikit-learn pipeline: raw columns, or numbers of the graph.

The module does not depend on the steps of a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import INPUT, Builder
from foldserve.training.imports.layers import Select
from foldserve.training.table.schema import Category, Column


@dataclass(frozen=True)
class Raw:
    """Columns of the input that no step has read as numbers.

    fills: for each column, the category that replaces a missing value.
    """

    columns: tuple[int, ...]
    fills: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    """A value of the graph whose columns are numbers."""

    name: str


Value = Raw | Numbers


class Context:
    """The graph, and facts about each raw column. names: the names of the raw columns.

    absent: maps each raw column to the value that its encoder uses for a missing value: None or NaN. filled: maps the
    name of a value to the raw columns that are imputed in this value.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.builder = Builder(len(names))
        self.names = tuple(names)
        self.notes: list[str] = []
        self.categories: dict[int, tuple[Category | bool, ...]] = {}
        self.missing: set[int] = set()
        self.absent: dict[int, Any] = {}
        self.filled: dict[str, tuple[int, ...]] = {}
        self.ranges = np.full((len(names), 2), np.nan)
        self._numeric: set[int] = set()

    def width(self, value: Value) -> int:
        """Return the number of columns of a value."""
        return len(value.columns) if isinstance(value, Raw) else self.builder.columns[value.name]

    def numbers(self, value: Value, step: str) -> str:
        """Return the name of the graph's value that has the same numbers as `value`.

        Raw columns become numeric features.
        """
        if isinstance(value, Numbers):
            return value.name
        for column in value.columns:
            if column in self.categories or column in value.fills:
                raise ModelImportError(f"column {self.names[column]!r} is read as a category and as a number")
        self._numeric.update(value.columns)
        if value.columns == tuple(range(len(self.names))):
            return INPUT
        return self.builder.add(step, "Select", Select(np.array(value.columns, np.int64)), INPUT)

    def select(self, value: Value, columns: Sequence[int], step: str) -> Value:
        """Select columns of a value."""
        if isinstance(value, Raw):
            return Raw(tuple(value.columns[column] for column in columns), value.fills)
        return Numbers(self.builder.add(step, "Select", Select(np.array(columns, np.int64)), value.name))

    def set_categories(self, column: int, categories: tuple[Category | bool, ...], missing: bool) -> None:
        """Make a raw column categorical. Raises `ModelImportError` if another step reads the column differently."""
        if column in self._numeric or self.categories.get(column, categories) != categories:
            raise ModelImportError(f"column {self.names[column]!r} is read as a category and in another way")
        self.categories[column] = categories
        if missing:
            self.missing.add(column)

    def columns(self) -> tuple[Column, ...]:
        """Return the features, after all steps are added."""
        columns = []
        for i, name in enumerate(self.names):
            found, missing = self.categories.get(i, ()), i in self.missing
            if found and all(isinstance(each, bool) for each in found):
                columns.append(Column(name, "boolean", missing=missing))
            elif found:
                columns.append(Column(name, "categorical", tuple(found), missing=missing))
            else:
                columns.append(Column(name, "numeric", missing=missing))
        return tuple(columns)
