"""Tables of two arrays: the features [rows, features] and the target [rows]. The arrays come from an .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.errors import SourceError
from foldserve.service.sources.source import Source, check_names, one_line


def read(path: Path) -> Source:
    """Read the arrays `x` and `y` of an .npz file.

    If the file has no arrays named `x` and `y`, but exactly one array [rows, columns] and one array [rows], read these
    two arrays. The array `feature_names` gives the names of the columns. Without `feature_names`, the names are x0, x1
    and so on. The target is the array `y`.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ValueError as error:
        raise SourceError(f"{path.name} can't be read: {one_line(error)}") from None
    given = arrays.pop("feature_names", None)
    x, y = _pair(path.name, arrays)
    names = [f"x{place}" for place in range(x.shape[1])] if given is None else [str(name) for name in given.ravel()]
    if len(names) != x.shape[1]:
        raise SourceError(f"{path.name}: {len(names)} feature names for {x.shape[1]} features")
    check_names(path.name, [*names, "y"])
    return from_arrays(path.name, names, x, "y", y)


def _pair(name: str, arrays: dict[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    chosen = {key: arrays[key] for key in ("x", "y")} if {"x", "y"} <= arrays.keys() else arrays
    x = [array for array in chosen.values() if array.ndim == 2]
    y = [array for array in chosen.values() if array.ndim == 1]
    if len(x) != 1 or len(y) != 1 or len(x[0]) != len(y[0]):
        found = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "nothing"
        raise SourceError(f"{name} contains {found}: expected x [rows, features] and y [rows]")
    return x[0], y[0]


def from_arrays(name: str, features: Sequence[str], x: npt.NDArray[Any], target: str, y: npt.NDArray[Any]) -> Source:
    """Return a source of the features `x` [rows, features] and the target `y` [rows]. target: the name of the target
    column.
    """
    positions = {feature: position for position, feature in enumerate(features)}

    def take(column: str) -> pa.ChunkedArray:
        cells = y if column == target else x[:, positions[column]]
        try:
            if cells.dtype.kind == "f":
                cells = cells.astype("f8")  # Arrow has no type for float128
            return pa.chunked_array([pa.array(cells)])
        except (pa.ArrowException, TypeError):
            raise SourceError(f"{name}: column {column!r} has the type {cells.dtype}, which can't be read") from None

    return Source(name, (*features, target), len(y), typed=True, take=take)
