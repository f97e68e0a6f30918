"""Kinds: whether a column is numeric, boolean or categorical, and its numbers or distinct values."""

from __future__ import annotations

import shlex

import numpy as np
import pyarrow as pa

from foldserve.training.errors import DataError
from foldserve.training.table.cells import Distinct, cell_text, distinct, is_text, is_time
from foldserve.training.table.numbers import (
    Values,
    almost_numeric,
    check_numbers,
    not_numeric,
    number_column,
    read_numbers,
)
from foldserve.training.table.schema import Kind
from foldserve.training.text import flag_value

_BOOLEANS = {"false": 0.0, "true": 1.0}
_DECLARED_BOOLEANS = _BOOLEANS | {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


def read_as(kind: Kind, name: str, cells: pa.ChunkedArray) -> Values | Distinct:
    """Return the numbers or the distinct values of a column of a given kind.

    Raises `DataError` if a cell does not fit that kind.
    """
    if kind == "numeric":
        return read_numbers(name, cells)
    return read_booleans(name, cells) if kind == "boolean" else distinct(cells)


def infer(name: str, cells: pa.ChunkedArray, *, typed: bool) -> tuple[Kind, Values | Distinct]:
    """Return the kind of a column, and its numbers or its distinct values.

    typed: whether the source states the types of its cells; then a text stays a text. Raises `DataError` for dates and
    times, and for a column of numbers in which some cells are texts.
    """
    if is_time(cells):
        raise DataError(
            f"column {name!r} is a date or time, which can't be a feature: turn it into a number, use --time "
            f"{shlex.quote(name)} to split by it, or --drop {flag_value(name)}"
        )
    if pa.types.is_boolean(cells.type):
        return "boolean", read_booleans(name, cells)
    values = number_column(cells) if not (typed and is_text(cells)) else None
    if values is not None:
        check_numbers(name, cells, values)
        return "numeric", values
    found = distinct(cells)
    if not typed and found.used and all(value.strip().lower() in _BOOLEANS for value in found.used):
        return "boolean", read_booleans(name, cells)
    if not typed and almost_numeric(found):
        raise not_numeric(name, "looks numeric", found)
    return "categorical", found


def read_booleans(name: str, cells: pa.ChunkedArray) -> Values:
    """Return 0 or 1, NaN for a missing value, of a column of true, false, 1 and 0. Raises `DataError`."""
    found = distinct(cells)
    numbers = [_DECLARED_BOOLEANS.get(str(value).strip().lower(), np.inf) for value in found.values]
    values = np.array([*numbers, np.nan])[found.codes]
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise DataError(
            f"column {name!r} must be boolean, but row {row + 1} is {cell_text(cells, row)[:40]!r}: expected true, "
            "false, 1 or 0"
        )
    return values


def booleans(found: Distinct) -> list[bool] | None:
    """Return `found.values` as booleans; None if one of them is neither true nor false."""
    texts = [str(value).strip().lower() for value in found.values]
    return [text == "true" for text in texts] if all(text in _BOOLEANS for text in texts) else None
