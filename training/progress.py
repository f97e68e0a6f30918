"""The progress bar of a fit: loss, validation loss, rows per second and time left; nothing where no terminal is."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
