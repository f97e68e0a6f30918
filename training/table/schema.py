"""The schema of a table: its columns, its values and its split. It knows no file, no cell and no network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Label, Reading, Task

Kind = Literal["numeric", "boolean", "categorical", "time"]
Category = str | int | float

RowIndices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """One feature.

    categories: the values of index 0, 1, ..., sorted. They are texts, or numbers if every cell is a number; () for
    another kind.
    missing: whether the column has a missing value in some row of the table.
    reading: how a text becomes a value; None if the table has no texts in the column. A column of times has one.
    """

    name: str
    kind: Kind
    categories: tuple[Category, ...] = ()
    missing: bool = False
    reading: Reading | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Table:
    """A table that is ready for training.

    x: float32 [rows, features], raw values. A boolean is 0 or 1. A category is its index in `categories`, and
    len(categories) if it is not among them. A time is a whole number of days or hours. A missing value is NaN. There
    are no infinities.
    y: int64 [rows] for classification, indices into `labels`; float64 [rows] for regression, finite.
    labels: the classes in the order of their index, in the table's own JSON type; () for regression.
    group: int64 [rows], equal for rows that the split keeps together; None without a group column.
    time: float64 or int64 [rows], larger is later; None without a time column.
    notes: facts about the reading that the user should know, one sentence each.
    target_reading: of the texts of a regression's target; None if it has numbers.
    rare: labels of classes that were too small and have no rows of their own.
    """

    source: str
    task: Task
    target: str
    columns: tuple[Column, ...]
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    labels: tuple[Label, ...]
    group: npt.NDArray[np.int64] | None = None
    time: npt.NDArray[Any] | None = None
    notes: tuple[str, ...] = field(default=())
    target_reading: Reading | None = None
    rare: tuple[Label, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def outputs(self) -> int:
        """The number of outputs of a model of this table: one for each class, or one value."""
        return len(self.labels) or 1

    def select(self, rows: RowIndices) -> Table:
        """Return the table of `rows`, in their order, with the same schema."""
        group = None if self.group is None else self.group[rows]
        time = None if self.time is None else self.time[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], group=group, time=time)

    def sha256(self) -> str:
        """Hash the schema, the labels and the values, with little-endian numbers."""
        digest = hashlib.sha256()
        schema = [(column.name, column.kind, column.categories, column.missing) for column in self.columns]
        digest.update(repr((self.task, self.target, schema, self.labels)).encode())
        digest.update(np.ascontiguousarray(self.x, "<f4").data)
        digest.update(np.ascontiguousarray(self.y, "<i8" if self.labels else "<f8").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """The rows of each part: int64 indices, ascending; no row is in two parts.

    test: empty if a test file provides the test rows.
    """

    train: RowIndices
    validation: RowIndices
    test: RowIndices
