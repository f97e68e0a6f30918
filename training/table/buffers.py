"""Copies Arrow columns into NumPy arrays. The module knows no kinds of columns.

The methods `to_numpy` of Arrow give the same arrays, but they import pandas where it is installed, which takes 0.3 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def copy_numbers(cells: pa.ChunkedArray, null: float) -> npt.NDArray[Any]:
    """Return a column of integers or floating-point numbers as an array [rows] of the same type. A null is `null`."""
    # DLPack passes the memory of an Arrow array to NumPy. It has no nulls.
    chunks = [np.from_dlpack(chunk.fill_null(null) if chunk.null_count else chunk) for chunk in cells.chunks]
    return np.concatenate(chunks) if chunks else np.empty(0, cells.type.to_pandas_dtype())


def find_nulls(cells: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return which cells are null, as an array [rows]."""
    return copy_numbers(pc.is_null(cells).cast(pa.uint8()), 0).astype(np.bool_)
