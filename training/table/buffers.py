"""Copies Arrow columns into NumPy arrays, and replaces chosen cells with null. The module does not depend on the kinds
of columns.

This module does not use Arrow's `to_numpy` and `scalar`. Arrow's functions give the same results as this module, but
import pandas if it is installed. The import of pandas takes 0.3 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def copy_numbers(cells: pa.ChunkedArray, null: float) -> npt.NDArray[Any]:
    """Return a column of integers or floating-point numbers as an array [rows] of the same type.

    Each null in the column becomes the number in the argument `null`.
    """
    fill = _number(null, cells.type)
    # DLPack passes the memory of an Arrow array to NumPy. DLPack does not support nulls, so each null is replaced
    # first.
    chunks = [np.from_dlpack(chunk.fill_null(fill) if chunk.null_count else chunk) for chunk in cells.chunks]
    return np.concatenate(chunks) if chunks else np.empty(0, cells.type.to_pandas_dtype())


def replace_by_null(cells: pa.ChunkedArray, chosen: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a copy of `cells` with null in place of some cells. chosen: bool [rows], True for each cell to replace."""
    return pc.if_else(chosen, pa.nulls(1, cells.type)[0], cells)


def find_empty(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return bool [rows]: True for an empty text, False for any other text, and null for a null."""
    return pc.equal(pc.binary_length(texts), _number(0, pa.int32()))


def _number(value: float, kind: pa.DataType) -> pa.Scalar:
    return pa.Array.from_buffers(kind, 1, [None, pa.py_buffer(np.array([value], kind.to_pandas_dtype()))])[0]


def find_nulls(cells: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return bool [rows], which is True for a null cell."""
    return copy_numbers(pc.is_null(cells).cast(pa.uint8()), 0).astype(np.bool_)
