"""Parquet files: each column keeps its own type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from foldserve.service.sources.pandas_index import without_index
from foldserve.service.sources.source import Batch, Source, Stream, check_names, reading


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


# The number of rows in each batch of a stream.
_BATCH_ROWS = 1 << 16


def stream(path: Path) -> Stream:
    """Open a Parquet file as a stream. The groups of the stream are the row groups of the file."""
    with pyarrow.parquet.ParquetFile(path) as file:
        metadata, fields = file.metadata, file.schema_arrow
    names, notes = without_index(fields)
    check_names(path.name, names)
    groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))

    def open_batches(columns: Sequence[str], wanted: Sequence[int] | None) -> Iterator[tuple[Batch, float]]:
        chosen = range(len(groups)) if wanted is None else wanted
        done = sum(groups[: min(chosen, default=0)])
        with reading(path), pyarrow.parquet.ParquetFile(path) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=list(chosen), columns=list(columns)):
                done += len(batch)
                yield batch, done / max(1, metadata.num_rows)

    schema = pa.schema([fields.field(name) for name in names])
    return Stream(path.name, schema, typed=True, open=open_batches, groups=groups, notes=notes)
