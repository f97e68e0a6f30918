"""Split keys: the group and the time of each row. The split keeps rows of a group together, and orders rows by time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.training.errors import DataError
from foldserve.training.table.buffers import copy_numbers, find_nulls
from foldserve.training.table.cells import distinct, is_text
from foldserve.training.table.missing import require_values
from foldserve.training.table.numbers import number_column


def read_group(name: str, cells: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return int64 [rows]. Rows of the same group get the same number. Raises `DataError` for a missing value."""
    codes = distinct(cells).codes
    require_values(name, "the group", codes)
    return codes


def read_time(name: str, cells: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return the times [rows]: float64 for a column of numbers, and int64 microseconds since 1970 for dates and times.

    A text must be a date or time of ISO 8601. Raises `DataError` for any other text and for a missing value.
    """
    numbers = number_column(cells)
    if numbers is not None:
        require_values(name, "the time", numbers)
        return numbers
    try:
        times = cells.cast(pa.timestamp("us")) if is_text(cells) else cells.cast(pa.timestamp("us"), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"column {name!r} is not a time: expected numbers, or dates like 2024-12-31 or 2024-12-31T23:59:59"
        ) from None
    require_values(name, "the time", np.where(find_nulls(times), -1, 0))
    return copy_numbers(times.cast(pa.int64()), 0)
