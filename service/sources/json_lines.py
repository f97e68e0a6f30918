"""JSON lines: each line is one object. Each column has the type of its values."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.json

from foldserve.service.sources.source import Source, check_names

# A line must fit into one block.
_BLOCK = 8 << 20


def read(path: Path) -> Source:
    """Read all lines. If a line lacks a name, the value is missing. A text in the form of a time becomes a time."""
    with path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        options = pyarrow.json.ReadOptions(block_size=_BLOCK)
        table = pyarrow.json.read_json(pa.PythonFile(stream, "r"), read_options=options)
    names = check_names(path.name, table.column_names)
    return Source(path.name, names, len(table), typed=True, take=table.column)
