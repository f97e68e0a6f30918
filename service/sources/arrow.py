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
    table = (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all()
    names, notes = without_index(table.schema)
    check_names(path.name, names)
    return Source(path.name, names, len(table), typed=True, take=table.column, notes=notes)
