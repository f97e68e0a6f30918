"""Progress bars: of a fit, with its losses, and of a command's stages; nothing where no terminal is."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.fit import Epoch


class FitProgress:
    """A context manager whose `update` is the hook that `fit` calls after each epoch."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("fit"),
            BarColumn(bar_width=20),  # the whole line fits 80 columns
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} val {task.fields[validation]} {task.fields[rate]} rows/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.file.isatty(),  # `is_terminal` believes FORCE_COLOR,
        )
        self._task = self._bar.add_task("fit", total=None, loss="-", validation="-", rate="-")

    def __enter__(self) -> FitProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, epoch: Epoch) -> None:
        """Show `epoch`."""
        self._bar.update(
            self._task,
            completed=epoch.number,
            total=epoch.of,
            loss=f"{epoch.loss:.4f}",
            validation=f"{epoch.validation_loss:.4f}",
            rate=f"{epoch.rows_per_second:,.0f}",
        )


class StageProgress:
    """A context manager whose `update` shows how far each named stage is, one line a stage."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.file.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, stage: str, done: int, of: int) -> None:
        """Show that `done` of `of` parts of `stage` are done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage)
        self._bar.update(self._tasks[stage], completed=done, total=of)
