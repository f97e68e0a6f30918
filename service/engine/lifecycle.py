"""The phase of one serving process: starting, ready, draining or lost. This module does not depend on HTTP or signals.

    STARTING -> READY -> DRAINING
        each phase -> LOST, when a device fails or a run hangs; a lost process stays lost, so it must be replaced

The phase alone decides whether the process is ready, and which exit status the process has.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto


class Phase(Enum):
    """The phase of a serving process."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    LOST = auto()


class Lifecycle:
    """Owns the phase of one process.

    loss: the reason why the process is lost, as a text. device_lost: a function that returns whether the device of a
    model has failed. `device_lost` is called each time `phase` is read.
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
        """Whether the process accepts new requests."""
        return self.phase is Phase.READY

    @property
    def lost(self) -> bool:
        """Whether a device has failed or a run hangs.

        If a device has failed or a run hangs, only a new process can answer requests.
        """
        return self.phase is Phase.LOST

    def start(self) -> None:
        """Become ready. All models are verified, and the process is about to accept connections."""
        if self._phase is Phase.STARTING:
            self._phase = Phase.READY

    def drain(self) -> None:
        """Begin to drain: from now on, the process answers only requests that have already begun."""
        if self._phase is not Phase.LOST:
            self._phase = Phase.DRAINING

    def lose(self, loss: str) -> None:
        """Set the phase to lost for a reason other than a failed device. Any thread may call this method."""
        self.loss = loss
        self._phase = Phase.LOST
