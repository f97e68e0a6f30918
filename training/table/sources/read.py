"""Choose the reader of a source by its name, and check that a file is of the format that its name says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from foldserve.training.errors import DataError
from foldserve.training.table.sources import arrays, delimited, parquet
from foldserve.training.table.sources.signature import check_signature
from foldserve.training.table.sources.source import OnRead, Source, reading

_DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_SUFFIXES = (*_DELIMITERS, ".parquet", ".npz")


def read(source: str, missing: Sequence[str] = (), on_read: OnRead = lambda _: None) -> Source:
    """Open the built-in table or the file that `source` names.

    missing: texts that mean a missing value in a delimited file, besides the empty cell. on_read: called with the
    share of the file that was read. Raises `DataError` with the column or row if the source is not a table.
    """
    suffix = _suffix(source)
    if suffix is None:
        return arrays.built_in(source)
    path = Path(source)
    with reading(path):
        if suffix == ".parquet":
            found = parquet.read(path)
        elif suffix == ".npz":
            found = arrays.read(path)
        else:
            found = delimited.read(path, _DELIMITERS[suffix], missing, on_read)
    if found.rows == 0:
        raise DataError(f"{path.name} has columns but no rows")
    return found


def header(source: str) -> tuple[str, ...]:
    """Return the column names of a source without reading the rows of a delimited or Parquet file.

    Raises `DataError`.
    """
    suffix = _suffix(source)
    path = Path(source)
    if suffix is None or suffix == ".npz":
        return read(source).names
    with reading(path):
        return parquet.read(path).names if suffix == ".parquet" else delimited.header(path, _DELIMITERS[suffix])


def _suffix(source: str) -> str | None:
    """Return one of `_SUFFIXES`, or None for a built-in table. Raises `DataError` for anything else."""
    if source in arrays.BUILT_IN:
        return None
    suffix = next((suffix for suffix in _SUFFIXES if source.lower().endswith(suffix)), None)
    path = Path(source)
    if suffix is None:
        raise DataError(
            f"unknown source {source!r}: expected a file ({', '.join(_SUFFIXES)}) or one of "
            f"{', '.join(arrays.BUILT_IN)}"
        )
    if path.is_dir():
        raise DataError(f"{source} is a folder, not a file")
    with reading(path), path.open("rb") as file:
        check_signature(path.name, suffix, file.read(8))
        if suffix == ".parquet":
            file.seek(-4, io.SEEK_END)
            if file.read(4) != b"PAR1":
                raise DataError(f"{path.name} is cut short: a Parquet file ends with PAR1")
    return suffix
