"""The phase of one serving process: starting, ready, draining or lost. This module does not depend on HTTP or signals.

    STARTING -> READY -> DRAINING
        each phase -> LOST, when a device fails or a run hangs; a lost process stays lost, so it must be replaced

Only the phase decides readiness and the exit status.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto


class Phase(Enum):
    """A phase of a serving process."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    LOST = auto()


class Lifecycle:
    """Owns the phase of one process.

    loss: a text with the reason why the process is lost. device_lost: a function that returns whether the device of a
    model has failed for this process. Each read of the phase calls this function.
    """

    def __init__(self, device_lost: Callable[[], bool]) -> None:
        self._device_lost = device_lost
        self._phase = Phase.STARTING
        self.loss = "the device was lost"

    @property
    def phase(self) -> Phase:
        """The current phase."""
        if self._phase is not Phase.LOST and self._device_lost():
            self._phase = Phase.LOST
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether the process takes new work."""
        return self.phase is Phase.READY

    @property
    def lost(self) -> bool:
        """Whether a device has failed or a run hangs. After that, only a new process can serve."""
        return self.phase is Phase.LOST

    def start(self) -> None:
        """Become ready: every model is verified, and the process is about to accept connections."""
        if self._phase is Phase.STARTING:
            self._phase = Phase.READY

    def drain(self) -> None:
        """Become unready: from now on, only requests that have already begun are answered."""
        if self._phase is not Phase.LOST:
            self._phase = Phase.DRAINING

    def lose(self, loss: str) -> None:
        """Become lost, for a reason other than a device. May be called on any thread."""
        self.loss = loss
        self._phase = Phase.LOST
