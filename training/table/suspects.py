"""Suspects: columns that look like an identifier or a leak of the target.

The module writes notes. The module does not drop columns.

Each column is examined alone. The search for a leak does not train a network, but predicts the target of a row from
other rows that have nearly the same value in the column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.table.schema import Column, Table
from foldserve.training.text import flag_value

# With fewer rows than this, an identifier or a leak can't be recognised.
_MIN_ROWS = 40
# The largest number of rows that the search for a leak uses.
_SAMPLE = 10_000
# In a classification, a column predicts the target almost perfectly if its predictions make at most this share of the
# baseline's errors. In a regression, the squared error of the prediction must be at most this share of the target's
# variance.
_LEFT = 0.01

Values = npt.NDArray[Any]


def identifier_note(name: str, values: Values) -> str | None:
    """Return a note if the values of a numeric column look like an identifier of the rows.

    values: float64 [rows], NaN for a missing value.
    """
    if len(values) < _MIN_ROWS:
        return None
    head = values[:_MIN_ROWS]
    whole = bool((head == np.rint(head)).all())
    if (not whole and not _is_monotone(head)) or len(np.unique(head)) < len(head):
        return None
    reason = None
    if _is_monotone(values):
        reason = "it rises or falls with every row"
    elif whole and bool((values == np.rint(values)).all()) and len(np.unique(values)) == len(values):
        reason = "its whole numbers are all different"
    return None if reason is None else f"column {name!r} looks like an identifier: {reason}; {_advice(name)}"


def leak_notes(table: Table) -> list[str]:
    """Return a note on each column that is equal to the target or predicts it almost perfectly without the other
    columns.
    """
    rows = len(table.y)
    if rows < _MIN_ROWS:
        return []
    chosen = np.random.default_rng(0).permutation(rows)[:_SAMPLE]
    x, y = table.x[chosen], table.y[chosen]
    notes = []
    for place, column in enumerate(table.columns):
        cells = x[:, place].astype(np.float64)
        if _is_copy(column, cells, y, table):
            notes.append(f"column {column.name!r} is equal to the target, {table.target!r}; {_advice(column.name)}")
        elif _predicts(column, cells, y, len(table.labels)):
            notes.append(
                f"column {column.name!r} alone predicts the target near perfectly, as a leak would; "
                f"{_advice(column.name)}"
            )
    return notes


def _advice(name: str) -> str:
    return f"if a new row would not have it, use --drop {flag_value(name)}"


def _is_monotone(values: Values) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def _is_copy(column: Column, cells: Values, y: Values, table: Table) -> bool:
    if not table.labels:
        return column.kind == "numeric" and bool((cells == y.astype(np.float32)).all())
    names = column.categories if column.kind == "categorical" else ()
    if names:
        found = np.array([*map(str, names), ""])[np.nan_to_num(cells, nan=len(names)).astype(np.int64)]
        return bool((found == np.array([*map(str, table.labels)])[y]).all())
    if isinstance(table.labels[0], str):
        return False
    return bool((cells == np.array(table.labels, np.float64)[y].astype(np.float32)).all())


def _predicts(column: Column, cells: Values, y: Values, classes: int) -> bool:
    """Whether this column alone predicts the target.

    The targets of one half of the rows are predicted from the other half of the rows.
    """
    half = len(y) // 2
    if column.kind in ("numeric", "time"):
        highest = np.nanmax(cells, initial=0.0)
        # Replaces a missing value by a number far from all other values.
        cells = np.nan_to_num(cells, nan=2 * abs(highest) + 1)
        predicted = y[:half][_nearest(cells[:half], cells[half:])]
    else:
        found = np.nan_to_num(cells, nan=len(column.categories) + 2).astype(np.int64)
        if len(np.unique(found)) > half // 4:  # too few rows per category to recognise a leak
            return False
        predicted = _typical(found[:half], y[:half], classes)[found[half:]]
    if classes:
        majority = int(np.bincount(y[:half]).argmax())
        baseline = int((y[half:] != majority).sum())
        return baseline >= _MIN_ROWS // 8 and int((predicted != y[half:]).sum()) <= _LEFT * baseline
    left = float(((y[half:] - predicted) ** 2).sum())
    if column.kind in ("numeric", "time") and np.ptp(cells[:half]) > 0:
        origin = cells[:half].mean()
        slope, offset = np.polyfit(cells[:half] - origin, y[:half], 1)
        left = min(left, float(((y[half:] - slope * (cells[half:] - origin) - offset) ** 2).sum()))
    return left <= _LEFT * float(((y[half:] - y[:half].mean()) ** 2).sum())


def _nearest(known: Values, asked: Values) -> npt.NDArray[np.int64]:
    """Return int64 [asked]: for each value of `asked`, the index of the nearest value of `known`."""
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    right = np.searchsorted(ordered, asked).clip(1, len(known) - 1)
    left_is_nearer = asked - ordered[right - 1] <= ordered[right] - asked
    nearest: npt.NDArray[np.int64] = order[np.where(left_is_nearer, right - 1, right)]
    return nearest


def _typical(found: npt.NDArray[np.int64], y: Values, classes: int) -> Values:
    """Return an array [categories]: the most frequent class of each category, or the mean of `y` in a regression."""
    count = int(found.max()) + 3
    if not classes:
        rows = np.bincount(found, minlength=count)
        means = np.bincount(found, y, minlength=count) / np.maximum(rows, 1)
        return np.where(rows > 0, means, y.mean())
    pairs, rows = np.unique(found * classes + y, return_counts=True)
    order = np.argsort(rows, kind="stable")
    typical = np.full(count, int(np.bincount(y).argmax()))
    # The pairs are stored in ascending order of their number of rows, so the most frequent class of a category
    # overwrites the other classes.
    typical[pairs[order] // classes] = pairs[order] % classes
    return typical
