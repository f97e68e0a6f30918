"""Missing values: the cells that have no value, and the messages that refuse them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.training.errors import DataError
from foldserve.training.table.cells import is_text
from foldserve.training.table.numbers import is_number


def remove_missing(cells: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """Return `cells` with null in place of each value in `missing`: an equal text, or a number of equal value."""
    if is_text(cells):
        unwanted = pa.array(missing, pa.string()).cast(cells.type)
    elif pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False) if pa.types.is_floating(cells.type) else cells
        numbers = [float(text) for text in missing if is_number(text)]
        integers = pa.types.is_integer(cells.type)
        unwanted = pa.array([int(n) if integers else n for n in numbers if not integers or n.is_integer()], cells.type)
    else:
        return cells
    return pc.if_else(pc.is_in(cells, unwanted), pa.scalar(None, cells.type), cells) if len(unwanted) else cells


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
