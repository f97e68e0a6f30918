"""Detects that files have changed since they were read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def stamp(files: Iterable[Path]) -> list[tuple[int, ...] | None]:
    """Return a stamp for each file. A file's stamp changes when the file changes, and is None if the file is missing.

    Kubernetes mounts each file of a secret as a link, and changes the target of the link.
    """
    found: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev))
    return found
