"""Writes files and folders. A crash or a full disk leaves the old content or the new content, but never a mixture.

This module does not depend on bundles. Every function may raise `OSError`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_file(file: Path, content: bytes, partial: Path | None = None) -> None:
    """Write `file`, or replace its content.

    partial: the content is first written to this file, which must be on the same file system as `file`. The default for
    `partial` is a hidden file beside `file`. If the write fails, this file is removed. If the process is killed, this
    file remains.
    """
    partial = partial or file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        write_synced(partial, content)
        partial.replace(file)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def write_synced(file: Path, content: bytes) -> None:
    """Write `file`, and wait until its content is on the disk. After a crash during the write, only a part of the
    content may be in the file.
    """
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in `folder` are on the disk.

    If the machine crashes before `sync_folder` returns, the rename of a file in the folder may be lost.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
