"""Missing values: finds the cells that have no value, and raises the errors about missing values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.bundle import Reading
from foldserve.training.errors import DataError
from foldserve.training.table.buffers import replace_by_null
from foldserve.training.table.cells import is_text


def remove_missing(cells: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """Return a copy of `cells` in which a cell is null if it equals an entry of `missing`, as a text or as a number.

    Blanks around the text of a cell are ignored.
    """
    if not missing:
        return cells
    if is_text(cells):
        unwanted = pa.array(missing, pa.string()).cast(cells.type)
        found = pc.or_(pc.is_in(cells, unwanted), pc.is_in(pc.utf8_trim_whitespace(cells), unwanted))
    elif pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        numbers = Reading(missing=tuple(missing)).missing_numbers
        found = pc.is_in(cells.cast(pa.float64(), safe=False), pa.array(numbers, pa.float64()))
    else:
        return cells
    return replace_by_null(cells, found)


def is_empty(cells: pa.ChunkedArray) -> bool:
    """Whether every cell is null."""
    return bool(cells.null_count == len(cells))


def first_missing(values: npt.NDArray[Any]) -> int | None:
    """Return the number of the first row with a missing value, counted from 1. Return None if no value is missing.

    A missing value is NaN in an array of floats, and a negative number in an array of codes.
    """
    missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
    return int(missing.argmax()) + 1 if missing.any() else None


def require_values(name: str, role: str, values: npt.NDArray[Any]) -> None:
    """Raise `DataError` if column `name` has a missing value. The message names the first row with a missing value.

    role: a description of the column for the message, such as `the target`. values: the array of the column, in the
    form that `first_missing` accepts.
    """
    if row := first_missing(values):
        raise DataError(f"column {name!r}, {role}: row {row} has no value")
