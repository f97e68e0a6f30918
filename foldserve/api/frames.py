"""Converts tables of Python libraries to Arrow columns, and converts results back to the same library.

A table may be a data frame, an Arrow table, a dict of columns or an array. The module imports pandas only for a frame
of pandas, and polars only for a frame of polars. The index of a pandas frame is not a column. The result for a frame of
pandas gets the index of this frame. This module does not depend on a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.api.extras import require
from foldserve.service.errors import InvalidInput

_LIBRARIES = ("pandas", "polars", "pyarrow")


@dataclass(frozen=True)
class Columns:
    """The columns of a table. name: the kind of table, for messages. take: a function that returns a column as an Arrow
    ChunkedArray.

    `take` raises `InvalidInput` for a column that Arrow can't represent.
    """

    name: str
    names: tuple[str, ...]
    rows: int
    take: Callable[[str], Any]


def library(data: Any) -> str | None:
    """Return the library of a data frame or Arrow table: pandas, polars or pyarrow.

    Return None for any other object.
    """
    for kind in type(data).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _LIBRARIES and kind.__name__ in ("DataFrame", "Table", "RecordBatch"):
            return package
    return "pyarrow" if hasattr(data, "__arrow_c_stream__") and not hasattr(data, "dtype") else None


def read_columns(data: Any, names: Sequence[str] | None = None) -> Columns:
    """Return the columns of a table.

    data: a data frame of pandas or polars, an Arrow table, an object with the method `__arrow_c_stream__`, a dict of
    columns, or an array [rows, columns]. names: the names of an array's columns; x0, x1 and so on by default. Raises
    `InvalidInput` for any other object, and `MissingExtra` if pyarrow is not installed.
    """
    require("pyarrow", extra="frames")
    found = library(data)
    if found == "pandas":
        columns = [str(name) for name in data.columns]
        places = {name: place for place, name in enumerate(columns)}
        return _checked("the frame", columns, len(data), lambda name: data.iloc[:, places[name]])
    if found == "polars":
        return _checked("the frame", data.columns, len(data), lambda name: data[name].to_arrow())
    if found == "pyarrow":
        return _of_arrow(data)
    if isinstance(data, Mapping):
        return _of_mapping(data)
    return _of_array(data, names)


def _of_arrow(data: Any) -> Columns:
    import pyarrow as pa

    table = data if isinstance(data, pa.Table) else pa.table(data)
    return _checked("the table", table.column_names, len(table), table.column)


def _of_mapping(data: Mapping[Any, Any]) -> Columns:
    lengths = {}
    for name, values in data.items():
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise InvalidInput(f"column {str(name)!r} is not a sequence of values, one for each row")
        lengths[str(name)] = len(values)
    if len(set(lengths.values())) > 1:
        raise InvalidInput(f"the columns differ in length: {lengths}")
    by_name = {str(name): values for name, values in data.items()}
    rows = next(iter(lengths.values()), 0)
    return _checked("the dict", list(map(str, data)), rows, lambda name: by_name[name])


def _of_array(data: Any, names: Sequence[str] | None) -> Columns:
    array = as_array(data)
    columns = [f"x{place}" for place in range(array.shape[1])] if names is None else list(names)
    if len(columns) != array.shape[1]:
        raise InvalidInput(f"the array has {array.shape[1]} columns, expected {len(columns)}")
    places = {name: place for place, name in enumerate(columns)}
    return _checked("the array", columns, len(array), lambda name: array[:, places[name]])


def as_array(data: Any) -> npt.NDArray[Any]:
    """Return an array [rows, columns]. Raises `InvalidInput` if `data` has another type."""
    if hasattr(data, "__array__") or hasattr(data, "__array_interface__"):
        array = np.asarray(data)
        if array.ndim == 2:
            return array
        raise InvalidInput(f"the array has the shape {list(array.shape)}, expected [rows, columns]")
    raise InvalidInput(
        f"{type(data).__name__} is not a table: expected a data frame, an Arrow table, a dict of columns or an array"
    )


def _checked(kind: str, names: Sequence[str], rows: int, take: Callable[[str], Any]) -> Columns:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise InvalidInput(f"{kind} has two columns with the name {twice!r}")
    return Columns(kind, tuple(names), rows, lambda name: _to_arrow(name, take(name)))


def _to_arrow(name: str, values: Any) -> Any:
    """Return a column as ChunkedArray. Texts get the type string. NaN in a column of Python objects becomes null."""
    import pyarrow as pa

    try:
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            if isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.dtype.itemsize != 4:
                values = values.astype(np.float64)  # Arrow has no type float128
            values = pa.array(values, from_pandas=True)
        cells = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
        if isinstance(cells.type, pa.ExtensionType):
            cells = cells.cast(cells.type.storage_type)
        if pa.types.is_large_string(cells.type) or pa.types.is_string_view(cells.type):
            cells = cells.cast(pa.string())
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"column {name!r} has values that have no common Arrow type") from error
    return cells


# --- results ----------------------------------------------------------------------------------------------------------


def column_like(data: Any, values: npt.NDArray[Any], name: str) -> Any:
    """Return values [rows] as an object of the library of `data`: a Series, an Arrow array or a NumPy array."""
    found = library(data)
    if found == "pandas":
        import pandas

        return pandas.Series(values, index=data.index, name=name)
    if found == "polars":
        import polars

        return polars.Series(name, values)
    if found == "pyarrow":
        import pyarrow as pa

        return pa.array(values)
    return values


def table_like(data: Any, values: npt.NDArray[Any], names: Sequence[Any], texts: Sequence[str]) -> Any:
    """Return values [rows, columns] as an object of the library of `data`: a frame, an Arrow table or a NumPy array.

    names: the names of the columns in a frame of pandas. texts: the names of the columns in an Arrow table or a polars
    frame.
    """
    found = library(data)
    if found == "pandas":
        import pandas

        return pandas.DataFrame(values, index=data.index, columns=list(names))
    if found == "polars":
        import polars

        return polars.DataFrame(values, schema=list(texts), orient="row")
    if found == "pyarrow":
        import pyarrow as pa

        return pa.table(dict(zip(texts, map(np.ascontiguousarray, values.T), strict=True)))
    return values
