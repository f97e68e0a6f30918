"""Chooses the reader of a source by the name of the source, and checks that the content of a file has the format of its
name.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from foldserve.service.errors import SourceError
from foldserve.service.sources import arrays, arrow, delimited, json_lines, parquet, spreadsheet
from foldserve.service.sources.join import join
from foldserve.service.sources.signature import check_signature, guess_suffix
from foldserve.service.sources.source import OnRead, ReadOptions, Source, Stream, reading, stream_source
from foldserve.service.text import join_some

DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".txt": ",", ".txt.gz": ","}
JSON = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_ARROW = (".arrow", ".feather", ".ipc")
_SUFFIXES = (*DELIMITERS, ".parquet", ".xlsx", *JSON, *_ARROW, ".npz")
_PLAIN = ReadOptions()

STANDARD_INPUT = "-"

BuiltIn = Mapping[str, Callable[[], Source]]
"""Tables that need no file, by their names."""


def read(
    source: str,
    options: ReadOptions = _PLAIN,
    on_read: OnRead = lambda _: None,
    more: Sequence[str] = (),
    built_in: BuiltIn = MappingProxyType({}),
) -> Source:
    """Open the file, the folder, the standard input or the built-in table that `source` names.

    on_read: a function that is called with the share of the source that was read so far, from 0 to 1. more: further
    files, whose rows follow those of `source`. Raises `SourceError` with the column or row if the source is not a
    table.
    """
    names = [file for each in (source, *more) for file in list_files(each, built_in)]
    if len(names) == 1:
        found = _read_one(names[0], options, on_read, built_in)
    else:
        parts = [
            _read_one(name, options, lambda share, done=place: on_read((done + share) / len(names)), built_in)  # type: ignore[misc]
            for place, name in enumerate(names)
        ]
        folder = not more
        found = join(parts, Path(source).name if folder else f"{parts[0].name} and {len(parts) - 1} more")
    if found.rows == 0:
        raise SourceError(f"{found.name} has columns but no rows")
    return found


def header(source: str, options: ReadOptions = _PLAIN) -> tuple[str, ...]:
    """Return the column names of a file or folder without reading the rows of a delimited or Parquet file.

    Raises `SourceError`.
    """
    first = list_files(source)[0]
    suffix = find_suffix(first)
    path = Path(first)
    if suffix in (".npz", *JSON):
        return read(first, options).names
    with reading(path):
        if suffix in DELIMITERS:
            return delimited.header(path, DELIMITERS[suffix], options)
        return spreadsheet.header(path, options.sheet) if suffix == ".xlsx" else _open_typed(path, suffix).names


def stream(file: str, options: ReadOptions = _PLAIN) -> Stream:
    """Open one file as a stream of batches. Raises `SourceError`."""
    suffix, path = find_suffix(file), Path(file)
    with reading(path):
        if suffix in DELIMITERS:
            return delimited.stream(path, DELIMITERS[suffix], options)
        if suffix in (".xlsx", ".npz"):
            return stream_source(_read_one(file, options, lambda _: None, {}))
        if suffix == ".parquet":
            return parquet.stream(path)
        return json_lines.stream(path) if suffix in JSON else arrow.stream(path)


def list_files(source: str, built_in: Container[str] = ()) -> list[str]:
    """Return the files of a folder in the order of their names. All files must have the same format.

    If the folder has Parquet files, only the Parquet files are returned. If `source` is not a folder, return only
    `source`. Raises `SourceError`.
    """
    path = Path(source)
    if not source or source in built_in or not path.is_dir():
        return [source]
    found: dict[str, list[str]] = {}
    with reading(path):
        for file in path.rglob("*"):
            suffix = _suffix_of(file.name)
            if suffix and not file.name.startswith(("_", ".")) and file.is_file():
                found.setdefault(suffix, []).append(str(file))
    kinds = [".parquet"] if ".parquet" in found else sorted(found)
    if len(kinds) > 1:
        raise SourceError(f"{source} has files of several formats, {join_some(kinds, 10)}: name the files")
    if not kinds:
        raise SourceError(f"{source} is a folder without a table: expected files of {', '.join(_SUFFIXES)}")
    return sorted(found[kinds[0]])


def _read_one(source: str, options: ReadOptions, on_read: OnRead, built_in: BuiltIn) -> Source:
    if source in built_in:
        return built_in[source]()
    if source == STANDARD_INPUT:
        with spool_standard_input() as path:
            return _read_one(str(path), options, on_read, {})  # an open file can be read after its name is removed
    suffix = find_suffix(source, built_in)
    path = Path(source)
    with reading(path):
        if suffix in DELIMITERS:
            return delimited.read(path, DELIMITERS[suffix], options, on_read)
        return spreadsheet.read(path, options.sheet) if suffix == ".xlsx" else _open_typed(path, suffix)


def _open_typed(path: Path, suffix: str) -> Source:
    if suffix == ".parquet":
        return parquet.read(path)
    if suffix == ".npz":
        return arrays.read(path)
    return json_lines.read(path) if suffix in JSON else arrow.read(path)


@contextmanager
def spool_standard_input() -> Iterator[Path]:
    """Copy the standard input into a temporary file, because the readers need a file.

    Yield the path of the temporary file. The first bytes of the file show its format.
    """
    head = sys.stdin.buffer.read(8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"stdin{guess_suffix(head)}")
        with path.open("wb") as file:
            file.write(head)
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


def find_suffix(source: str, built_in: Iterable[str] = ()) -> str:
    """Return the suffix in `_SUFFIXES` that the name of a file has.

    Raises `SourceError` if the name has no known suffix. The file must begin with the bytes that files with
    this suffix have.
    """
    suffix = _suffix_of(source)
    path = Path(source)
    if suffix is None:
        others = f", or one of {', '.join(built_in)}" if built_in else ""
        raise SourceError(
            f"unknown source {source!r}: expected a file ({', '.join(_SUFFIXES)}), a folder of such files, - for "
            f"the standard input{others}"
        )
    with reading(path), path.open("rb") as file:
        check_signature(path.name, suffix, file.read(8))
        if suffix == ".parquet":
            file.seek(-4, io.SEEK_END)
            if file.read(4) != b"PAR1":
                raise SourceError(f"{path.name} is cut short: a Parquet file ends with PAR1")
    return suffix


def _suffix_of(name: str) -> str | None:
    return next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), None)
