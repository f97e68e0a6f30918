"""The input files of a run, cut into pieces and chunks. The module does not depend on the model: the caller names the
wanted columns.

A piece is a part of a file that can be read alone. A chunk contains the rows that the model runs in one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from foldserve.service import sources
from foldserve.service.errors import TableError
from foldserve.service.sources import Batch, ReadOptions, Stream
from foldserve.service.text import join_some

# Row groups are added to a piece until the piece has at least this number of rows.
_PIECE_ROWS = 1 << 20
# A chunk has at most 8,192 rows and about 2**20 values. These limits make the rows of a chunk fit into the CPU's cache.
_CHUNK_ROWS, _CHUNK_VALUES = 8_192, 1 << 20
# The number of chunks that are read in advance. A batch of a Parquet file has fewer chunks than this number.
_CHUNKS_AHEAD = 16


@dataclass(frozen=True)
class Piece:
    """A part of the input: a whole file, or some row groups of a Parquet file.

    file: the path of the file, as the user named it. path: the absolute path of the file. first_row: the index of the
    first row in the file. groups: the groups of the stream to read; None for the whole file. before: the share of all
    input bytes that are in earlier files, from 0 to 1. share: the share of all input bytes that are in this file.
    """

    file: str
    path: str
    first_row: int
    groups: tuple[int, ...] | None
    before: float
    share: float


@dataclass(frozen=True)
class Chunk:
    """Some rows of a piece. first_row: the index of the first row in the file. share: the share of all input bytes that
    was read so far, from 0 to 1.
    """

    first_row: int
    rows: Batch
    share: float


def chunk_rows(features: int) -> int:
    """Return the number of rows of a chunk for a model with this number of features."""
    return max(256, min(_CHUNK_ROWS, _CHUNK_VALUES // features))


def cut(files: Sequence[str], streams: Sequence[Stream]) -> list[Piece]:
    """Cut files into pieces."""
    sizes = [max(1, Path(file).stat().st_size) for file in files]
    pieces = []
    for place, (file, stream) in enumerate(zip(files, streams, strict=True)):
        shares = sum(sizes[:place]) / sum(sizes), sizes[place] / sum(sizes)
        path = str(Path(file).absolute())
        pieces += [Piece(file, path, first, groups, *shares) for first, groups in _cut_groups(stream.groups)]
    return pieces


def _cut_groups(groups: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...] | None]]:
    if not groups:
        yield 0, None
    first, rows, numbers = 0, 0, []
    for number, count in enumerate(groups):
        numbers.append(number)
        rows += count
        if rows >= _PIECE_ROWS or number == len(groups) - 1:
            yield first, tuple(numbers)
            first, rows, numbers = first + rows, 0, []


def read_chunks(
    piece: Piece, columns: Sequence[str], options: ReadOptions, size: int, skipped: int = 0
) -> Iterator[Chunk]:
    """Yield the chunks of a piece.

    Each chunk has `size` rows, and the last chunk may have fewer rows. skipped: the number of chunks to leave out.
    """
    stream = sources.stream(piece.path, options)
    if stream.schema is not None:
        columns = [name for name in columns if name in stream.schema.names]
    first, to_skip = piece.first_row, skipped * size
    for rows, share in _rebatch(stream.open(columns, piece.groups), size):
        if to_skip >= len(rows):
            to_skip -= len(rows)
        else:
            yield Chunk(first, rows, piece.before + share * piece.share)
        first += len(rows)


def _rebatch(batches: Iterator[tuple[Batch, float]], size: int) -> Iterator[tuple[Batch, float]]:
    """Yield the same rows in batches of `size` rows. The last batch may have fewer rows."""
    waiting: list[Batch] = []
    count, share = 0, 0.0
    for batch, share in batches:
        start = 0
        while count + len(batch) - start >= size:
            end = start + size - count
            yield _join([*waiting, _slice(batch, start, end)]), share
            waiting, count, start = [], 0, end
        if start < len(batch):
            waiting.append(_slice(batch, start, len(batch)))
            count += len(batch) - start
    if count:
        yield _join(waiting), share


def _slice(batch: Batch, start: int, end: int) -> Batch:
    return batch[start:end] if isinstance(batch, list) else batch.slice(start, end - start)


def _join(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    if isinstance(batches[0], list):
        return [each for batch in batches for each in batch]
    return pa.Table.from_batches(batches)


def kept_fields(streams: Sequence[Stream], names: Sequence[str], first: Sequence[Any]) -> list[pa.Field]:
    """Return the fields of the chosen input columns `names`. Raises `TableError`.

    A column of numbers gets a type that fits this column in all files. first: the first objects of a file of JSON
    lines, or () for other formats. The values in `first` decide the types of the columns.
    """
    if streams[0].schema is None:
        return [pa.field(name, _type_of([row.get(name) for row in first if type(row) is dict])) for name in names]
    fields = []
    schemas = {stream.name: stream.schema for stream in streams if stream.schema is not None}
    for name in names:
        found = []
        for file, schema in schemas.items():
            if name not in schema.names:
                raise TableError(f"--columns: {file} has no column {name!r}; it has {join_some(schema.names, 10)}")
            kind = schema.field(name).type
            found.append(pa.schema([(name, kind.value_type if pa.types.is_dictionary(kind) else kind)]))
        try:
            fields.append(pa.unify_schemas(found, promote_options="permissive").field(0))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise TableError(f"--columns: column {name!r} has different types in the files") from None
        if pa.types.is_nested(fields[-1].type):
            raise TableError(f"--columns: column {name!r} has the type {fields[-1].type}, which can't be written")
    return fields


def _type_of(values: list[Any]) -> pa.DataType:
    """Return the type of a column of JSON values: the type that fits all values, or string."""
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind if plain else pa.string()


def keep(rows: Batch, fields: Sequence[pa.Field], first_row: int) -> list[pa.ChunkedArray]:
    """Return the chosen columns of a chunk, with the types of `fields`. Raises `TableError` if a value does not fit."""
    if not isinstance(rows, list):
        return [_cast(rows.column(field.name), field, first_row) for field in fields]
    objects = [row if type(row) is dict else {} for row in rows]
    return [_column(field, [row.get(field.name) for row in objects], first_row) for field in fields]


def _cast(cells: Any, field: pa.Field, first_row: int) -> pa.ChunkedArray:
    try:
        cells = cells if isinstance(cells, pa.ChunkedArray) else pa.chunked_array([cells])
        return cells if cells.type == field.type else cells.cast(field.type)
    except pa.ArrowInvalid:
        raise _misfit(field, first_row) from None


def _column(field: pa.Field, values: list[Any], first_row: int) -> pa.ChunkedArray:
    if field.type == pa.string():
        values = [value if value is None or type(value) is str else orjson.dumps(value).decode() for value in values]
    try:
        return pa.chunked_array([pa.array(values, field.type)])
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise _misfit(field, first_row) from None


def _misfit(field: pa.Field, first_row: int) -> TableError:
    return TableError(
        f"--columns: a value of column {field.name!r} after row {first_row} does not have the type of the first rows, "
        f"{field.type}: leave the column out"
    )


def ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the same chunks in the same order, but let a thread read the next chunks while the caller works on the
    current one.
    """
    with ThreadPoolExecutor(1, "reader") as pool:
        waiting = deque(pool.submit(next, chunks, None) for _ in range(_CHUNKS_AHEAD))
        try:
            while (chunk := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, chunks, None))
                yield chunk
        finally:
            for future in waiting:
                future.cancel()
