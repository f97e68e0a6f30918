"""Kinds: decides whether a column is numeric, boolean, categorical or a time, and converts the cells of the column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from foldserve.service.bundle import FALSE, TRUE, Reading
from foldserve.training.errors import DataError
from foldserve.training.table.cells import Distinct, as_text, cell_text, distinct, is_text
from foldserve.training.table.moments import find_moments, read_moments
from foldserve.training.table.notation import Marks, read_notation
from foldserve.training.table.numbers import PLAIN, Values, almost_numeric, check_numbers, not_numeric, read_numbers
from foldserve.training.table.schema import Kind

Decision = tuple[Kind, Values | Distinct, Reading | None]
"""The kind of a column, its numbers or its distinct values, and the `Reading` for its texts, if there are texts."""

# A column of texts is boolean if all texts are in `_BOOLEANS`. A column with other texts for true and false is boolean
# only if the user declares the column as boolean.
_BOOLEANS = {"false", "true"}
_SPELLINGS = dict.fromkeys(FALSE, 0.0) | dict.fromkeys(TRUE, 1.0)


def read_as(kind: Kind, name: str, cells: pa.ChunkedArray, reading: Reading | None) -> Values | Distinct:
    """Convert the cells of a column of the kind `kind`. Return the column's numbers or its distinct values.

    Raises `DataError` if a cell does not fit the kind.
    """
    if kind == "numeric":
        return read_numbers(name, cells, reading or PLAIN)
    if kind == "time" and reading is not None:
        return read_moments(name, cells, reading)
    return read_booleans(name, cells) if kind == "boolean" else distinct(cells)


def read_declared(kind: Kind, name: str, cells: pa.ChunkedArray, marks: Marks) -> Decision:
    """Read a column whose kind the user declared. Raises `DataError` if a cell does not fit the declared kind."""
    if kind != "numeric":
        return kind, read_as(kind, name, cells, None), _reading(kind, cells, marks)
    values, reading = _read_numbers(name, cells, marks)
    return kind, values, reading


def infer(name: str, cells: pa.ChunkedArray, marks: Marks, *, typed: bool) -> Decision:
    """Infer the kind of a column, and convert the cells of the column.

    typed: whether the source states the types of its cells. If the source states the types, a text such as 12 stays a
    text. Texts of dates are still read as dates, and texts of numbers in a special notation are still read as numbers.
    Raises `DataError` for a column of numbers in which some cells are texts, and for numbers that can be read in two
    ways.
    """
    if pa.types.is_boolean(cells.type):
        return "boolean", read_booleans(name, cells), _reading("boolean", cells, marks)
    numbers = read_notation(name, cells, marks)
    if numbers is not None and not (typed and is_text(cells) and numbers[1].is_plain):
        values, reading = numbers
        check_numbers(name, cells, values, reading)
        return "numeric", values, _if_texts(reading, cells)
    moments = find_moments(cells, marks.missing)
    if moments is not None:
        return "time", *moments
    found = distinct(cells)
    if not typed and _are_booleans(found):
        return "boolean", read_booleans(name, cells), _reading("boolean", cells, marks)
    if not typed and almost_numeric(found, allow_plain=marks.allow_point):
        raise not_numeric(name, "looks numeric", found)
    return "categorical", found, _reading("categorical", cells, marks)


def find_boolean(cells: pa.ChunkedArray, missing: tuple[str, ...], *, typed: bool) -> tuple[bool, Reading | None]:
    """Return whether `infer` decides that a column is boolean, and the `Reading` of a boolean column."""
    is_text_column = not typed and is_text(cells)
    if pa.types.is_boolean(cells.type) or (is_text_column and _are_booleans(distinct(cells))):
        return True, _if_texts(Reading(missing=missing, true=TRUE, false=FALSE), cells)
    return False, None


def _are_booleans(found: Distinct) -> bool:
    return bool(found.used) and all(str(value).strip().lower() in _BOOLEANS for value in found.used)


def _read_numbers(name: str, cells: pa.ChunkedArray, marks: Marks) -> tuple[Values, Reading | None]:
    numbers = read_notation(name, cells, marks)
    if numbers is None:
        raise not_numeric(name, "must be numeric", distinct(as_text(cells)))
    values, reading = numbers
    check_numbers(name, cells, values, reading)
    return values, _if_texts(reading, cells)


def _reading(kind: Kind, cells: pa.ChunkedArray, marks: Marks) -> Reading | None:
    true, false = (TRUE, FALSE) if kind == "boolean" else ((), ())
    return _if_texts(Reading(missing=marks.missing, true=true, false=false), cells)


def _if_texts(reading: Reading, cells: pa.ChunkedArray) -> Reading | None:
    """Return `reading` if the column has texts, or if some numbers mean a missing value. Otherwise return None."""
    return reading if is_text(cells) or reading.missing else None


def read_booleans(name: str, cells: pa.ChunkedArray) -> Values:
    """Return a column of booleans as numbers: 0, 1, or NaN for a missing value. Raises `DataError`."""
    found = distinct(cells)
    numbers = [_SPELLINGS.get(str(value).strip().lower(), np.inf) for value in found.values]
    values = np.array([*numbers, np.nan])[found.codes]
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise DataError(
            f"column {name!r} must be boolean, but row {row + 1} is {cell_text(cells, row)[:40]!r}: expected true, "
            "yes, 1, false, no or 0"
        )
    return values


def booleans(found: Distinct) -> list[bool] | None:
    """Return `found.values` as booleans. Return None if a value is neither true nor false."""
    texts = [str(value).strip().lower() for value in found.values]
    return [text == "true" for text in texts] if all(text in _BOOLEANS for text in texts) else None
