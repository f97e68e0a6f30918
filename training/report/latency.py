"""Measures how long one run of the exported model takes on this machine.

The report contains the measured times. The manifest has no measured times, because a second training on the same table
would give different times and therefore a different manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

ROWS = (1, 1_024)
_MOST_RUNS = 200
_MOST_SECONDS = 0.03


@dataclass(frozen=True)
class Latency:
    """The median time of one run of the model on `rows` rows, in seconds.

    The first run is not measured; `seconds` is the median of the next `runs` runs.
    """

    rows: int
    seconds: float
    runs: int


def measure_latency(
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]], x: npt.NDArray[np.float32]
) -> tuple[Latency, ...]:
    """Time `predict` with 1 row and with 1,024 rows. x: float32 [rows, features]; if there are too few rows, they are
    repeated.

    Each measurement ends after 200 runs or 0.03 s, whichever comes first.
    """
    return tuple(_measure(predict, np.resize(x, (rows, x.shape[1]))) for rows in ROWS)


def _measure(
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]], batch: npt.NDArray[np.float32]
) -> Latency:
    predict(batch)  # the first run is not measured, because it allocates memory
    seconds = list[float]()
    end = time.perf_counter() + _MOST_SECONDS
    while not seconds or (len(seconds) < _MOST_RUNS and time.perf_counter() < end):
        started = time.perf_counter()
        predict(batch)
        seconds.append(time.perf_counter() - started)
    return Latency(len(batch), median(seconds), len(seconds))
