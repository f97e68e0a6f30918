"""Delimited text files in any dialect: .csv, .tsv and .txt. The files may be compressed with gzip.

Every cell keeps its text: NA is a text, and 007 does not become 7. An empty cell is a missing value.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from foldserve.service.errors import SourceError
from foldserve.service.sources.dialect import Dialect, find_dialect
from foldserve.service.sources.signature import check_signature
from foldserve.service.sources.source import Batch, OnRead, ReadOptions, Source, Stream, check_names, one_line, reading

# The size of a block in bytes. A row must fit into one block. A block of this size is parsed while it is still in the
# CPU's cache.
_BLOCK = 8 << 20
_TAIL = 1 << 16


def read(path: Path, usual: str, options: ReadOptions, on_read: OnRead) -> Source:
    """Read every cell as a text. usual: the usual separator of files with this suffix. Raises `SourceError`."""
    names, dialect = _read_header(path, usual, options)
    batches = []
    for batch, share in _parse(path, dialect, names, names, options.missing):
        batches.append(batch)
        on_read(share)
    table = pa.Table.from_batches(batches, _schema(names))
    columns = {name: table.column(position) for position, name in enumerate(names)}
    return Source(path.name, names, len(table), typed=False, take=columns.pop, notes=dialect.notes)


def stream(path: Path, usual: str, options: ReadOptions) -> Stream:
    """Open the file as a stream of text cells. usual: the usual separator of files with this suffix.

    Raises `SourceError`.
    """
    names, dialect = _read_header(path, usual, options)

    def open_batches(columns: Sequence[str], _: Sequence[int] | None) -> Iterator[tuple[Batch, float]]:
        with reading(path):
            yield from _parse(path, dialect, names, columns, options.missing)

    return Stream(path.name, _schema(names), typed=False, open=open_batches, notes=dialect.notes)


def _schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def header(path: Path, usual: str, options: ReadOptions) -> tuple[str, ...]:
    """Read the column names. Raises `SourceError` if the file can't be decoded or does not use the given separator."""
    return _read_header(path, usual, options)[0]


def _read_header(path: Path, usual: str, options: ReadOptions) -> tuple[tuple[str, ...], Dialect]:
    name = path.name
    with _open_text(path, "utf-8") as (text, _):
        head = text.read(_BLOCK)
    check_signature(name, ".csv", head[:8])
    dialect, lines = find_dialect(name, head, usual, options)
    try:
        rows = csv.reader(io.StringIO(lines, newline=""), delimiter=dialect.delimiter, strict=True)
        row = next((row for row in rows if row), None)
    except csv.Error as error:
        raise SourceError(f"{name}: the header can't be read: {error}") from None
    if row is None:
        raise SourceError(f"{name} is empty")
    names = [cell.strip() for cell in row]
    if len(names) == 1 and options.sep is not None and re.search(r"[;\t,|]", names[0]):
        raise SourceError(f"{name} has one column, {names[0][:80]!r}: --sep is another separator than the file's")
    return check_names(name, names), dialect


class _TailStream(io.RawIOBase):
    """A readable stream. The attribute `last` has the last bytes that were read from the stream."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.last = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        chunk: bytes = self._inner.read(size)
        if chunk:
            self.last = (self.last + chunk[-_TAIL:])[-_TAIL:]
        return chunk


@contextmanager
def _open_text(path: Path, encoding: str) -> Iterator[tuple[_TailStream, Callable[[], float]]]:
    """Open the uncompressed text of a file as UTF-8.

    Yields the stream, and a function that returns the share of the file that was read so far.
    """
    with path.open("rb") as raw:
        size = path.stat().st_size
        stream: Any = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        if codecs.lookup(encoding).name != "utf-8":
            stream = pa.transcoding_input_stream(pa.PythonFile(stream, "r"), encoding, "utf-8")
        yield _TailStream(stream), lambda: min(raw.tell() / size, 1.0)


def _parse(
    path: Path, dialect: Dialect, names: Sequence[str], wanted: Sequence[str], missing: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Yield the wanted columns in batches. With each batch, yield the share of the file that was read so far."""
    places = [str(names.index(name)) for name in wanted]
    last = str(len(names) - 1)  # always read this column: its last cell shows whether a quote is open
    read = list(dict.fromkeys([*places, last]))
    is_header, cell = True, None
    with _open_text(path, dialect.encoding) as (text, share):
        try:
            for batch in _batches(text, dialect.delimiter, names, missing, read, threads=True):
                rows, is_header = batch.slice(int(is_header)), False
                if len(rows):
                    cell = rows.column(read.index(last))[-1].as_py()
                yield pa.RecordBatch.from_arrays(rows.columns[: len(places)], schema=_schema(wanted)), share()
        except pa.ArrowInvalid as error:
            raise SourceError(_explain(path, dialect, names, one_line(error))) from None
        except UnicodeError as error:
            raise SourceError(f"{path.name} is not {dialect.encoding} text: {one_line(error)}") from None
        if _quote_is_open(cell, text.last):
            raise SourceError(f'{path.name} ends inside a quoted cell: a quote (") is not closed')


def _batches(
    text: _TailStream,
    delimiter: str,
    names: Sequence[str],
    missing: Sequence[str],
    wanted: Sequence[str] = (),
    *,
    threads: bool,
    on_invalid: Callable[[Any], str] | None = None,
) -> Iterator[Any]:
    """Yield the rows in batches. The header is the first row of the first batch.

    wanted: the positions of the columns to convert, such as ("0", "2"); () means all columns.
    """
    columns = [str(position) for position in range(len(names))]
    return iter(
        pyarrow.csv.open_csv(
            text,
            read_options=pyarrow.csv.ReadOptions(column_names=columns, block_size=_BLOCK, use_threads=threads),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_invalid
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                null_values=["", *missing],
                strings_can_be_null=True,
                include_columns=list(wanted),
            ),
        )
    )


def _explain(path: Path, dialect: Dialect, names: Sequence[str], error: str) -> str:
    """Explain pyarrow's error. The text file is read again in one thread, because pyarrow gives the number of a wrong
    row only if it reads in one thread.
    """
    if "straddling" in error:
        return f'{path.name} has a row of more than {_BLOCK >> 20} MiB: is a quote (") not closed?'
    if match := re.search(r"column #(\d+): .*UTF8", error):
        name = names[int(match[1])]
        return f"{path.name}: column {name!r} contains bytes that are not UTF-8; use --encoding, for example latin-1"
    if "Expected" not in error:
        return f"{path.name} can't be read: {error}"
    refused: list[Any] = []

    def keep(row: Any) -> str:
        refused.append(row)
        return "error"

    with _open_text(path, dialect.encoding) as (text, _):
        try:
            for _batch in _batches(text, dialect.delimiter, names, (), threads=False, on_invalid=keep):
                pass
        except pa.ArrowInvalid:
            row = refused[0]
            return (
                f"{path.name}: row {row.number - 1} has {row.actual_columns} cells, but the header has "
                f"{row.expected_columns}"
            )
    return f"{path.name} changed while it was read"


def _quote_is_open(cell: str | None, last: bytes) -> bool:
    """Whether the file ends inside a quoted cell. pyarrow accepts such a file, and returns the rest of the file as one
    cell.
    """
    if cell is None or last.rstrip(b"\r\n").endswith(b'"'):
        return False
    text = cell.encode()
    return b"\n" in text or last.endswith(b'"' + text)
