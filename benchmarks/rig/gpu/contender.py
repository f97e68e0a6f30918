"""The interface of a contender: it maps a float32 batch in ordinary host memory to float32 probabilities there.

A contender knows its network, its device and its precision. It knows neither clocks nor the expected outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from foldserve.service.bundle import Bundle
from foldserve.service.runtime.session import Precision
from rig.gpu.networks import Network, Rows

Device = Literal["cpu", "cuda"]


class ContenderError(Exception):
    """A contender has no figures. The message is one line."""


@dataclass(frozen=True)
class Setting:
    """The conditions of one comparison, the same for all contenders."""

    device: Device
    network: Network
    bundle: Bundle
    precision: Precision
    buckets: tuple[int, ...]


class Contender(ABC):
    """One way to run the network.

    `prepare` is called before the runs of a batch size, `release` after them, and `close` at the end.
    batches: the only batch sizes for which the contender is measured; empty for all. compiles: whether `prepare` may
    take long.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    batches: ClassVar[tuple[int, ...]] = ()
    compiles: ClassVar[bool] = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Open it. Raises the exception of the library if the library refuses the model."""

    @abstractmethod
    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs]."""

    def prepare(self, batch: int) -> None:  # noqa: B027 (most contenders have nothing to do)
        """Prepare for batches of one size."""

    def poison(self, batch: int) -> None:
        """Overwrite the buffers of a run of this size. By default this is a run with rows of NaN."""
        self.run(np.full((batch, self.setting.network.widths[0]), np.nan, np.float32))

    def on_device(self) -> Callable[[], Any] | None:
        """Return a call that queues only the computation, with the input on the device; None if that is impossible."""
        return None

    def release(self) -> None:  # noqa: B027
        """Free the resources of `prepare`."""

    def close(self) -> None:  # noqa: B027
        """Free all resources."""
