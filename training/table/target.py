"""The target: derives the task, the labels and the array `y` from the cells of the target column, in the training table
and in a test file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.bundle import Decision, Label, Reading, Task
from foldserve.service.figures import count_of
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions, DecisionOptions, Rare, TaskOption
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
from foldserve.training.text import join_some

MAX_CLASSES = 4_096
# With `--rare merge`, all rare classes are merged into a class with this name.
OTHER = "other"
# In a test file, a row whose class was dropped as rare gets this number in place of an index.
_RARE = np.iinfo(np.int64).max
# If a target of integers has at most this many different values, the values are classes.
_MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True)
class Target:
    """The target of a table. The fields have the same meanings as in `Table`. `reading` is `Table.target_reading`."""

    task: Task
    y: npt.NDArray[Any]
    labels: tuple[Label, ...] = ()
    reading: Reading | None = None
    rare: tuple[Label, ...] = ()


def read_target(name: str, cells: pa.ChunkedArray, options: DataOptions, *, typed: bool) -> Target:
    """Read the target.

    typed: whether the source states the types of its cells. If the source states the types, a text such as 12 stays a
    text. Raises `DataError` for a missing or infinite value, for too many classes, for a single class or value, and for
    numbers that can be read in two ways.
    """
    numbers, reading = _numbers(name, cells, options, typed=typed)
    found = distinct(cells) if numbers is None else None
    if _task(name, options.task, numbers, found, reading) == "regression":
        if numbers is None:
            raise not_numeric(name, "must be numeric", distinct(as_text(cells)))
        _check_values(name, cells, numbers, reading)
        return Target("regression", numbers, reading=reading if is_text(cells) else None)
    if not reading.is_plain:  # in a classification, numbers in a special notation are names of classes
        numbers = None
    found = found or distinct(cells)
    if numbers is not None:
        require_values(name, "the target", numbers)  # refuses the text NaN, which is a missing value and not a class
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


def read_test_target(
    cells: pa.ChunkedArray, table: Table, option: Rare = "refuse"
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """Return the array `y` of a test file and the indices of the rows that have a label. In a classification, `y` has
    indices into the labels of `table`; in a regression, it has the values of the target.

    The second result is None if all rows have a label.

    option: the value of `--rare` that was used to load `table`. Raises `DataError` for a missing value and for an
    unknown class.
    """
    name = table.target
    if table.task == "regression":
        values = read_numbers(name, cells, table.target_reading or PLAIN)
        require_values(name, "the target", values)
        return values, None
    found = distinct(cells)
    require_values(name, "the target", found.codes)
    # 1 and 1.0 are the same class, so they need the same key. True and 1 are different classes, so they need different
    # keys, although Python treats them as equal.
    indices = {(type(label) is bool, label): index for index, label in enumerate(table.labels)}
    # The rare labels are compared as texts, because `--rare merge` turns all labels into texts, even numbers.
    rare = {str(label) for label in table.rare}
    merged = table.labels.index(OTHER) if rare and option == "merge" else _RARE
    if isinstance(table.labels[0], str):
        label_of: list[Any] = list(map(str, found.values))
    else:
        numeric = not isinstance(table.labels[0], bool) and number_column(cells) is not None
        label_of = _labels(found, numeric=numeric)
    code_of = [merged if str(label) in rare else indices.get((type(label) is bool, label), -1) for label in label_of]
    y = np.array(code_of, np.int64)[found.codes]
    if (y == _RARE).any():
        rows = np.flatnonzero(y != _RARE)
        y, found = y[rows], replace(found, codes=found.codes[rows])
    else:
        rows = None
    if row := first_missing(y):
        label = found.values[found.codes[row - 1]]
        known = join_some(list(map(str, table.labels)), 5)
        raise DataError(
            f"column {name!r}, the target: row {row} is {label!r}, which is not a class of the model; its classes are "
            f"{known}"
        )
    return y, rows


def check_decision(options: DecisionOptions, table: Table) -> None:
    """Raise `DataError` if the options set a threshold that is impossible for the target of this table."""
    if options.threshold is not None:
        positive_class(options, table.target, table.labels)


def positive_class(options: DecisionOptions, target: str, labels: tuple[Label, ...]) -> int:
    """Return the index of the positive class. A row gets this class if its probability is at least the threshold.
    target: the name of the target column.

    Raises `DataError` if the target does not have two classes, or if `options.positive` is not a class.
    """
    if len(labels) != 2:
        found = f"{len(labels)} classes" if labels else "numbers"
        raise DataError(f"--threshold needs a target of two classes, but {target!r} has {found}")
    names = Decision(labels).names
    if options.positive is None:
        return 1
    if options.positive not in names:
        raise DataError(f"--positive: {options.positive!r} is not a class of {target!r}; it has {join_some(names, 2)}")
    return names.index(options.positive)


def settle_rare_classes(
    name: str, target: Target, least: int, option: Rare
) -> tuple[Target, npt.NDArray[np.int64] | None, list[str]]:
    """Drop, merge or refuse each class that has fewer than `least` rows.

    Returns the target, the indices of the rows that are kept, and notes. The second result is None if all rows are
    kept. Raises `DataError` in three cases: a class is too small and `option` is `refuse`, the merged class is too
    small, or fewer than two classes are left.
    """
    counts = np.bincount(target.y, minlength=len(target.labels)) if target.labels else np.empty(0, np.int64)
    small = [index for index, rows in enumerate(counts) if rows < least]
    if not small:
        return target, None, []
    rare = tuple(target.labels[index] for index in small)
    need = f"it needs {least}, one in each part of the split"
    if option == "refuse":
        raise DataError(
            f"class {rare[0]!r} has {count_of(counts[small[0]], 'row')}: {need}; use --rare drop to leave out the rows "
            f"of such classes, or --rare merge to make them one class, {OTHER!r}"
        )
    listed = f"{count_of(len(rare), 'class').replace('classs', 'classes')} with fewer than {least} rows"
    if option == "drop":
        rows = np.flatnonzero(~np.isin(target.y, small))
        labels = tuple(label for label in target.labels if label not in rare)
        if len(labels) < 2:
            raise DataError(f"column {name!r}, the target, has too few classes of at least {least} rows")
        y = np.searchsorted(np.setdiff1d(np.arange(len(counts)), small), target.y[rows])
        note = f"{listed}, dropped with {count_of(int(counts[small].sum()), 'row')}: {join_some(rare, 10)}"
        return replace(target, y=y, labels=labels, rare=rare), rows, [note]
    if counts[small].sum() < least:
        rows_text = count_of(int(counts[small].sum()), "row")
        raise DataError(f"the rare classes have {rows_text} together: {need}; use --rare drop to leave them out")
    # `OTHER` is a text, so the other labels become texts too. All labels of a target must have the same JSON type.
    label_of = [OTHER if index in small else str(label) for index, label in enumerate(target.labels)]
    if OTHER in (str(label) for label in target.labels):
        raise DataError(f"column {name!r}, the target, has a class {OTHER!r} already: use --rare drop")
    labels = tuple(sorted(set(label_of)))
    if len(labels) < 2:
        raise DataError(f"column {name!r}, the target, has no class of at least {least} rows")
    y = np.array([labels.index(label) for label in label_of], np.int64)[target.y]
    note = f"{listed}, merged into the class {OTHER!r}: {join_some(rare, 10)}"
    return replace(target, y=y, labels=labels, rare=rare), None, [note]


def _check_values(name: str, cells: pa.ChunkedArray, values: Values, reading: Reading) -> None:
    check_numbers(name, cells, values, reading)
    require_values(name, "the target", values)
    if (values == values[0]).all():
        raise DataError(f"column {name!r}, the target, has only one value, {values[0]:g}")


def _numbers(name: str, cells: pa.ChunkedArray, options: DataOptions, *, typed: bool) -> tuple[Values | None, Reading]:
    """Return the target as numbers, and the `Reading` with the notation of these numbers.

    The first result is None if the target is not a column of numbers. Codes with leading zeros are not numbers. typed:
    whether the source states the types of its cells. Then a text counts as a number only with a special notation such
    as `$1,234.50`.
    """
    if options.task != "regression" and has_leading_zeros(cells):
        return None, PLAIN
    texts_stay = typed and is_text(cells) and options.task != "regression"
    if options.task == "classification":
        return None if texts_stay else number_column(cells), PLAIN
    found = read_notation(name, cells, Marks.of(options), "--task classification") or (None, PLAIN)
    return (None, PLAIN) if texts_stay and found[1].is_plain else found


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
    """Return the label of each distinct value.

    All labels have the JSON type of the target: integer, number, boolean or text.
    """
    if numeric:
        integers = [integer_value(value) for value in found.values]
        if all(value is not None and -(2**63) <= value < 2**63 for value in integers):
            return integers
        return [float(value) for value in found.values]
    return booleans(found) or [str(value) for value in found.values]
