"""The progress bar of reading a table; nothing where no terminal is. It needs no torch, so that it is seen at once."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class ReadProgress:
    """A context manager whose `update` is the hook that `data.load` calls with the share that is done."""

    def __init__(self, source: str, console: Console) -> None:
        self._bar = Progress(
            TextColumn("read {task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,  # what was read is said in words then
            disable=not console.file.isatty(),  # `is_terminal` believes FORCE_COLOR
        )
        self._task = self._bar.add_task(source[-40:], total=1.0)

    def __enter__(self) -> ReadProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, share: float) -> None:
        """Show that `share` of the work is done, 0 to 1."""
        self._bar.update(self._task, completed=share)
