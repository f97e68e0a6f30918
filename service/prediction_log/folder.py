"""The files of the prediction log, as <folder>/<model>/<version>/<time>-<process>.parquet.

A file is written under a temporary name, then renamed. Several processes may write to one folder. This module writes
any Arrow table, and does not depend on models or requests.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foldserve.service.errors import StartError

_FILE = re.compile(r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{16}[.]parquet")
_PARTIAL = ".partial-"
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700


class LogFolder:
    """The folder of the log. max_bytes: the largest size of all files together.

    max_seconds: the largest age of a file.
    """

    def __init__(self, path: Path, max_bytes: int, max_seconds: float) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        # A process identifier is not unique, because each start of a container may give the same identifier.
        self._process = secrets.token_hex(8)

    def prepare(self, models: Path) -> None:
        """Create the folder if it is missing. Remove the temporary files of killed servers.

        Raises `StartError` if the folder can't be written, or if it is in the folder of the models.
        """
        flag = f"--prediction-log {self.path}"
        if self.path.resolve().is_relative_to(models.resolve()):
            raise StartError(f"{flag}: it is in the folder of the models, {models}; choose another folder")
        try:
            self.path.mkdir(_PRIVATE_FOLDER, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            for file in self.path.glob(f"*/*/{_PARTIAL}*"):
                _remove_abandoned(file)
        except FileNotFoundError:
            raise StartError(f"{flag}: {self.path.parent} does not exist; make it first") from None
        except FileExistsError:
            raise StartError(f"{flag}: it is a file; choose a folder") from None
        except OSError as error:
            raise StartError(
                f"{flag}: can't write there: {error.strerror}; let the user of this server (uid {os.getuid()}) "
                "write to it, or choose another folder"
            ) from error

    def write(self, name: str, version: int, table: pa.Table) -> None:
        """Write a new file with all rows of the table. Only the owner of the file may read it. Raises `OSError`."""
        folder = self.path / name / str(version)
        folder.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
        target = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{self._process}.parquet"
        partial = target.with_name(f"{_PARTIAL}{target.name}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                # the lock shows other servers that this file is in use, so they do not remove it
                fcntl.flock(stream, fcntl.LOCK_EX)
                pq.write_table(table, stream, compression="zstd")
                stream.flush()
                os.fsync(stream.fileno())
                partial.rename(target)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def trim(self) -> None:
        """Remove files that are too old.

        Also remove the oldest files, until all files together have at most `max_bytes` bytes. Raises `OSError`.
        """
        files = sorted(self._files(), reverse=True)  # the newest first
        total, oldest = 0, time.time() - self._max_seconds
        for modified, size, file in files:
            total += size
            if total > self._max_bytes or modified < oldest:
                file.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield the files of the log, each with the time of its last change and its size."""
        for file in self.path.glob("*/*/*.parquet"):
            if _FILE.fullmatch(file.name):
                with suppress(FileNotFoundError):  # another process has removed the file
                    status = file.stat()
                    yield status.st_mtime, status.st_size, file


def _remove_abandoned(file: Path) -> None:
    """Remove a temporary file, unless another process still writes it."""
    with suppress(FileNotFoundError, BlockingIOError), file.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
