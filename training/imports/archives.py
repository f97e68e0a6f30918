"""Reads untrusted files into memory, and checks the entries of zip archives.

The module does not depend on a model format.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from foldserve.training.errors import ModelImportError

# A dense network in a file of 1 GiB has 268 million weights.
MAX_FILE = 2**30


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of at most `MAX_FILE` bytes. Raises `ModelImportError`."""
    try:
        if not path.is_file():
            raise ModelImportError(f"{path}: no such file")
        if path.stat().st_size > MAX_FILE:
            raise ModelImportError(f"{path.name} has more than {MAX_FILE >> 20} MiB, the limit of an import")
        return path.read_bytes()
    except OSError as error:
        raise ModelImportError(f"can't read {path.name}: {error.strerror}") from error


def is_too_dense(size: int, stored: int) -> bool:
    """Whether the declared size of an entry is more than 64 MiB, and more than 100 times its `stored` bytes."""
    return size > 2**26 and size > 100 * stored


def check_entries(entries: Sequence[zipfile.ZipInfo], limit: int) -> None:
    """Refuse an archive that has too many entries, entries that are too large, or paths that point outside the archive.

    limit: the largest allowed number of entries. All entries together may unpack to at most `MAX_FILE` bytes. Raises
    `ModelImportError`.
    """
    if len(entries) > limit:
        raise ModelImportError(f"the archive has {len(entries)} entries; a model has at most {limit}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ModelImportError("two entries of the archive have the same name")
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
            raise ModelImportError("an entry of the archive has a path that leaves the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ModelImportError("an entry of the archive is a symbolic link")
        if entry.flag_bits & 1:
            raise ModelImportError("the archive is encrypted")
        if is_too_dense(entry.file_size, entry.compress_size):
            raise ModelImportError(f"{path.name} grows more than 100-fold when it is unpacked")
    if sum(entry.file_size for entry in entries) > MAX_FILE:
        raise ModelImportError(f"the archive has more than {MAX_FILE >> 20} MiB when it is unpacked")
