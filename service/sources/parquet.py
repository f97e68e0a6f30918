"""Parquet files: each column keeps its own type."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from foldserve.service.sources.pandas_index import without_index
from foldserve.service.sources.source import Source, check_names, reading


def read(path: Path) -> Source:
    """Open a Parquet file.

    A column is read when `take` is called for this column. The index that pandas stored does not become a column.
    """
    file = pyarrow.parquet.ParquetFile(path)
    names, notes = without_index(file.schema_arrow)
    check_names(path.name, names)

    def take(name: str) -> pa.ChunkedArray:
        with reading(path):
            return file.read([name]).column(name)

    return Source(path.name, names, file.metadata.num_rows, typed=True, take=take, notes=notes)
