"""Checkpoints: the state of an unfinished run, in a folder with one safetensors file per network of the run.

A file is replaced atomically: after a crash, the file holds the new state or the previous state. The module never reads
a pickle. The module only stores tensors and text. The module loop.py decides which tensors are in a state.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from foldserve.service.bundle.atomic import replace_file
from foldserve.training.errors import CheckpointError

# The minimum time between two writes of a state, in seconds. If a run is killed, the work since the last write is lost.
# With 5 seconds between two writes, a slow disk delays the run only a little.
SECONDS_BETWEEN = 5.0
_SUFFIX, _UNFINISHED = ".safetensors", ".partial"
_NAME = re.compile(r"member\d+")
_RUN, _NOTES = "run", "notes"


@dataclass(frozen=True)
class State:
    """The state from which a fit resumes. tensors: tensors of any shape and dtype, by name. notes: JSON values, by
    name.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The folder with the checkpoints of one run. run: the name and value of every setting that decides the result of
    the run; see `Checkpoint.load`.

    Raises `CheckpointError` if the folder can't be made. Also raises `CheckpointError` if `resume` is False and the
    folder already holds a checkpoint. Without this error, a new run would overwrite the old checkpoint, and hours of
    work could be lost.
    """

    folder: Path
    run: Mapping[str, str]
    resume: bool
    seconds_between: float = SECONDS_BETWEEN

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            held = bool(self._files(_SUFFIX))
        except OSError as error:
            raise CheckpointError(f"{self.folder}: {error.strerror}") from error
        if held and not self.resume:
            raise CheckpointError(f"{self.folder} holds the checkpoint of an unfinished run: --resume, or remove it")

    def for_member(self, member: int) -> Checkpoint:
        """Return the checkpoint of network number `member` of the run, counted from 0."""
        return Checkpoint(self.folder / f"member{member + 1}{_SUFFIX}", dict(self.run), self.seconds_between)

    def _files(self, suffix: str) -> list[Path]:
        """List the files with this suffix that a run has written. The folder may have unrelated files with the same
        suffix.
        """
        return [file for file in self.folder.glob("*" + suffix) if _NAME.fullmatch(file.stem)]

    def remove(self) -> None:
        """Remove the files of the finished run. Also remove the folder if it contains no other files."""
        try:
            for file in (*self._files(_SUFFIX), *self._files(_UNFINISHED)):
                file.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        except OSError as error:
            raise CheckpointError(f"{self.folder}: {error.strerror}") from error


@dataclass
class Checkpoint:
    """The checkpoint file of one network. A state is written when enough time has passed since the last write. The
    times of the writes do not affect the result of the training.
    """

    path: Path
    run: Mapping[str, str]
    seconds_between: float = SECONDS_BETWEEN
    _written: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Whether enough time has passed since the last write."""
        return time.monotonic() - self._written >= self.seconds_between

    def load(self) -> State | None:
        """Read the state into tensors on the CPU. Return None if there is no file yet.

        Raises `CheckpointError` for a damaged file and for the file of a run with other settings. The message names a
        setting that differs between the two runs.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                texts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            run, notes = json.loads(texts[_RUN]), json.loads(texts[_NOTES])
            if not (isinstance(run, dict) and isinstance(notes, dict)):
                raise TypeError
        except OSError as error:
            raise CheckpointError(f"{self.path}: {error.strerror or error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged: remove it to train from the start") from error
        self._require_same(run)
        return State(tensors, notes)

    def _require_same(self, run: Mapping[str, Any]) -> None:
        for name in sorted({*self.run, *run}):
            if self.run.get(name) != run.get(name):
                raise CheckpointError(
                    f"{self.path} belongs to another run: {name} is {run.get(name)} there and {self.run.get(name)} here"
                )

    def save(self, state: State) -> None:
        """Replace the state in the file by `state`.

        Even after a crash or on a full disk, the file holds either this state or the previous state. Raises
        `CheckpointError` when the file can't be written.
        """
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        content = save(tensors, {_RUN: json.dumps(self.run), _NOTES: json.dumps(state.notes)})
        try:
            replace_file(self.path, content, self.path.with_suffix(_UNFINISHED))
        except OSError as error:
            raise CheckpointError(f"{self.path} can't be written: {error.strerror}") from error
        self._written = time.monotonic()
