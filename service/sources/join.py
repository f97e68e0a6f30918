"""Joins several files with the same columns into one source. The rows of the files follow one another."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from foldserve.service.errors import SourceError
from foldserve.service.sources.source import Source, one_line


def join(sources: Sequence[Source], name: str) -> Source:
    """Join sources. The first source decides the order of the columns.

    Raises `SourceError` if two sources have different columns, or if a column has types that can't be combined.
    """
    first, *others = sources
    for other in others:
        if other.typed != first.typed:
            raise SourceError(f"{other.name} and {first.name} have different formats: join files of one format")
        for found, wanted in ((other, first), (first, other)):
            if lacking := next((column for column in wanted.names if column not in found.names), None):
                raise SourceError(f"{found.name} has no column {lacking!r}, a column of {wanted.name}")

    def take(column: str) -> pa.ChunkedArray:
        tables = [pa.table({column: source.take(column)}) for source in sources]
        try:
            return pa.concat_tables(tables, promote_options="permissive").column(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SourceError(f"column {column!r} has different types in the files: {one_line(error)}") from None

    notes = tuple(dict.fromkeys(note for source in sources for note in source.notes))
    return Source(name, first.names, sum(source.rows for source in sources), first.typed, take, notes)
