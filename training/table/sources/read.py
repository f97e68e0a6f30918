"""Chooses the reader of a source by its name, and checks that a file has the format that its name says."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from foldserve.training.errors import DataError
from foldserve.training.table.sources import arrays, arrow, delimited, json_lines, parquet, spreadsheet
from foldserve.training.table.sources.join import join
from foldserve.training.table.sources.signature import check_signature, guess_suffix
from foldserve.training.table.sources.source import OnRead, ReadOptions, Source, reading

_DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".txt": ",", ".txt.gz": ","}
_JSON = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_ARROW = (".arrow", ".feather", ".ipc")
_SUFFIXES = (*_DELIMITERS, ".parquet", ".xlsx", *_JSON, *_ARROW, ".npz")
_PLAIN = ReadOptions()

STANDARD_INPUT = "-"


def read(
    source: str, options: ReadOptions = _PLAIN, on_read: OnRead = lambda _: None, more: Sequence[str] = ()
) -> Source:
    """Open the built-in table, the file, the folder of Parquet files or the standard input that `source` names.

    on_read: a function that is called with the share of the source that was read. more: further files, whose rows
    follow those of `source`. Raises `DataError` with the column or row if the source is not a table.
    """
    names = [*_files(source), *(file for each in more for file in _files(each))]
    if len(names) == 1:
        found = _read_one(names[0], options, on_read)
    else:
        parts = [
            _read_one(name, options, lambda share, done=place: on_read((done + share) / len(names)))  # type: ignore[misc]
            for place, name in enumerate(names)
        ]
        folder = not more
        found = join(parts, Path(source).name if folder else f"{parts[0].name} and {len(parts) - 1} more")
    if found.rows == 0:
        raise DataError(f"{found.name} has columns but no rows")
    return found


def header(source: str, options: ReadOptions = _PLAIN) -> tuple[str, ...]:
    """Return the column names of a source without reading the rows of a delimited or Parquet file.

    Raises `DataError`.
    """
    first = _files(source)[0]
    suffix = _suffix(first)
    path = Path(first)
    if suffix is None or suffix in (".npz", *_JSON):
        return read(first, options).names
    with reading(path):
        if suffix in _DELIMITERS:
            return delimited.header(path, _DELIMITERS[suffix], options)
        return spreadsheet.header(path, options.sheet) if suffix == ".xlsx" else _open_typed(path, suffix).names


def _files(source: str) -> list[str]:
    """Return the Parquet files of a folder in the order of their names.

    If `source` is not a folder, return it alone. Raises `DataError`.
    """
    path = Path(source)
    if not source or source in arrays.BUILT_IN or not path.is_dir():
        return [source]
    files = sorted(str(file) for file in path.rglob("*.parquet") if not file.name.startswith(("_", ".")))
    if not files:
        raise DataError(f"{source} is a folder without a .parquet file")
    return files


def _read_one(source: str, options: ReadOptions, on_read: OnRead) -> Source:
    if source == STANDARD_INPUT:
        return _read_standard_input(options, on_read)
    suffix = _suffix(source)
    if suffix is None:
        return arrays.built_in(source)
    path = Path(source)
    with reading(path):
        if suffix in _DELIMITERS:
            return delimited.read(path, _DELIMITERS[suffix], options, on_read)
        return spreadsheet.read(path, options.sheet) if suffix == ".xlsx" else _open_typed(path, suffix)


def _open_typed(path: Path, suffix: str) -> Source:
    if suffix == ".parquet":
        return parquet.read(path)
    if suffix == ".npz":
        return arrays.read(path)
    return json_lines.read(path) if suffix in _JSON else arrow.read(path)


def _read_standard_input(options: ReadOptions, on_read: OnRead) -> Source:
    """Read the standard input.

    Its first bytes tell the format. The readers need a file, so the input is copied into a file.
    """
    head = sys.stdin.buffer.read(8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"stdin{guess_suffix(head)}")
        with path.open("wb") as file:
            file.write(head)
            shutil.copyfileobj(sys.stdin.buffer, file)
        return _read_one(str(path), options, on_read)  # an open file can still be read after its name is removed


def _suffix(source: str) -> str | None:
    """Return the suffix in `_SUFFIXES` that the name has, or None for a built-in table.

    Raises `DataError` for any other name.
    """
    if source in arrays.BUILT_IN:
        return None
    suffix = next((suffix for suffix in _SUFFIXES if source.lower().endswith(suffix)), None)
    path = Path(source)
    if suffix is None:
        raise DataError(
            f"unknown source {source!r}: expected a file ({', '.join(_SUFFIXES)}), a folder of .parquet files, - for "
            f"the standard input, or one of {', '.join(arrays.BUILT_IN)}"
        )
    with reading(path), path.open("rb") as file:
        check_signature(path.name, suffix, file.read(8))
        if suffix == ".parquet":
            file.seek(-4, io.SEEK_END)
            if file.read(4) != b"PAR1":
                raise DataError(f"{path.name} is cut short: a Parquet file ends with PAR1")
    return suffix
