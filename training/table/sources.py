"""Sources: from what a person names to columns of cells as they stand there, in the order of the table.

    digits, iris, ...               scikit-learn's own tables
    .csv .tsv, and both with .gz    every cell is a text, or nothing where it is empty
    .parquet                        each column in its own type
    .npz                            two arrays, [rows, features] and [rows]

A file is read as what its name says, and refused when it is something else. It knows no target and no kinds: what a
cell means is cells.py's. The first row under a header is row 1 in every message.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from foldserve.training.errors import DataError

BUILT_IN = ("breast_cancer", "diabetes", "digits", "iris", "wine")
MAX_COLUMNS = 65_536

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FILES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".npz")
# What a file begins with that was given a wrong name.
_MAGIC = {
    b"PK\x03\x04": "a zip archive, or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"\x93NUMPY": "a single NumPy array",
    b"\x89HDF": "HDF5",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
}
# A row has to fit; and a block of text is parsed while it is in the cache.
_BLOCK = 8 << 20
_TAIL = 1 << 16
# How pandas stores the index of a table that has no other use for it.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")

Hook = Callable[[float], None]


@dataclass(frozen=True)
class Source:
    """Columns of cells, of equal length.

    take: gives up the cells of a column, once, so that a large table need not be held twice. Text is `string`, no
    value is null.
    """

    name: str
    names: tuple[str, ...]
    rows: int
    take: Callable[[str], pa.ChunkedArray]
    notes: tuple[str, ...] = field(default=())


def read(source: str, missing: Sequence[str] = (), on_read: Hook = lambda _: None) -> Source:
    """Open what `source` names: a built-in table or a file.

    missing: texts that mean "no value" in a text file, beside the empty cell. on_read: gets the share of the file that
    was read, 0 to 1. Raises `DataError` for what is no table, in one line that names the column or row.
    """
    suffix = _kind_of_file(source)
    if suffix is None:
        return _built_in(source)
    path = Path(source)
    with _refusing(path):
        if suffix == ".parquet":
            found = _parquet(path)
        elif suffix == ".npz":
            found = _npz(path)
        else:
            found = _text(path, _DELIMITERS[suffix.removesuffix(".gz")], missing, on_read)
    if found.rows == 0:
        raise DataError(f"{path.name} has columns and no rows")
    return found


def header(source: str) -> tuple[str, ...]:
    """The column names of what `source` names, without reading a CSV's or Parquet's rows. Raises `DataError`."""
    suffix = _kind_of_file(source)
    path = Path(source)
    if suffix is None or suffix == ".npz":
        return read(source).names
    with _refusing(path):
        if suffix == ".parquet":
            return _parquet(path).names
        with _decoded(path) as (text, _):
            return _header(path.name, text, _DELIMITERS[suffix.removesuffix(".gz")])


def _suffix(source: str) -> str | None:
    return next((suffix for suffix in _FILES if source.lower().endswith(suffix)), None)


def _kind_of_file(source: str) -> str | None:
    """Which of `_FILES` it is, None for a built-in table; refuse what is neither."""
    if source in BUILT_IN:
        return None
    suffix, path = _suffix(source), Path(source)
    if suffix is None:
        raise DataError(
            f"unknown source {source!r}: expected a file ({', '.join(_FILES)}) or one of {', '.join(BUILT_IN)}"
        )
    if path.is_dir():
        raise DataError(f"{source} is a folder")
    with _refusing(path), path.open("rb") as file:
        _check_magic(path.name, suffix, file.read(8))
        if suffix == ".parquet":
            file.seek(-4, io.SEEK_END)
            if file.read(4) != b"PAR1":
                raise DataError(f"{path.name} is cut short: a Parquet file ends with PAR1")
    return suffix


def _check_magic(name: str, suffix: str, first: bytes) -> None:
    if not first:
        raise DataError(f"{name} is empty")
    expected = {".parquet": b"PAR1", ".npz": b"PK\x03\x04"}.get(suffix, b"\x1f\x8b" if suffix.endswith(".gz") else b"")
    if expected and first.startswith(expected):
        return
    found = next((what for magic, what in _MAGIC.items() if first.startswith(magic)), None)
    if found or expected:
        raise DataError(f"{name} is no {suffix} file" + (f" but {found}" if found else ""))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the readers raise for a damaged file into one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path.name} is damaged or cut short: {_line(error)}") from error
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _line(error)
        raise DataError(f"{path.name} can't be read: {reason}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _checked_names(source: str, names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{source} has {len(names):,} columns: {MAX_COLUMNS:,} at most can be trained on")
    seen: set[str] = set()
    for place, name in enumerate(names, 1):
        if not name.strip():
            raise DataError(
                f"{source}: column {place} has no name in the header; if it is the index that pandas wrote, "
                "write the file with index=False"
            )
        if name in seen:
            raise DataError(f"{source} has two columns of the name {name!r}")
        seen.add(name)
    return tuple(names)


# Text -----------------------------------------------------------------------------------------------------------------


class _Tail(io.RawIOBase):
    """A readable stream that remembers its last bytes."""

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
def _decoded(path: Path) -> Iterator[tuple[_Tail, Callable[[], float]]]:
    """The text of a file, uncompressed, and a function that says which share of the file was read."""
    with path.open("rb") as raw:
        size = path.stat().st_size
        stream = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        yield _Tail(stream), lambda: min(raw.tell() / size, 1.0)


def _header(name: str, text: _Tail, delimiter: str) -> tuple[str, ...]:
    head = text.read(_BLOCK)
    _check_magic(name, ".csv", head[:8])
    if b"\0" in head:
        raise DataError(f"{name} holds zero bytes: it is no UTF-8 text")
    try:
        lines = io.StringIO(codecs.getincrementaldecoder("utf-8-sig")().decode(head), newline="")
        row = next((row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row), None)
    except UnicodeDecodeError as error:
        line = head[: error.start].count(b"\n") + 1
        raise DataError(f"{name} is no UTF-8 text: line {line} holds the byte 0x{head[error.start]:02x}") from None
    except csv.Error as error:
        raise DataError(f"{name}: the header can't be read: {error}") from None
    if row is None:
        raise DataError(f"{name} is empty")
    names = [cell.strip() for cell in row]
    if len(names) == 1 and re.search(r"[;\t,|]", names[0]):
        what = {",": "commas", "\t": "tabs"}[delimiter]
        raise DataError(f"{name} has one column, {names[0][:80]!r}: its cells have to be separated by {what}")
    return _checked_names(name, names)


def _text(path: Path, delimiter: str, missing: Sequence[str], on_read: Hook) -> Source:
    """Every cell as it is written: "NA" stays a text, and 007 is no number before cells.py says so."""
    with _decoded(path) as (text, _):
        names = _header(path.name, text, delimiter)
    table = _parse(path, delimiter, names, missing, on_read)
    columns = {name: table.column(place) for place, name in enumerate(names)}
    return Source(path.name, names, len(table), columns.pop)


def _parse(path: Path, delimiter: str, names: Sequence[str], missing: Sequence[str], on_read: Hook) -> pa.Table:
    batches = []
    with _decoded(path) as (text, share):
        try:
            for batch in _batches(text, delimiter, names, missing, threads=True):
                batches.append(batch)
                on_read(share())
        except pa.ArrowInvalid as error:
            raise DataError(_why(path, delimiter, names, _line(error))) from None
        table = pa.Table.from_batches(batches).slice(1)
        if len(table) and _quote_is_open(table.column(len(names) - 1)[-1].as_py(), text.last):
            raise DataError(f'{path.name} ends inside a quoted cell: a quote (") is not closed')
    return table


def _batches(
    text: _Tail,
    delimiter: str,
    names: Sequence[str],
    missing: Sequence[str],
    *,
    threads: bool,
    on_invalid: Callable[[Any], str] | None = None,
) -> Iterator[Any]:
    """The rows of a text, the header being the first."""
    places = [str(place) for place in range(len(names))]
    return iter(
        pyarrow.csv.open_csv(
            text,
            read_options=pyarrow.csv.ReadOptions(column_names=places, block_size=_BLOCK, use_threads=threads),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_invalid
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(places, pa.string()), null_values=["", *missing], strings_can_be_null=True
            ),
        )
    )


def _why(path: Path, delimiter: str, names: Sequence[str], error: str) -> str:
    """Say what pyarrow refused, with the row, which it knows only when it reads in one thread."""
    if "straddling" in error:
        return f'{path.name} has a row of more than {_BLOCK >> 20} MiB: is a quote (") not closed?'
    if match := re.search(r"column #(\d+): .*UTF8", error):
        return f"{path.name}: column {names[int(match[1])]!r} holds bytes that are not UTF-8"
    if "Expected" not in error:
        return f"{path.name} can't be read: {error}"
    refused: list[Any] = []

    def note(row: Any) -> str:
        refused.append(row)
        return "error"

    with _decoded(path) as (text, _):
        try:
            for _batch in _batches(text, delimiter, names, (), threads=False, on_invalid=note):
                pass
        except pa.ArrowInvalid:
            row = refused[0]
            return (
                f"{path.name}: row {row.number - 1} has {row.actual_columns} cells, the header {row.expected_columns}"
            )
    return f"{path.name} changes while it is read"


def _quote_is_open(cell: str | None, last: bytes) -> bool:
    """Whether the file ended in a quoted cell; pyarrow takes what there is."""
    if cell is None or last.rstrip(b"\r\n").endswith(b'"'):
        return False
    text = cell.encode()
    return b"\n" in text or last.endswith(b'"' + text)


# Typed files ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Source:
    file = pyarrow.parquet.ParquetFile(path)
    stored = file.schema_arrow.names
    names = tuple(name for name in stored if not _PANDAS_INDEX.fullmatch(name))
    _checked_names(path.name, names)

    def take(name: str) -> pa.ChunkedArray:
        with _refusing(path):
            return file.read([name]).column(name)

    notes = ("the index that pandas wrote is no column",) if len(names) < len(stored) else ()
    return Source(path.name, names, file.metadata.num_rows, take, notes)


def _npz(path: Path) -> Source:
    """`x` [rows, features] and `y` [rows], or the only such two arrays; `feature_names`, or x0, x1, ..., and y."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ValueError as error:
        raise DataError(f"{path.name} can't be read: {_line(error)}") from None
    given = arrays.pop("feature_names", None)
    x, y = _pair(path.name, arrays)
    names = [f"x{place}" for place in range(x.shape[1])] if given is None else [str(name) for name in given.ravel()]
    if len(names) != x.shape[1]:
        raise DataError(f"{path.name}: {len(names)} feature names for {x.shape[1]} features")
    _checked_names(path.name, [*names, "y"])
    return _from_arrays(path.name, names, x, "y", y)


