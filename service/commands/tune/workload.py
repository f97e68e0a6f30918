"""Helpers for both measurements: random rows, batch sizes, a function that opens a model, and the text of an error."""

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

# A function that opens a model and checks it against its golden rows, as `runtime.load.load` does. The function must be
# defined at the top level of a module, because other processes import it by its name.
Load = Callable[[Bundle, Options], tuple[Runtime, Parity]]

# The number of rows in the largest batch that a server runs by default. A server runs a larger request in pieces.
MAX_BATCH: int = Settings.model_fields["max_batch"].default


def draw(manifest: Manifest, rows: int, generator: Generator) -> Rows:
    """Draw random rows from the training ranges, as float32 [rows, features] like the rows of a request.

    No value is missing.
    """
    return np.stack([draw_column(feature, rows, generator) for feature in manifest.features], axis=1)


def doublings(largest: int) -> list[int]:
    """Return 1, 2, 4, ... and `largest`."""
    return [*(2**power for power in range(largest.bit_length()) if 2**power < largest), largest]


def reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    return str(error) if isinstance(error, FoldserveError) else one_line(error)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT in this context. Threads and processes that start in the context keep SIGINT blocked, so Ctrl-C
    reaches only the main thread of this process, where Python raises KeyboardInterrupt.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
