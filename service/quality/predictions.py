"""Remembers the last predictions of one model, by the id of the request, for labels that become known later.

The predictions are stored only in memory, and their number of rows has an upper limit. This module uses ids and
outputs. This module does not depend on labels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Outputs

# Predictions wait in a list until the list has this length. Storing many predictions at once is cheaper.
_MAX_WAITING = 128
# The largest number of bytes in the id of a request. `safe_id` refuses a longer id.
_MAX_ID = 128


@dataclass
class Prediction:
    """The outputs of one request, float32 [rows, outputs]. labelled: bool [rows], the rows whose label is known."""

    outputs: Outputs
    labelled: npt.NDArray[np.bool_]


class _Block:
    """The predictions that one call of `tick` stores.

    The request with the index i has the rows `starts[i]` to `starts[i + 1]` of `outputs`. rest: the ids of the requests
    that are not forgotten yet, with their indices. No id has an object of its own, because the garbage collector would
    visit all these objects.
    """

    __slots__ = ("index", "outputs", "rest", "starts")

    def __init__(self, waiting: dict[bytes, Outputs]) -> None:
        self.outputs = np.concatenate(list(waiting.values()))
        self.starts = [0, *accumulate(map(len, waiting.values()))]
        self.index = dict(zip(waiting, range(len(waiting)), strict=True))
        self.rest = iter(self.index.items())


class Predictions:
    """The predictions of the last `size` rows. Only one event loop calls the methods.

    If two requests have the same id, only the later request is remembered. A request with more rows than `size` is not
    remembered. If the access log or traces are on, every request has an id. So remembering a request must be cheap.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = 0
        self._blocks: deque[_Block] = deque()  # the oldest block comes first
        self._block_of: dict[bytes, _Block] = {}
        self._labelled: dict[bytes, Prediction] = {}  # the predictions for which labels have arrived
        self._waiting_ids: list[bytes] = []
        self._waiting_outputs: list[Outputs] = []

    def add(self, request_id: bytes, outputs: Outputs) -> None:
        """Remember the outputs of one request.

        request_id: the id in the header of the request. If this id is not a safe id, labels can't refer to the request.
        """
        self._waiting_ids.append(request_id)
        self._waiting_outputs.append(outputs)
        if len(self._waiting_ids) >= _MAX_WAITING:
            self.tick()

    def tick(self) -> None:
        """Store the waiting predictions as one block.

        Call this method once a second, because waiting predictions keep whole batches in memory.
        """
        waiting = dict(zip(self._waiting_ids, self._waiting_outputs, strict=True))
        self._waiting_ids.clear()
        self._waiting_outputs.clear()
        if waiting and (max(map(len, waiting)) > _MAX_ID or max(map(len, waiting.values())) > self._size):
            waiting = {
                key: outputs for key, outputs in waiting.items() if len(key) <= _MAX_ID and len(outputs) <= self._size
            }
        if not waiting:
            return
        block = _Block(waiting)
        self._blocks.append(block)
        self._block_of.update(dict.fromkeys(waiting, block))
        if self._labelled:
            for key in waiting:
                self._labelled.pop(key, None)
        self._rows += len(block.outputs)
        if self._rows > self._size:
            self._forget(self._rows - self._size)

    def find(self, request_id: bytes) -> Prediction | None:
        """Return the prediction of a request; None if the request is not remembered.

        The caller may change the array `labelled` of the prediction.
        """
        if self._waiting_ids:
            self.tick()
        found = self._labelled.get(request_id)
        if found is None and (block := self._block_of.get(request_id)) is not None:
            index = block.index[request_id]
            start, stop = block.starts[index : index + 2]
            found = self._labelled[request_id] = Prediction(block.outputs[start:stop], np.zeros(stop - start, np.bool_))
        return found

    def _forget(self, rows: int) -> None:
        """Forget the oldest requests, until the forgotten requests have at least `rows` rows."""
        block_of = self._block_of
        while rows > 0:
            block = self._blocks[0]
            for key, index in block.rest:
                if block_of.get(key) is block:  # a later request may have the same id
                    del block_of[key]
                    self._labelled.pop(key, None)
                own = block.starts[index + 1] - block.starts[index]
                self._rows -= own
                rows -= own
                if rows <= 0:
                    return
            self._blocks.popleft()
