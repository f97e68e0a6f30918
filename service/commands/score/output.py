"""Checks the paths of the output files, and writes each output file completely or not at all.

The module does not depend on the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from foldserve.service.bundle.atomic import sync_folder
from foldserve.service.commands.score.writers import FORMATS, SUFFIXES, Format, Writer, open_writer
from foldserve.service.errors import ScoreError

STANDARD_OUTPUT = "-"


@dataclass(frozen=True)
class Output:
    """The paths of the output. path: None for the standard output. refused: the file of the refused rows, if any."""

    path: Path | None
    refused: Path | None
    kind: Format

    @property
    def folder(self) -> Path:
        """The folder of an unfinished run."""
        if self.path is None:
            raise ScoreError("the standard output can't be resumed")
        return self.path.with_name(f"{self.path.name}.partial")


def choose(output: str, kind: Format | None, refused: Path | None) -> Output:
    """Return the paths and the format of the output. Raises `ScoreError` if the name has no known suffix."""
    if output == STANDARD_OUTPUT:
        return Output(None, refused, kind or "csv")
    path = Path(output)
    suffix = path.suffix.lower()
    if kind is None and suffix not in SUFFIXES:
        raise ScoreError(f"{output}: expected a name with {', '.join(SUFFIXES)}, or --format {'|'.join(FORMATS)}")
    return Output(path, refused or path.with_name(f"{path.stem}.refused.csv"), kind or SUFFIXES[suffix])


def check(output: Output, inputs: Sequence[str], *, force: bool) -> None:
    """Raise `ScoreError` if an output file can't be written, or is also an input file. force: whether existing files
    may be replaced.
    """
    for path in filter(None, (output.path, output.refused)):
        with _writing(path):
            if path.is_dir():
                raise ScoreError(f"{path} is a folder, not a file")
            if not path.parent.is_dir():
                raise ScoreError(f"{path.parent}: no such folder; make it first")
            for source in map(Path, inputs):
                _check_input(path, source)
            if path.exists() and not force:
                raise ScoreError(f"{path} exists: use --force to replace it")
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise ScoreError(f"{path.parent}: can't write there: Permission denied")
    if output.path is not None and output.path == output.refused:
        raise ScoreError(f"{output.path}: the refused rows need another file")


def _check_input(path: Path, source: Path) -> None:
    if source.is_dir() and source.resolve() in path.resolve().parents:
        raise ScoreError(f"{path} is in the folder of the input, {source}: write it to another folder")
    if path.exists() and source.exists() and path.samefile(source):
        raise ScoreError(f"{path} is the input: write to another file")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScoreError(f"{path}: can't be written: {error.strerror or error}") from error


def write_file(path: Path, kind: Format, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write all batches to a new file, and wait until the file is on the disk. Raises `OSError`."""
    with path.open("wb") as stream:
        writer = open_writer(kind, stream, schema)
        try:
            for batch in batches:
                writer.write(batch)
        finally:
            writer.close()
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def new_file(path: Path, schema: pa.Schema) -> Iterator[Writer]:
    """Yield the writer of a CSV file. The file appears at the end if no exception was raised. Raises `OSError`."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        with partial.open("wb") as stream:
            writer = open_writer("csv", stream, schema)
            yield writer
            writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish(output: Output, written: Path, refused: Path | None) -> None:
    """Rename the written files.

    The file of answers is renamed last, so it exists only if the output is complete. Raises `OSError`.

    refused: the new file of refused rows. If no row was refused, `refused` is None, and a file of refused rows from an
    earlier run is removed.
    """
    if output.path is None:
        return
    if output.refused is not None:
        if refused is None:
            with suppress(FileNotFoundError):
                output.refused.unlink()
        else:
            refused.replace(output.refused)
            sync_folder(output.refused.parent)
    written.replace(output.path)
    sync_folder(output.path.parent)
