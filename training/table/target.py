"""The target: from its cells to the task, the labels and `y`, in the training table and in a test file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.bundle import Label, Reading, Task
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions, TaskOption
from foldserve.training.table.cells import Distinct, as_text, distinct, is_text
from foldserve.training.table.kinds import booleans
from foldserve.training.table.missing import first_missing, require_values
from foldserve.training.table.notation import Marks, read_notation
from foldserve.training.table.numbers import (
    PLAIN,
    Values,
    almost_numeric,
    check_numbers,
    has_leading_zeros,
    integer_value,
    not_numeric,
    number_column,
    read_numbers,
)
from foldserve.training.table.schema import Table
from foldserve.training.text import count_of

MAX_CLASSES = 4_096
# Numbers are classes if they are integers and have at most this many different values.
_MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True)
class Target:
    """The target of a table: the task, `y` and the labels, as `Table` has them, and the reading of its texts."""

    task: Task
    y: npt.NDArray[Any]
    labels: tuple[Label, ...] = ()
    reading: Reading | None = None


def read_target(name: str, cells: pa.ChunkedArray, options: DataOptions, *, typed: bool) -> Target:
    """Read the target.

    typed: whether the source states the types of its cells; then a text stays a text. Raises `DataError` for a
    missing or infinite value, for too many classes, for a single class or value, and for numbers that can be read in
    two ways.
    """
    numbers, reading = _numbers(name, cells, options, typed=typed)
    found = distinct(cells) if numbers is None else None
    if _task(name, options.task, numbers, found, reading) == "regression":
        if numbers is None:
            raise not_numeric(name, "must be numeric", distinct(as_text(cells)))
        _check_values(name, cells, numbers, reading)
        return Target("regression", numbers, reading=reading if is_text(cells) else None)
    if not reading.is_plain:  # its texts are names
        numbers = None
    found = found or distinct(cells)
    if numbers is not None:
        require_values(name, "the target", numbers)  # a text of NaN is a missing value, not a class
        if row := first_missing(np.where(np.isinf(numbers), np.nan, numbers)):
            raise DataError(f"column {name!r}, the target: row {row} is infinite")
    require_values(name, "the target", found.codes)
    if len(found.values) > MAX_CLASSES:
        question = "; did you mean --task regression?" if numbers is not None else ""
        raise DataError(
            f"column {name!r}, the target, has {len(found.values):,} classes; the limit is {MAX_CLASSES:,}{question}"
        )
    label_of = _labels(found, numeric=numbers is not None)
    labels = tuple(sorted(set(label_of)))
    if len(labels) < 2:
        raise DataError(f"column {name!r}, the target, has only one class, {labels[0]!r}")
    indices = {label: index for index, label in enumerate(labels)}
    return Target("classification", np.array([indices[label] for label in label_of], np.int64)[found.codes], labels)


def read_test_target(cells: pa.ChunkedArray, table: Table) -> npt.NDArray[Any]:
    """Return `y` of a test file, by the labels of `table`.

    Raises `DataError` for a missing value and for an unknown class.
    """
    name = table.target
    if table.task == "regression":
        values = read_numbers(name, cells, table.target_reading or PLAIN)
        require_values(name, "the target", values)
        return values
    found = distinct(cells)
    require_values(name, "the target", found.codes)
    # 1 and 1.0 are one class and need one key. True is another class, but Python holds True == 1.
    indices = {(type(label) is bool, label): index for index, label in enumerate(table.labels)}
    if isinstance(table.labels[0], str):
        label_of: list[Any] = list(map(str, found.values))
    else:
        numeric = not isinstance(table.labels[0], bool) and number_column(cells) is not None
        label_of = _labels(found, numeric=numeric)
    y = np.array([indices.get((type(label) is bool, label), -1) for label in label_of], np.int64)[found.codes]
    if row := first_missing(y):
        label = found.values[found.codes[row - 1]]
        raise DataError(f"column {name!r}, the target: row {row} is {label!r}, not a class of the training table")
    return y


def check_class_sizes(y: npt.NDArray[Any], labels: tuple[Label, ...], least: int) -> None:
    """Raise `DataError` for the first class that has fewer than `least` rows."""
    for label, rows in zip(labels, np.bincount(y, minlength=len(labels)) if labels else (), strict=True):
        if rows < least:
            raise DataError(
                f"class {label!r} has {count_of(rows, 'row')}: it needs {least}, one in each part of the split"
            )


def _check_values(name: str, cells: pa.ChunkedArray, values: Values, reading: Reading) -> None:
    check_numbers(name, cells, values, reading)
    require_values(name, "the target", values)
    if (values == values[0]).all():
        raise DataError(f"column {name!r}, the target, has only one value, {values[0]:g}")


def _numbers(name: str, cells: pa.ChunkedArray, options: DataOptions, *, typed: bool) -> tuple[Values | None, Reading]:
    """Return the target as numbers; None for texts, for texts in a typed source, and for codes with leading zeros."""
    if options.task != "regression" and ((typed and is_text(cells)) or has_leading_zeros(cells)):
        return None, PLAIN
    if options.task == "classification":
        return number_column(cells), PLAIN
    return read_notation(name, cells, Marks.of(options)) or (None, PLAIN)


def _task(name: str, option: TaskOption, numbers: Values | None, found: Distinct | None, reading: Reading) -> Task:
    if option != "auto":
        return option
    if numbers is None:
        if found is not None and (description := almost_numeric(found)):
            raise DataError(
                f"column {name!r}, the target, looks numeric, but {description}; correct them, or use "
                "--task classification"
            )
        return "classification"
    if not reading.is_plain:
        return "regression"
    values = numbers[np.isfinite(numbers)]
    classes = len(np.unique(values)) <= _MAX_INTEGER_CLASSES and bool((values == np.rint(values)).all())
    return "classification" if classes else "regression"


def _labels(found: Distinct, *, numeric: bool) -> list[Any]:
    """Return each distinct value as a label of the table's own JSON type: integer, number, boolean or text."""
    if numeric:
        integers = [integer_value(value) for value in found.values]
        if all(value is not None and -(2**63) <= value < 2**63 for value in integers):
            return integers
        return [float(value) for value in found.values]
    return booleans(found) or [str(value) for value in found.values]
