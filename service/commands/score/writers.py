"""Writers of answers: CSV, Parquet, Arrow and JSON lines. A writer needs only a binary stream, not a path.

The written bytes depend only on the answers, not on how the answers are divided into batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, Protocol, get_args

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

Format = Literal["csv", "parquet", "arrow", "jsonl"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
# The number of rows of a row group of Parquet, and of a batch of Arrow.
_GROUP_ROWS = 1 << 18


class Writer(Protocol):
    """Writes batches of one schema, and ends the file when the writer is closed."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Write the rows of a batch."""

    def close(self) -> None:
        """Write the last bytes of the file. The stream stays open."""


def open_writer(kind: Format, stream: BinaryIO, schema: pa.Schema) -> Writer:
    """Return a writer of answers with the columns of `schema`."""
    makers: dict[Format, Callable[[BinaryIO, pa.Schema], Writer]]
    makers = {"csv": _CsvWriter, "jsonl": _JsonLinesWriter, "parquet": _parquet, "arrow": _arrow}
    return makers[kind](stream, schema)


class _CsvWriter:
    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        plain = all(re.fullmatch(r"[\w .-]+", name) for name in schema.names)
        options = pyarrow.csv.WriteOptions(quoting_header="none" if plain else "needed")
        self._inner = pyarrow.csv.CSVWriter(pa.PythonFile(stream, "w"), schema, write_options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        self._inner.write_batch(batch)

    def close(self) -> None:
        self._inner.close()


class _JsonLinesWriter:
    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream
        self._shortened = [place for place, kind in enumerate(schema.types) if pa.types.is_float32(kind)]

    def write(self, batch: pa.RecordBatch) -> None:
        for place in self._shortened:
            # The shortest text of a float32, as the server writes it: 0.1, not 0.10000000149011612.
            short = batch.column(place).cast(pa.string()).cast(pa.float64())
            batch = batch.set_column(place, batch.schema.names[place], short)
        options = orjson.OPT_APPEND_NEWLINE
        self._stream.write(b"".join([orjson.dumps(row, default=str, option=options) for row in batch.to_pylist()]))

    def close(self) -> None:
        pass


class _GroupedWriter:
    """Collects batches until they have `_GROUP_ROWS` rows, and writes them as one group."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0

    def write(self, batch: pa.RecordBatch) -> None:
        start = 0
        while self._count + len(batch) - start >= _GROUP_ROWS:
            end = start + _GROUP_ROWS - self._count
            self._waiting.append(batch.slice(start, end - start))
            self._flush()
            start = end
        if start < len(batch):
            self._waiting.append(batch.slice(start))
            self._count += len(batch) - start

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._inner.close()

    def _flush(self) -> None:
        self._inner.write_table(pa.Table.from_batches(self._waiting).combine_chunks())
        self._waiting, self._count = [], 0


def _parquet(stream: BinaryIO, schema: pa.Schema) -> Writer:
    # A Parquet dictionary is not used, because it would make a column of probabilities larger.
    texts = [field.name for field in schema if not pa.types.is_floating(field.type)]
    return _GroupedWriter(pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd", use_dictionary=texts))


def _arrow(stream: BinaryIO, schema: pa.Schema) -> Writer:
    return _GroupedWriter(pa.ipc.new_file(pa.PythonFile(stream, "w"), schema))
