"""Cells: the cells of one column of a source, in an Arrow array.

The module finds the distinct values of a column. The module does not depend on the kinds of columns or on schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.training.errors import DataError
from foldserve.training.table.buffers import copy_numbers
from foldserve.training.text import flag_value


@dataclass(frozen=True)
class Distinct:
    """The distinct values of a column, in the order in which they first occur.

    values: texts, numbers or booleans. codes: int64 [rows], the index of each row's value in `values`; -1 for a missing
    value.
    counts: int64 [values], the number of rows that have each value.
    """

    values: list[Any]
    codes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def present(self) -> int:
        """The number of rows that have a value."""
        return int(self.counts.sum())

    @cached_property
    def used(self) -> list[Any]:
        """The values that occur in at least one row."""
        return [value for value, count in zip(self.values, self.counts, strict=True) if count]


def is_text(cells: pa.ChunkedArray) -> bool:
    """Whether the cells are texts."""
    kind = cells.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_time(cells: pa.ChunkedArray) -> bool:
    """Whether the cells are dates or timestamps."""
    return bool(pa.types.is_date(cells.type) or pa.types.is_timestamp(cells.type))


def simplify(name: str, cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to a simpler type.

    A dictionary column is decoded, decimals and float16 become float64, and string views become strings.

    Raises `DataError` for a nested or binary column.
    """
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    kind = cells.type
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return cells.cast(pa.float64())
    if pa.types.is_string_view(kind):  # only a few functions of Arrow accept string views
        return cells.cast(pa.large_string())
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if number or pa.types.is_null(kind) or is_text(cells) or is_time(cells):
        return cells
    raise DataError(f"column {name!r} has the type {kind}, which can't be a feature: use --drop {flag_value(name)}")


def distinct(cells: pa.ChunkedArray) -> Distinct:
    """Find the distinct values of `cells`. Dates and times become texts in ISO 8601.

    An empty text, a text of blanks and a floating-point NaN are missing values.
    """
    encoded = cells.cast(pa.string()) if pa.types.is_null(cells.type) or is_time(cells) else cells
    encoded = encoded.dictionary_encode().unify_dictionaries()
    values = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    indices = pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32())
    codes = copy_numbers(indices, -1).astype(np.int64)
    for code, value in enumerate(values):
        if (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value):
            codes[codes == code] = -1
    counts = np.bincount(codes[codes >= 0], minlength=len(values)).astype(np.int64)
    return Distinct(values, codes, counts)


def as_text(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the cells as texts."""
    return cells if is_text(cells) else cells.cast(pa.string())


def cell_text(cells: pa.ChunkedArray, row: int) -> str:
    """Return the cell in row number `row`, counted from 0, as a text for a message."""
    cell = cells[row]
    return str((cell.cast(pa.string()) if is_time(cells) else cell).as_py())
