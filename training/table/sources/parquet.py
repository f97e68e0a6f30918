"""Parquet files: each column keeps its own type."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from foldserve.training.table.sources.source import Source, check_names, reading

# The name that pandas gives to an index without a name when it stores it as a column.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read(path: Path) -> Source:
    """Open a Parquet file; a column is read when it is taken. The index that pandas stored is not a column."""
    file = pyarrow.parquet.ParquetFile(path)
    names, notes = without_index(file.schema_arrow)
    check_names(path.name, names)

    def take(name: str) -> pa.ChunkedArray:
        with reading(path):
            return file.read([name]).column(name)

    return Source(path.name, names, file.metadata.num_rows, typed=True, take=take, notes=notes)


def without_index(schema: pa.Schema) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the columns without the index that pandas stored, and a note if there is one."""
    metadata = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    index = {name for name in metadata.get("index_columns", ()) if isinstance(name, str)}
    index |= {name for name in schema.names if _PANDAS_INDEX.fullmatch(name)}
    left_out = [name for name in schema.names if name in index]
    named = [repr(name) for name in left_out if not _PANDAS_INDEX.fullmatch(name)]
    if not left_out:
        return tuple(schema.names), ()
    note = f"the index that pandas stored{', ' * bool(named)}{', '.join(named)}{',' * bool(named)} was left out"
    return tuple(name for name in schema.names if name not in index), (note,)
