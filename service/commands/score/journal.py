"""The folder of an unfinished run. If a run is interrupted at any moment, it can be resumed from this folder.

    OUTPUT.partial/job.json         the inputs and options of the run
                  /journal.jsonl    a line for each finished part
                  /part-000000.arrow, refused-000000.arrow
                  /output, refused  the new output files, until they are complete and renamed

A part has the answers of consecutive chunks. The journal gets the line of a part only after the files of this part are
written. A part that has no line in the journal is incomplete, and is written again. The module does not depend on the
format of the output.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from foldserve.service.bundle.atomic import sync_folder, write_synced
from foldserve.service.commands.score.scorer import Scored
from foldserve.service.errors import ScoreError

# A part ends after this number of seconds or input rows, so that little work is lost if the run is interrupted.
_PART_SECONDS = 5.0
_PART_ROWS = 1 << 22


class Journal:
    """The finished parts of one run, and the part that is being written.

    The caller must close the journal, so that another run can use the folder.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._parts = _read_parts(folder)
        self._part: _Part | None = None
        following: list[int] = self._parts[-1]["next"] if self._parts else [0, 0]
        self.piece, self.chunk = following  # the first chunk that is not in a finished part
        self.rows = self.saved
        self.refused = sum(part["refused"] for part in self._parts)
        self.unusual: Counter[tuple[str, str]] = Counter()
        for part in self._parts:
            self.unusual.update({(kind, name): count for kind, name, count in part["unusual"]})

    @property
    def saved(self) -> int:
        """The number of input rows in finished parts."""
        return sum(part["rows"] for part in self._parts)

    @classmethod
    def open(cls, folder: Path, job: dict[str, Any], *, resume: bool, force: bool) -> Journal:
        """Open the folder of the interrupted run if this folder exists and `resume` is set.

        In all other cases, create the folder of a new run.

        job: the inputs and options of the run, which must be equal to the inputs and options of the interrupted run.
        force: whether to remove an interrupted run. Raises `ScoreError` and `OSError`.
        """
        exists = folder.exists()
        if exists and not resume and not force:
            raise ScoreError(f"{folder} has an unfinished run: use --resume to go on, or --force to start again")
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if exists and not resume:
                _empty(folder)
            _settle_job(folder / "job.json", json.loads(json.dumps(job)))
            return cls(folder, lock)
        except BlockingIOError:
            os.close(lock)
            raise ScoreError(f"another run is writing {folder}") from None
        except BaseException:
            os.close(lock)
            raise

    def add(self, scored: Scored) -> None:
        """Write the result of the next chunk."""
        if self._part is None:
            self._part = _Part(self.folder, len(self._parts), scored)
        self._part.add(scored)
        self.piece, self.chunk = scored.piece, scored.chunk + 1
        self.rows += scored.rows
        self.refused += len(scored.refused or ())
        self.unusual.update(scored.unusual)
        if self._part.is_full:
            self.end_part()

    def end_part(self) -> None:
        """Finish the part, and write its line into the journal."""
        if self._part is not None:
            line = self._part.close((self.piece, self.chunk))
            self._part = None
            self._parts.append(line)
            with (self.folder / "journal.jsonl").open("ab") as journal:
                journal.write(json.dumps(line).encode() + b"\n")
                journal.flush()
                os.fsync(journal.fileno())

    def answers(self) -> Iterator[pa.RecordBatch]:
        """Yield all answers in the order of the input."""
        yield from self._batches("part")

    def refusals(self) -> Iterator[pa.RecordBatch]:
        """Yield all refused rows in the order of the input."""
        yield from self._batches("refused")

    def _batches(self, name: str) -> Iterator[pa.RecordBatch]:
        for number, part in enumerate(self._parts):
            if name == "refused" and not part["refused"]:
                continue
            with pa.memory_map(str(self.folder / f"{name}-{number:06}.arrow")) as mapped:
                opened = pa.ipc.open_file(mapped)
                for place in range(opened.num_record_batches):
                    yield opened.get_batch(place)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Release the folder. A part that is not finished is lost."""
        if self._part is not None:
            self._part.abandon()
        os.close(self._lock)


class _Part:
    """The part that is being written: an Arrow file of answers, and an Arrow file of refused rows."""

    def __init__(self, folder: Path, number: int, first: Scored) -> None:
        self._started = time.monotonic()
        self._rows, self._refused = 0, 0
        self._unusual: Counter[tuple[str, str]] = Counter()
        self._files: list[BinaryIO] = []
        self._answers = self._open(folder / f"part-{number:06}.arrow", first.answers.schema)
        self._refusals: Any = None
        self._refused_path = folder / f"refused-{number:06}.arrow"

    def _open(self, path: Path, schema: pa.Schema) -> Any:
        file = path.open("wb")
        self._files.append(file)
        return pa.ipc.new_file(pa.PythonFile(file, "w"), schema)

    @property
    def is_full(self) -> bool:
        return self._rows >= _PART_ROWS or time.monotonic() - self._started >= _PART_SECONDS

    def add(self, scored: Scored) -> None:
        self._answers.write_batch(scored.answers)
        if scored.refused is not None:
            if self._refusals is None:
                self._refusals = self._open(self._refused_path, scored.refused.schema)
            self._refusals.write_batch(scored.refused)
            self._refused += len(scored.refused)
        self._rows += scored.rows
        self._unusual.update(scored.unusual)

    def close(self, following: tuple[int, int]) -> dict[str, Any]:
        """Close the files, wait until their contents are on the disk, and return the part's line for the journal."""
        for writer in filter(None, (self._answers, self._refusals)):
            writer.close()
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        unusual = [[*key, count] for key, count in self._unusual.items()]
        return {"next": following, "rows": self._rows, "refused": self._refused, "unusual": unusual}

    def abandon(self) -> None:
        for file in self._files:
            file.close()


def _read_parts(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the journal. An incomplete last line is removed."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
        write_synced(path, b"".join(lines))
    return [json.loads(line) for line in lines]


def _settle_job(file: Path, job: dict[str, Any]) -> None:
    """For a new run, write the job. For a resumed run, compare the job with the job of the interrupted run."""
    if not file.exists():  # this file is written atomically before any part, so a folder without this file has no parts
        partial = file.with_suffix(".new")
        write_synced(partial, json.dumps(job).encode())
        partial.replace(file)
        sync_folder(file.parent)
        return
    earlier = json.loads(file.read_bytes())
    changed = [name for name in job if earlier.get(name) != job[name]]
    if changed:
        raise ScoreError(
            f"can't resume: the unfinished run had other {' and '.join(changed)}; use --force to start again"
        )


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "lock":
            file.unlink()
