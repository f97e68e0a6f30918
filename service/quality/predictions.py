"""Remembers the last predictions of one model, by the id of the request, for labels that become known later.

The predictions are stored only in memory, and the number of stored rows has an upper limit. This module stores the ids
of requests and their outputs, and does not depend on labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, takewhile

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Outputs

# Predictions wait in a list until the list has this length, because storing many predictions at once takes less time
# than storing them one by one.
_MAX_WAITING = 128
# The largest number of bytes in the id of a request. `safe_id` refuses a longer id.
_MAX_ID = 128
_SEPARATOR = b"\n"  # no header value contains this byte


@dataclass
class Prediction:
    """The outputs of one request, float32 [rows, outputs]. labelled: bool [rows], the rows whose label is known."""

    outputs: Outputs
    labelled: npt.NDArray[np.bool_]


class _Block:
    """The predictions that one call of `tick` stores.

    first: the number of rows that were stored before this block. indexed: whether the index of `Predictions` contains
    this block. Most servers get few labels, so the positions of the rows are computed only for a search.
    """

    def __init__(self, first: int, ids: Sequence[bytes], outputs: Sequence[Outputs]) -> None:
        self.first = first
        # All ids are in one bytes object. Thousands of small long-lived objects would fragment the memory, so that
        # later requests would get memory that is not in the processor's caches.
        self._ids = _SEPARATOR.join(ids)
        self.indexed = False
        self._lengths = tuple(map(len, outputs))
        # `bytes.join` is much faster than `numpy.concatenate`. The type hints of NumPy do not say that an array is a
        # buffer.
        self._content = b"".join(outputs)  # type: ignore[arg-type]
        self.end = first + sum(self._lengths)

    def find(self, request_id: bytes) -> tuple[int, Outputs]:
        """Return the outputs of one request, and the number of rows that were stored before these outputs."""
        start, stop = self._ranges[request_id]
        return self.first + start, self._outputs[start:stop]

    @property
    def ids(self) -> list[bytes]:
        """The ids of the requests, in the order of the requests."""
        return self._ids.split(_SEPARATOR)

    @cached_property
    def _ranges(self) -> dict[bytes, tuple[int, int]]:
        stops = list(accumulate(self._lengths))
        return dict(zip(self.ids, zip([0, *stops], stops, strict=False), strict=True))

    @cached_property
    def _outputs(self) -> Outputs:
        return np.frombuffer(self._content, np.float32).reshape(self.end - self.first, -1)


class Predictions:
    """The predictions of the last `size` rows. Only one event loop calls the methods of `Predictions`.

    If two requests have the same id, only the later request is remembered. A request with more rows than `size` is not
    remembered. If the access log or traces are on, every request has an id and is remembered. The index is built only
    when a search needs it, so that remembering a request is cheap.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = 0  # the number of rows that were stored since the start
        self._blocks: deque[_Block] = deque()  # the oldest block comes first
        self._block_of: dict[bytes, _Block] = {}  # the block of each id in the index
        self._labelled: dict[bytes, Prediction] = {}  # the predictions for which labels have arrived
        self._waiting_ids: list[bytes] = []
        self._waiting_outputs: list[Outputs] = []

    def add(self, request_id: bytes, outputs: Outputs) -> None:
        """Remember the outputs of one request.

        request_id: the id in the header of the request. If `safe_id` refuses this id, labels can't refer to the
        request.
        """
        self._waiting_ids.append(request_id)
        self._waiting_outputs.append(outputs)
        if len(self._waiting_ids) >= _MAX_WAITING:
            self.tick()

    def tick(self) -> None:
        """Store the waiting predictions as one block.

        Call this method once a second, because waiting predictions keep whole batches in memory.
        """
        ids, outputs = self._waiting_ids, self._waiting_outputs
        if not ids:
            return
        self._waiting_ids, self._waiting_outputs = [], []
        if max(map(len, ids)) > _MAX_ID or max(map(len, outputs)) > self._size:
            kept = [i for i, key in enumerate(ids) if len(key) <= _MAX_ID and len(outputs[i]) <= self._size]
            ids, outputs = [ids[i] for i in kept], [outputs[i] for i in kept]
            if not ids:
                return
        block = _Block(self._rows, ids, outputs)
        self._rows = block.end
        self._blocks.append(block)
        while self._blocks and self._blocks[0].end <= self._rows - self._size:
            self._forget(self._blocks.popleft())

    def find(self, request_id: bytes) -> Prediction | None:
        """Return the prediction of a request; None if the request is not remembered.

        The caller may change the array `labelled` of the prediction.
        """
        self.tick()
        self._index()
        block = self._block_of.get(request_id)
        if block is None:
            return None
        start, outputs = block.find(request_id)
        if start < self._rows - self._size:
            return None
        found = self._labelled.get(request_id)
        if found is None:
            found = self._labelled[request_id] = Prediction(outputs, np.zeros(len(outputs), np.bool_))
        return found

    def _index(self) -> None:
        """Add to the index all blocks that were stored since the last search."""
        new = list(takewhile(lambda block: not block.indexed, reversed(self._blocks)))
        for block in reversed(new):
            block.indexed = True
            self._block_of.update(dict.fromkeys(block.ids, block))
            if self._labelled:
                for key in block.ids:
                    self._labelled.pop(key, None)

    def _forget(self, block: _Block) -> None:
        for key in block.ids if block.indexed else ():
            if self._block_of.get(key) is block:  # a later request may have the same id
                del self._block_of[key]
                self._labelled.pop(key, None)
