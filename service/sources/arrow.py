"""Arrow files, also called Feather, and Arrow streams: each column keeps its own type."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from foldserve.service.sources.pandas_index import without_index
from foldserve.service.sources.source import Source, check_names

# The first bytes of an Arrow file. An Arrow stream has no signature.
FILE_SIGNATURE = b"ARROW1"


def read(path: Path) -> Source:
    """Map an Arrow file or stream into memory. The index that pandas stored does not become a column."""
    mapped = pa.memory_map(str(path))
    is_file = mapped.read(len(FILE_SIGNATURE)) == FILE_SIGNATURE
    mapped.seek(0)
    return from_table(path.name, (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all())


def from_table(name: str, table: pa.Table) -> Source:
    """Return a source of a table in memory. name: its name for messages. Raises `SourceError` for wrong names."""
    names, notes = without_index(table.schema)
    check_names(name, names)
    return Source(name, names, len(table), typed=True, take=table.column, notes=notes)
