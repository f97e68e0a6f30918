"""A table's schema, its values and its split. The module does not depend on files, cells or networks."""

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

    categories: the sorted categories. The index of a category is its position in `categories`. The categories are
    numbers if every cell is a number, and otherwise texts. Only a categorical column has categories.
    missing: whether a row of the table has a missing value in the column.
    reading: the rules that convert a text to a value. `reading` is None if the column has no texts in the table.
    `reading` is never None for a column of times.
    """

    name: str
    kind: Kind
    categories: tuple[Category, ...] = ()
    missing: bool = False
    reading: Reading | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Table:
    """A table that is ready for training.

    x: float32 [rows, features], raw values. A boolean is 0 or 1. A category is stored as its index in `categories`, or
    as len(categories) if `categories` does not list it. A time is a whole number of days or hours. A missing value is
    NaN. No value is infinite.
    y: for classification, int64 [rows], indices into `labels`; for regression, float64 [rows], finite values.
    labels: the classes in the order of their indices, in the JSON type of the target; () for regression.
    group: int64 [rows]. Rows with the same number stay in the same part of the split. `group` is None if the table has
    no group column.
    time: float64 or int64 [rows]. A larger value is a later time. `time` is None if the table has no time column.
    notes: facts that the user should know about how the table was read, one sentence each.
    target_reading: the rules that convert the texts of a regression target to numbers; None if the cells are numbers.
    rare: the labels of the classes that were dropped or merged because they were too small.
    left_out: the columns of the source that are neither features nor the target.
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
    left_out: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(column.name for column in self.columns)

    @property
    def outputs(self) -> int:
        """The number of outputs of a model for this table: the number of classes, or 1 in a regression."""
        return len(self.labels) or 1

    def select(self, rows: RowIndices) -> Table:
        """Return a table with the same schema that has only `rows`, in the order of `rows`."""
        group = None if self.group is None else self.group[rows]
        time = None if self.time is None else self.time[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], group=group, time=time)

    def sha256(self) -> str:
        """Hash the schema, the labels and the values. All numbers are hashed as little-endian bytes."""
        digest = hashlib.sha256()
        schema = [(column.name, column.kind, column.categories, column.missing) for column in self.columns]
        digest.update(repr((self.task, self.target, schema, self.labels)).encode())
        digest.update(np.ascontiguousarray(self.x, "<f4").data)
        digest.update(np.ascontiguousarray(self.y, "<i8" if self.labels else "<f8").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """The rows of each part, as int64 indices in ascending order. No row is in two parts.

    test: the test rows; empty if the test rows come from a test file.
    """

    train: RowIndices
    validation: RowIndices
    test: RowIndices
