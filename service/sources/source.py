"""A source of cells, and the checks that all readers share. The module does not depend on a file format."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.errors import SourceError

MAX_COLUMNS = 65_536

OnRead = Callable[[float], None]
"""Called with the share of the work that is done, from 0 to 1."""


@dataclass(frozen=True)
class ReadOptions:
    """The settings for reading a file. If an option is None, the reader finds its value from the file.

    missing: texts that mean a missing value in a delimited file, besides the empty cell. sep: the separator of a
    delimited file. encoding: the encoding of a delimited file. sheet: the name of a spreadsheet's sheet.
    """

    missing: tuple[str, ...] = ()
    sep: str | None = None
    encoding: str | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class Source:
    """The columns of a table, with the cells of all rows.

    rows: the number of rows in the table.
    typed: whether the source states the types of its cells. A CSV file does not state types: all its cells are texts.
    take: a function that returns the cells of a column and removes them from the source, so that a large table is in
    memory only once. For each column, `take` can be called only once. Columns of texts have Arrow's type string. A
    missing value is null. notes: facts about the reading that the user should know, one sentence each.
    """

    name: str
    names: tuple[str, ...]
    rows: int
    typed: bool
    take: Callable[[str], pa.ChunkedArray]
    notes: tuple[str, ...] = field(default=())

    def select(self, rows: npt.NDArray[np.int64]) -> Source:
        """Return a source that has only the rows `rows`, in this order."""
        return replace(self, rows=len(rows), take=lambda name: self.take(name).take(pa.array(rows)))


Batch: TypeAlias = pa.RecordBatch | list[Any]
"""Some rows of a file: columns, or parsed JSON values, one for each row."""


@dataclass(frozen=True)
class Stream:
    """The rows of one file, in batches. Only a few batches are in memory at the same time.

    schema: the names and types of the columns; None for JSON lines, whose values have types of their own.
    typed: as in `Source`.
    open: a function that yields batches of any size, each with the share of the file that was read so far, from 0 to 1.
    The arguments of the function are the names of the wanted columns and the indices of the wanted groups. None means
    all groups.
    groups: the numbers of rows of the parts that can be read alone, such as the row groups of a Parquet file. () means
    that no part of the file can be read alone.
    """

    name: str
    schema: pa.Schema | None
    typed: bool
    open: Callable[[Sequence[str], Sequence[int] | None], Iterator[tuple[Batch, float]]]
    groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


def stream_source(source: Source) -> Stream:
    """Return a stream of the rows of a source.

    This function is for formats that must be read whole, such as spreadsheets.
    """
    table = pa.table({name: source.take(name) for name in source.names})

    def open_batches(columns: Sequence[str], _: Sequence[int] | None) -> Iterator[tuple[Batch, float]]:
        done = 0
        for batch in table.select(list(columns)).to_batches():
            done += len(batch)
            yield batch, done / len(table)

    return Stream(source.name, table.schema, source.typed, open_batches, notes=source.notes)


def check_names(source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the column names.

    Raises `SourceError` for too many names, for an empty name, and for two equal names.
    """
    if len(names) > MAX_COLUMNS:
        raise SourceError(f"{source} has {len(names):,} columns; the limit is {MAX_COLUMNS:,}")
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if not name.strip():
            raise SourceError(
                f"{source}: column {position} has no name in the header; if it is the index that pandas wrote, "
                "write the file with index=False"
            )
        if name in seen:
            raise SourceError(f"{source} has two columns with the name {name!r}")
        seen.add(name)
    return tuple(names)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an exception of a file reader into a `SourceError` with a message of one line."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{path.name} is damaged or cut short: {one_line(error)}") from error
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise SourceError(f"{path.name} can't be read: {reason}") from error


def one_line(error: Exception) -> str:
    """Return the message of `error` on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
