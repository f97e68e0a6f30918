"""The split: divides the rows of a table into training rows, validation rows and test rows.

The module does not depend on cells or files.

By default, rows are drawn at random, class by class. If the table has groups, whole groups are drawn, so that no group
is in two parts. If the table has a time, the training rows are the earliest rows and the test rows are the latest rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.figures import count_of
from foldserve.training.errors import DataError
from foldserve.training.table.schema import RowIndices, Split, Table

# A table with fewer rows than this can't be split. The limit is the sum of the smallest possible sizes of the training
# set, the validation set and the test set. Batch norm needs two training rows for its statistics. The test set needs
# two rows. The validation set needs one row; in a regression, it needs two rows, because R2 is undefined for one row.
_MIN_ROWS = 5
# The split tries this number of random orders of the groups, and uses the best one. A single random order may give a
# bad split, because a group can have any size and any mix of classes.
_GROUP_ORDERS = 16


def split_rows(table: Table, *, test: float, validation: float, seed: int) -> Split:
    """Split the rows of `table`. test, validation: the share of test rows and the share of validation rows among all
    rows. `test` is 0 if the test rows come from a test file.

    By default, rows are split class by class, so that every part has every class. If the table has groups, the rows of
    a group stay together. If the table has a time, rows of equal time stay together. Raises `DataError` if there are
    too few rows, groups or times.
    """
    least = _MIN_ROWS if table.labels else _MIN_ROWS + 1
    if len(table.y) < least:
        raise DataError(f"{len(table.y)} rows are too few: at least {least} are needed")
    if table.group is not None:
        parts = _by_group(table, table.group, (test, validation), np.random.default_rng(seed))
    elif table.time is not None:
        parts = _by_time(table.time, (test, validation))
    else:
        parts = _by_class(table, test, validation, np.random.default_rng(seed))
    test_rows, validation_rows, train_rows = (np.sort(part) for part in parts)
    least = 1 if table.labels else 2
    named = {"training": train_rows, "validation": validation_rows} | ({"the test": test_rows} if test else {})
    for part, rows in named.items():
        if len(rows) < least:
            raise DataError(f"the split leaves {count_of(len(rows), 'row')} for {part}: at least {least} are needed")
    _check_classes(table, train_rows)
    return Split(train_rows, validation_rows, test_rows)


def _check_classes(table: Table, train: RowIndices) -> None:
    counts = np.bincount(table.y[train], minlength=len(table.labels)) if table.labels else np.ones(1)
    if not counts.all():
        raise DataError(f"the split leaves class {table.labels[int(counts.argmin())]!r} without a training row")


def _by_class(table: Table, test: float, validation: float, generator: np.random.Generator) -> list[RowIndices]:
    classes = [np.flatnonzero(table.y == index) for index in range(len(table.labels))] or [np.arange(len(table.y))]
    least = 1 if table.labels else 2  # neither R2 nor batch-norm statistics exist for a single row
    parts = [_cut(generator.permutation(rows), test, validation, least) for rows in classes]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _cut(rows: RowIndices, test: float, validation: float, least: int) -> tuple[RowIndices, RowIndices, RowIndices]:
    """Cut `rows` into test, validation and training rows.

    Each part gets at least `least` rows. If `test` is 0, there are no test rows.
    """
    count = len(rows)
    test_count = min(max(round(test * count), least), count - 2 * least) if test else 0
    validation_count = min(max(round(validation * count), least), count - test_count - least)
    end = test_count + validation_count
    return rows[:test_count], rows[test_count:end], rows[end:]


def _by_time(time: npt.NDArray[Any], shares: Sequence[float]) -> list[RowIndices]:
    """Put the latest rows into the first part, which is the test set. Rows of equal time stay in the same part."""
    times, group_of = np.unique(time, return_inverse=True)
    _check_count("time", len(times), shares)
    latest_first = len(times) - 1 - group_of
    return _assign_groups(latest_first, np.bincount(latest_first), shares)


def _by_group(
    table: Table, group: npt.NDArray[np.int64], shares: tuple[float, float], generator: np.random.Generator
) -> list[RowIndices]:
    """Try several random orders of the groups.

    Use the order whose parts come closest to the wanted sizes and to the class shares of the whole table.
    """
    groups, group_of = np.unique(group, return_inverse=True)
    _check_count("group", len(groups), shares)
    sizes = np.bincount(group_of)
    best: tuple[float, list[RowIndices]] | None = None
    for _ in range(_GROUP_ORDERS):
        order = generator.permutation(len(groups))
        position = np.empty_like(order)
        position[order] = np.arange(len(groups))
        parts = _assign_groups(position[group_of], sizes[order], shares)
        error = _imbalance(table, parts, shares)
        if best is None or error < best[0]:
            best = error, parts
    return best[1] if best else []


def _check_count(column: str, count: int, shares: Sequence[float]) -> None:
    if count < 1 + sum(share > 0 for share in shares):
        raise DataError(f"the {column} column has {count_of(count, 'different value')}, too few to split by")


def _assign_groups(
    group_of: npt.NDArray[np.int64], group_sizes: npt.NDArray[np.int64], shares: Sequence[float]
) -> list[RowIndices]:
    """Assign whole groups, in order, to consecutive parts. group_of: int64 [rows]; group_sizes: int64 [groups].

    shares: the share of the rows for every part except the last. The last part gets the remaining groups. Each part
    ends after the group that brings the size of the part closest to its share. Every part gets at least one group,
    unless its share is 0.
    """
    ends = np.cumsum(group_sizes)
    parts, first, wanted = [], 0, 0.0
    for index, share in enumerate(shares):
        wanted += share * len(group_of)
        parts_left = sum(later > 0 for later in shares[index + 1 :])
        end = first
        if share:
            closest = int(np.abs(ends - wanted).argmin()) + 1
            end = min(max(closest, first + 1), len(group_sizes) - 1 - parts_left)
        parts.append(np.flatnonzero((group_of >= first) & (group_of < end)))
        first = end
    return [*parts, np.flatnonzero(group_of >= first)]


def _imbalance(table: Table, parts: Sequence[RowIndices], shares: tuple[float, float]) -> float:
    """Return the error of a split, which is a sum. For each part, the sum contains the difference between the size of
    the part and the wanted size, and the largest difference between the share of a class in the part and in the whole
    table.

    Each class without a training row adds 1 to the sum.
    """
    rows, classes = len(table.y), len(table.labels)
    error = sum(abs(len(part) / rows - share) for part, share in zip(parts, shares, strict=False))
    if not classes:
        return error
    whole = np.bincount(table.y, minlength=classes) / rows
    for part in parts:
        if len(part):
            error += float(np.abs(np.bincount(table.y[part], minlength=classes) / len(part) - whole).max())
    return error + float((np.bincount(table.y[parts[-1]], minlength=classes) == 0).sum())
