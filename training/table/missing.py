"""Missing values: the cells that have no value, and the messages that refuse them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.bundle import Reading
from foldserve.training.errors import DataError
from foldserve.training.table.cells import is_text


def remove_missing(cells: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """Return `cells` with null in place of each value in `missing`: an equal text, or a number of equal value.

    Blanks around a text are ignored.
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
    return pc.if_else(found, pa.scalar(None, cells.type), cells)


def is_empty(cells: pa.ChunkedArray) -> bool:
    """Whether every cell is null."""
    return bool(cells.null_count == len(cells))


def first_missing(values: npt.NDArray[Any]) -> int | None:
    """Return the row, from 1, of the first NaN of float values or the first negative code; None if there is neither."""
    missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
    return int(missing.argmax()) + 1 if missing.any() else None


def require_values(name: str, role: str, values: npt.NDArray[Any]) -> None:
    """Raise `DataError` with the row of the first missing value of column `name`. role: of the column, as `the target`.

    values: as for `first_missing`.
    """
    if row := first_missing(values):
        raise DataError(f"column {name!r}, {role}: row {row} has no value")
