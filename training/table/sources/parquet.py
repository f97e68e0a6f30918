"""Parquet files: each column keeps its own type."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from foldserve.training.table.sources.source import Source, check_names, reading

# The name that pandas gives to the index of a table when it stores it as a column.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read(path: Path) -> Source:
    """Open a Parquet file; a column is read when it is taken. The index that pandas stored is not a column."""
    file = pyarrow.parquet.ParquetFile(path)
    stored = file.schema_arrow.names
    names = check_names(path.name, [name for name in stored if not _PANDAS_INDEX.fullmatch(name)])

    def take(name: str) -> pa.ChunkedArray:
        with reading(path):
            return file.read([name]).column(name)

    notes = ("the index that pandas stored was left out",) if len(names) < len(stored) else ()
    return Source(path.name, names, file.metadata.num_rows, typed=True, take=take, notes=notes)