def _pair(name: str, arrays: dict[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    chosen = {key: arrays[key] for key in ("x", "y")} if {"x", "y"} <= arrays.keys() else arrays
    x = [array for array in chosen.values() if array.ndim == 2]
    y = [array for array in chosen.values() if array.ndim == 1]
    if len(x) != 1 or len(y) != 1 or len(x[0]) != len(y[0]):
        held = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "nothing"
        raise DataError(f"{name} holds {held}: expected x [rows, features] and y [rows]")
    return x[0], y[0]


def _from_arrays(name: str, features: Sequence[str], x: npt.NDArray[Any], target: str, y: npt.NDArray[Any]) -> Source:
    places = {feature: place for place, feature in enumerate(features)}

    def take(column: str) -> pa.ChunkedArray:
        cells = y if column == target else x[:, places[column]]
        try:
            if cells.dtype.kind == "f":
                cells = cells.astype("f8")  # Arrow knows no longer floats, and cells.py no others
            return pa.chunked_array([pa.array(cells)])
        except (pa.ArrowException, TypeError):
            raise DataError(f"{name}: column {column!r} is of a type that can't be read, {cells.dtype}") from None

    return Source(name, (*features, target), len(y), take)


def _built_in(name: str) -> Source:
    from sklearn import datasets  # late: a CSV needs none of it, and it takes a second

    raw = getattr(datasets, f"load_{name}")()
    # A class is what scikit-learn calls it: digits' are the numbers 0 to 9, iris's are names.
    y = raw.target_names[raw.target] if "target_names" in raw else raw.target
    return _from_arrays(name, [str(feature) for feature in raw.feature_names], raw.data, "target", y)
