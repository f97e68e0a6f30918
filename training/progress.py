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

from training.fit import Epoch, Pass


class FitProgress:
    """A context manager with the two hooks of `fit`: `update` after each epoch, `within` a few times a second.

    The bar appears with the first of them, so where neither is called nothing is shown.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("fit"),
            BarColumn(bar_width=12),  # the whole line fits 80 columns
            TextColumn("{task.fields[epoch]} loss {task.fields[loss]} val {task.fields[validation]}"),
            TextColumn("{task.fields[rate]} rows/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.file.isatty(),  # `is_terminal` believes FORCE_COLOR,
        )
        self._task = self._bar.add_task("fit", total=None, epoch="", loss="-", validation="-", rate="-")

    def __enter__(self) -> FitProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, epoch: Epoch) -> None:
        """Show `epoch`, which is done."""
        self._show(epoch.number, epoch.of, epoch.number, epoch.rows_per_second)
        self._bar.update(self._task, loss=f"{epoch.loss:.4f}", validation=f"{epoch.validation_loss:.4f}")

    def within(self, part: Pass) -> None:
        """Show how far the epoch is that is under way."""
        self._show(part.number, part.of, part.number - 1 + part.rows / part.of_rows, part.rows_per_second)

    def _show(self, number: int, of: int, completed: float, rate: float) -> None:
        self._bar.start()
        self._bar.update(self._task, completed=completed, total=of, epoch=f"{number}/{of}", rate=f"{rate:,.0f}")


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
