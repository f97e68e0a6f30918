"""Progress bars on a terminal: one for reading a table, one for a fit and its losses, one for the stages of a command.

If the output is not a terminal, no bar appears. The module does not import torch, so that the first bar appears
immediately.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from foldserve.service.figures import format_figure

if TYPE_CHECKING:
    from foldserve.training.fit.loop import Epoch, EpochProgress


class _Bar:
    """A context manager around rich's progress bar. The bar appears with the first update."""

    def __init__(self, console: Console, *columns: ProgressColumn, **options: Any) -> None:
        # `console.is_terminal` is not used, because it is also true for a pipe if FORCE_COLOR is set.
        self._bar = Progress(*columns, console=console, disable=not console.file.isatty(), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()


class ReadProgress(_Bar):
    """Shows the progress of `load`, which calls `update` with the finished share of its work."""

    def __init__(self, source: str, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("read {task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            transient=True,  # the bar disappears at the end; a description of the table takes its place
        )
        self._task = self._bar.add_task(source[-40:], total=1.0)

    def __enter__(self) -> Self:
        self._bar.start()  # the bar appears before the first row is read
        return self

    def update(self, share: float) -> None:
        """Show the finished share of the work, a number from 0 to 1."""
        self._bar.update(self._task, completed=share)


class StartProgress(_Bar):
    """An animated bar that is shown while the trainer starts."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, TextColumn("start"), BarColumn(bar_width=20), transient=True)
        self._bar.add_task("start", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self


class FitProgress(_Bar):
    """Shows the progress of `fit`, which calls `update` after each epoch and `update_within_epoch` a few times a
    second.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("fit"),
            BarColumn(bar_width=12),  # with this width, the whole line fits into 80 columns
            TextColumn("{task.fields[epoch]} loss {task.fields[loss]} val {task.fields[validation]}"),
            TextColumn("{task.fields[rate]} rows/s"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("fit", total=None, epoch="", loss="-", validation="-", rate="-")

    def update(self, epoch: Epoch) -> None:
        """Show a finished epoch."""
        self._show(epoch.number, epoch.epochs, epoch.number, epoch.rows_per_second)
        self._bar.update(self._task, loss=format_figure(epoch.loss), validation=format_figure(epoch.validation_loss))

    def update_within_epoch(self, part: EpochProgress) -> None:
        """Show the progress of the current epoch."""
        self._show(part.number, part.epochs, part.number - 1 + part.rows_done / part.rows, part.rows_per_second)

    def _show(self, number: int, epochs: int, completed: float, rate: float) -> None:
        self._bar.start()
        epoch = f"{number}/{epochs}"
        self._bar.update(self._task, completed=completed, total=epochs, epoch=epoch, rate=f"{rate:,.0f}")


class StageProgress(_Bar):
    """Shows a bar for each stage of a command."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of the stage are complete."""
        self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage)
        self._bar.update(self._tasks[stage], completed=done, total=total)
