"""Keeps the counts for one model. The counts are one array, so that the counts of several processes can be added.

A window keeps the counts of the last hours in a constant amount of memory. This module does not depend on rows or
labels.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from foldserve.service.quality.bins import Numbers

# The number of parts of a window. When a new part begins, the oldest part is dropped.
PARTS = 12


class Sum(IntEnum):
    """The meaning of the first numbers in the array of counts, by their index.

    The next numbers of the array are the counts in the bins of the features. The last numbers are the counts of the
    predicted classes. A counted row has a weight, which is the number of rows that it represents. `ROWS` is the sum of
    the weights, and `SQUARES` is the sum of the squares of the weights. `PREDICTED` is the sum of the weights of the
    rows with finite outputs. `OUTPUTS`: the sum of the confidences of a classification, or of the centered outputs of a
    regression. A centered output is an output minus `Monitor.center`. `OUTPUT_SQUARES`: the sum of the squares of the
    centered outputs. `LABELLED`: the number of rows with a label. `CORRECT`: the number of correct rows of a
    classification, or the sum of the squared errors of a regression. `LOSS`: the sum of the log losses of a
    classification, or the sum of the absolute errors of a regression.
    """

    ROWS = 0
    COUNTED = 1
    SQUARES = 2
    PREDICTED = 3
    OUTPUTS = 4
    OUTPUT_SQUARES = 5
    LABELLED = 6
    CORRECT = 7
    LOSS = 8


SUMS = len(Sum)


class Window:
    """The sums of all counts of the last hours. Any thread may call the methods of a window.

    size: the length of the arrays that are added to the sums. seconds: the length of the window. clock: a monotonic
    clock.
    """

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._step = seconds / PARTS
        self._clock = clock
        self._lock = threading.Lock()
        self._parts: deque[tuple[int, Numbers]] = deque()  # the number and the sums of each part, the oldest part first
        self._began = clock()

    def add(self, sums: Numbers) -> None:
        """Add float64 [size]."""
        with self._lock:
            step = self._drop_old()
            if not self._parts or self._parts[-1][0] != step:
                self._parts.append((step, np.zeros(self._size)))
            self._parts[-1][1][:] += sums

    def total(self) -> tuple[Numbers, float]:
        """Return the sums, float64 [size], and the seconds since the beginning of the window."""
        with self._lock:
            step = self._drop_old()
            total = np.zeros(self._size)
            for _, sums in self._parts:
                total += sums
            return total, self._clock() - max(self._began, (step - PARTS + 1) * self._step)

    def clear(self) -> None:
        """Begin again."""
        with self._lock:
            self._parts.clear()
            self._began = self._clock()

    def _drop_old(self) -> int:
        """Drop the parts that are older than the window. Return the number of the current part of the window."""
        step = int(self._clock() // self._step)
        while self._parts and self._parts[0][0] <= step - PARTS:
            self._parts.popleft()
        return step
