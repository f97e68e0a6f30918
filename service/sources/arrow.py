"""Arrow files, also called Feather, and Arrow streams: each column keeps its own type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from foldserve.service.sources.pandas_index import without_index
from foldserve.service.sources.source import Batch, Source, Stream, check_names, reading

# The first bytes of an Arrow file. An Arrow stream has no signature.
FILE_SIGNATURE = b"ARROW1"


def read(path: Path) -> Source:
    """Map an Arrow file or stream into memory. The index that pandas stored does not become a column."""
    return from_table(path.name, _open(path).read_all())


def from_table(name: str, table: pa.Table) -> Source:
    """Return a source of a table in memory. name: the name of the table in messages.

    Raises `SourceError` if the column names are not valid.
    """
    names, notes = without_index(table.schema)
    check_names(name, names)
    return Source(name, names, len(table), typed=True, take=table.column, notes=notes)


def stream(path: Path) -> Stream:
    """Open an Arrow file or stream as a stream of its batches."""
    schema = _open(path).schema
    names, notes = without_index(schema)
    check_names(path.name, names)

    def open_batches(columns: Sequence[str], _: Sequence[int] | None) -> Iterator[tuple[Batch, float]]:
        with reading(path):
            opened = _open(path)
            if isinstance(opened, pa.ipc.RecordBatchFileReader):
                for place in range(opened.num_record_batches):
                    yield opened.get_batch(place).select(list(columns)), (place + 1) / opened.num_record_batches
            else:
                for batch in opened:
                    yield batch.select(list(columns)), 0.0  # unknown share, as a stream has no row count

    return Stream(path.name, pa.schema([schema.field(name) for name in names]), True, open_batches, notes=notes)


def _open(path: Path) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    mapped = pa.memory_map(str(path))
    is_file = mapped.read(len(FILE_SIGNATURE)) == FILE_SIGNATURE
    mapped.seek(0)
    return pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
