"""Finds the values of a request that are outside the ranges that one model's features had in training.

`rows.py` checks the rows before this module gets them. This module does not depend on the format of the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Feature
from foldserve.service.metrics import Counts, Unusual

# The number of values that are compared in one step. With `_STEP` values, the arrays of one step fit into the cache of
# the processor.
_STEP = 2**16
# Short rows are joined to longer rows of about this number of values, because NumPy is slow if it compares one short
# row at a time.
_COMPARED = 1024


class Ranges:
    """The smallest and the largest value of each feature in the training rows.

    The range of a categorical feature contains all known categories, so only the code of an unseen category is outside
    the range. A missing value is never outside the range.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = features
        ranges = [feature.range or (0.0, len(feature.categories) - 1.0) for feature in features]
        self._low, self._high = np.array(ranges, np.float32).reshape(-1, 2).T.copy()
        self._repeats = max(1, _COMPARED // len(features))
        self._many_low, self._many_high = (np.tile(bound, self._repeats) for bound in (self._low, self._high))
        self._keys: list[tuple[Unusual, str]] = [
            ("unseen" if feature.kind == "categorical" else "outside", feature.name) for feature in features
        ]

    def count(self, rows: Rows) -> Counts | None:
        """Count the values outside their ranges. Return None if no value is outside its range.

        rows: float32 [rows, features].
        """
        total = np.zeros(len(self._features), np.int64)
        for _, outside in self._steps(rows):
            total += self._count_columns(outside)
        return {self._keys[i]: int(total[i]) for i in np.flatnonzero(total).tolist()} or None

    def count_bytes(self, rows: bytes) -> Counts:
        """Count the values outside their ranges.

        rows: the bytes of any number of rows of float32 values, one row after the other.
        """
        return self.count(np.frombuffer(rows, np.float32).reshape(-1, len(self._features))) or {}

    def describe(self, rows: Rows, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Describe the values outside their ranges, in the order of the rows.

        Returns entries for the first `limit` values outside their ranges, and the total number of values outside their
        ranges. An entry has the members `row`, `column` and `warning`.
        """
        entries: list[dict[str, Any]] = []
        found = 0
        for first_row, outside in self._steps(rows):
            places = np.argwhere(outside)
            found += len(places)
            for row, column in places[: limit - len(entries)].tolist():
                text = self._text(column, float(rows[first_row + row, column]))
                entries.append({"row": first_row + row, "column": self._features[column].name, "warning": text})
        return entries, found

    def _steps(self, rows: Rows) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        """Check `rows` in steps of several rows, and yield the steps in which a value is outside its range.

        A yielded pair contains the index of the first row of a step, and a bool array [rows, features] that is True
        where a value of the step is outside its range.
        """
        step = max(1, _STEP // len(self._features))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            outside = self._outside(part)
            if outside.any():
                yield start, outside

    def _outside(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return a bool array [rows, features] that is True where a value is outside its range."""
        outside = np.empty(rows.shape, np.bool_)
        whole = len(rows) - len(rows) % self._repeats
        with np.errstate(invalid="ignore"):  # NumPy warns about a signalling NaN
            if whole:
                many = rows[:whole].reshape(-1, self._many_low.size)
                np.logical_or(many < self._many_low, many > self._many_high, outside[:whole].reshape(many.shape))
            if whole < len(rows):
                rest = rows[whole:]
                np.logical_or(rest < self._low, rest > self._high, outside[whole:])
        return outside

    def _count_columns(self, outside: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Count the True values in each column of `outside`, the bool array of one step.

        NumPy sums a few long rows of bytes ten times as fast as many short rows, so this function joins short rows into
        long rows. One step has fewer than 256 long rows, so each sum fits into a byte.
        """
        whole = len(outside) - len(outside) % self._repeats
        long = outside[:whole].view(np.uint8).reshape(-1, self._many_low.size)
        sums = np.add.reduce(long, axis=0, dtype=np.uint8).reshape(self._repeats, -1)
        counts: npt.NDArray[np.int64] = sums.sum(axis=0, dtype=np.int64)
        counts += np.count_nonzero(outside[whole:], axis=0)
        return counts

    def _text(self, column: int, value: float) -> str:
        feature = self._features[column]
        if feature.kind == "categorical":
            return "a category that training has not seen"
        # The text of a float32 has as few digits as possible: 0.1 instead of 0.10000000149011612.
        low, high = (float(str(bound[column])) for bound in (self._low, self._high))
        if feature.kind == "boolean":
            return f"training has only seen {'true' if low else 'false'}"
        texts = [f"{low:.9g}", f"{high:.9g}"]
        if feature.kind == "time" and feature.reading is not None:
            texts = [feature.reading.moment_text(low), feature.reading.moment_text(high)]
        return f"{'below' if value < low else 'above'} the training range, {texts[0]} to {texts[1]}"
