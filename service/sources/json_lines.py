"""JSON lines: each line is one object. `read` returns typed columns. `stream` returns the parsed values."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json

from foldserve.service.sources.source import Batch, Source, Stream, check_names, reading

# A line must fit into one block.
_BLOCK = 8 << 20


def read(path: Path) -> Source:
    """Read all lines.

    If a line has no member for a column, the cell of this column is missing. A text in the form of a time becomes a
    time.
    """
    with path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        options = pyarrow.json.ReadOptions(block_size=_BLOCK)
        table = pyarrow.json.read_json(pa.PythonFile(stream, "r"), read_options=options)
    names = check_names(path.name, table.column_names)
    return Source(path.name, names, len(table), typed=True, take=table.column)


# The number of lines in each batch of a stream.
_BATCH_LINES = 2048


def stream(path: Path) -> Stream:
    """Open the file as a stream of its parsed lines. A line that is not JSON becomes None. Empty lines are left out."""

    def open_batches(_: Sequence[str], __: Sequence[int] | None) -> Iterator[tuple[Batch, float]]:
        size = max(1, path.stat().st_size)
        with reading(path), path.open("rb") as raw:
            lines: list[Any] = []
            for line in gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw:
                if line.strip():
                    lines.append(_parse(line))
                if len(lines) == _BATCH_LINES:
                    yield lines, raw.tell() / size
                    lines = []
            if lines:
                yield lines, 1.0

    return Stream(path.name, None, True, open_batches)


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
