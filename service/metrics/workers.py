"""Reads the metrics of all workers from their files. This module does not depend on any metric."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector


class WorkersCollector(MultiProcessCollector):
    """Reads the counts of all workers. The collector skips the empty file of a worker that is still starting.

    prometheus_client raises an error for an empty file. A worker first creates an empty file, and sets its size a
    moment later.
    """

    def __init__(self, registry: CollectorRegistry, folder: Path) -> None:
        super().__init__(registry, str(folder))  # type: ignore[no-untyped-call]
        self._folder = folder

    def collect(self) -> Any:
        """Return the metrics of all workers."""
        files = []
        for file in self._folder.glob("*.db"):
            with suppress(FileNotFoundError):  # the supervisor removes gauges of a dead worker
                if file.stat().st_size:
                    files.append(str(file))
        return self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
