"""The parts that both measurements share: rows, batch sizes, how a model is opened, how a failure is named."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.random import Generator

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Bundle, Manifest, Parity
from foldserve.service.bundle.sample import draw_column
from foldserve.service.errors import FoldserveError
from foldserve.service.runtime.load import Runtime
from foldserve.service.runtime.session import Options, one_line
from foldserve.service.settings import Settings

# Opens a model and checks it against its golden rows, as `runtime.load.load` does. A function of a module: other
# processes import it by its name.
Load = Callable[[Bundle, Options], tuple[Runtime, Parity]]

# Rows of the largest batch that a server runs at once, by default; it runs a larger request in pieces.
MAX_BATCH: int = Settings.model_fields["max_batch"].default


def draw(manifest: Manifest, rows: int, generator: Generator) -> Rows:
    """Draw float32 [rows, features] within the training ranges, as a request may have them. No value is missing."""
    return np.stack([draw_column(feature, rows, generator) for feature in manifest.features], axis=1)


def doublings(largest: int) -> list[int]:
    """Return 1, 2, 4, ... and `largest`."""
    return [*(2**power for power in range(largest.bit_length()) if 2**power < largest), largest]


def reason(error: Exception) -> str:
    """Write an error in one line."""
    return str(error) if isinstance(error, FoldserveError) else one_line(error)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT until the block ends. Threads and processes that start inside keep it blocked.

    Ctrl-C then reaches this process's main thread alone, where Python raises KeyboardInterrupt.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
