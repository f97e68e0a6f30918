"""Remembers the last predictions of one model by the id of their request, until their labels are known.

Only memory is used, and the number of rows has a bound. This module knows ids and outputs, but no label.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Outputs

# Predictions wait in a list until the list has this length, because it is cheaper to store many at once.
_MAX_WAITING = 128
# The largest number of bytes of an id. `safe_id` accepts no longer ones.
_MAX_ID = 128


@dataclass
class Prediction:
    """The outputs of one request, float32 [rows, outputs]. labelled: bool [rows], the rows whose label is known."""

    outputs: Outputs
    labelled: npt.NDArray[np.bool_]


class Predictions:
    """The predictions of the last `size` rows. All methods belong to one event loop.

    If two requests have the same id, only the later one is remembered. A request with more rows than `size` is not
    remembered.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = 0
        # The array of the outputs, and the first and the last row in it, by id. The oldest id comes first. A plain dict
        # would search its oldest key in linear time.
        self._by_id: OrderedDict[bytes, tuple[Outputs, int, int]] = OrderedDict()
        self._labelled: dict[bytes, Prediction] = {}  # the predictions for which labels have arrived
        self._waiting: list[tuple[bytes, Outputs]] = []

    def add(self, request_id: bytes, outputs: Outputs) -> None:
        """Remember the outputs of one request.

        request_id: the header; if it is not a safe id, no label will find it.
        """
        self._waiting.append((request_id, outputs))
        if len(self._waiting) >= _MAX_WAITING:
            self.tick()

    def tick(self) -> None:
        """Store the predictions that wait. Call this once a second: until then, they keep whole batches in memory."""
        waiting = {
            key: outputs
            for key, outputs in dict(self._waiting).items()
            if len(key) <= _MAX_ID and len(outputs) <= self._size
        }
        self._waiting.clear()
        if not waiting:
            return
        stored = np.concatenate(list(waiting.values()))
        start = 0
        for key, outputs in waiting.items():
            if key in self._by_id:
                self._forget(key)
            stop = start + len(outputs)
            self._by_id[key] = stored, start, stop
            start = stop
        self._rows += len(stored)
        while self._rows > self._size:
            self._forget(next(iter(self._by_id)))

    def find(self, request_id: bytes) -> Prediction | None:
        """Return the prediction of a request; None if it is not remembered. The caller may change `labelled`."""
        if self._waiting:
            self.tick()
        if (found := self._labelled.get(request_id)) is None and request_id in self._by_id:
            stored, start, stop = self._by_id[request_id]
            found = self._labelled[request_id] = Prediction(stored[start:stop], np.zeros(stop - start, np.bool_))
        return found

    def _forget(self, key: bytes) -> None:
        _, start, stop = self._by_id.pop(key)
        self._labelled.pop(key, None)
        self._rows -= stop - start
