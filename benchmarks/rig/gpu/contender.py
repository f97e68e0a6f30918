"""The interface of a contender, which is one way to run a network on a batch.

The float32 rows and the float32 probabilities are in ordinary host memory. A contender has a network, a device and a
precision. A contender does not measure time, and does not need the expected outputs.
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
    """Raised if a contender can't be measured. The error message gives the reason in one line."""


@dataclass(frozen=True)
class Setting:
    """The conditions of one comparison, the same for all contenders."""

    device: Device
    network: Network
    bundle: Bundle
    precision: Precision
    buckets: tuple[int, ...]


class Contender(ABC):
    """One way to run the network on batches with one library.

    `prepare` is called before the runs of a batch size, and `release` after these runs. `close` is called at the end.
    batches: the batch sizes to measure; if empty, all sizes are measured. compiles: whether `prepare` compiles code,
    which may take long.
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
        """Open the model. Raises the exception of the library if the library refuses the model."""

    @abstractmethod
    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs]."""

    def prepare(self, batch: int) -> None:  # noqa: B027 (most contenders have nothing to do)
        """Prepare for batches of one size."""

    def poison(self, batch: int) -> None:
        """Overwrite the buffers that a run of `batch` rows uses. By default, this method runs a batch of NaN."""
        self.run(np.full((batch, self.setting.network.widths[0]), np.nan, np.float32))

    def on_device(self) -> Callable[[], Any] | None:
        """Return a function that queues only the computation. The input is already on the device. Return None if the
        input can't stay on the device.
        """
        return None

    def release(self) -> None:  # noqa: B027
        """Free the resources that `prepare` has allocated."""

    def close(self) -> None:  # noqa: B027
        """Free all resources."""
