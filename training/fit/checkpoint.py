"""Checkpoints: the state of an unfinished run in a folder, written so that it is whole or the one before.

One safetensors file for each network that the run trains; no pickle is read. It knows tensors and text, no network
and no loop: what a state is made of is fit.py's.
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

# How often a state is written at most: what a killed run loses, against what writing costs.
SECONDS_BETWEEN = 5.0
_SUFFIX, _UNFINISHED = ".safetensors", ".partial"
_NAME = re.compile(r"member\d+")
_RUN, _NOTES = "run", "notes"


@dataclass(frozen=True)
class State:
    """What a fit goes on from. tensors: of any shape and dtype. notes: JSON values."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """A run's folder. run: what decides its result, by name; a checkpoint that differs there is another run's.

    Raises `CheckpointError` for a folder that can't be made, and for one that holds a checkpoint without `resume`,
    rather than write over hours of work.
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
        """Give the checkpoint of one network of the run, from 0."""
        return Checkpoint(self.folder / f"member{member + 1}{_SUFFIX}", dict(self.run), self.seconds_between)

    def _files(self, suffix: str) -> list[Path]:
        """List what a run has written: a folder may hold others' files of the same suffix."""
        return [file for file in self.folder.glob("*" + suffix) if _NAME.fullmatch(file.stem)]

    def remove(self) -> None:
        """Remove its files, since the run is done, and the folder where nothing else is in it."""
        try:
            for file in (*self._files(_SUFFIX), *self._files(_UNFINISHED)):
                file.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        except OSError as error:
            raise CheckpointError(f"{self.folder}: {error.strerror}") from error


@dataclass
class Checkpoint:
    """One network's file. The clock decides when a state is written, never what is trained."""

    path: Path
    run: Mapping[str, str]
    seconds_between: float = SECONDS_BETWEEN
    _written: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Say whether the last one is long enough ago."""
        return time.monotonic() - self._written >= self.seconds_between

    def load(self) -> State | None:
        """Read the state, on the CPU; None where there is none yet.

        Raises `CheckpointError` for a file that is damaged, and for one of another run, naming what differs.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                texts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
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
                    f"{self.path} is another run's: {name} is {run.get(name)} there and {self.run.get(name)} here"
                )

    def save(self, state: State) -> None:
        """Write `state` in place of the one before: after a crash or a full disk the folder has one or the other.

        Raises `CheckpointError`.
        """
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        content = save(tensors, {_RUN: json.dumps(self.run), _NOTES: json.dumps(state.notes)})
        try:
            replace_file(self.path, content, self.path.with_suffix(_UNFINISHED))
        except OSError as error:
            raise CheckpointError(f"{self.path} can't be written: {error.strerror}") from error
        self._written = time.monotonic()
