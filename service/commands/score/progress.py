"""The progress bar of a scoring run, on a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class ScoreProgress:
    """A context manager around rich's progress bar on standard error.

    The progress bar is shown only on a terminal.
    """

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]} rows"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # `console.is_terminal` is not used, because it is true in a pipe if FORCE_COLOR is set.
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task("score", total=1.0, rows="0")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, share: float, rows: int, stage: str = "score") -> None:
        """Show the finished share of this stage, from 0 to 1, and the number of scored rows."""
        self._bar.update(self._task, completed=share, rows=f"{rows:,}", description=stage)
