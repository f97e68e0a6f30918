"""Whether files have changed since they were read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def stamp(files: Iterable[Path]) -> list[tuple[int, ...] | None]:
    """Return values that change when one of the files does; None for a missing file.

    A secret of Kubernetes is a link, and its target changes.
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
