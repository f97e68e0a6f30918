"""Turns float32 [rows, features] back into Arrow columns with the types of the features: the inverse of the encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Category, Feature, Reading

# The text that replaces a category that training has not seen. A row contains only the code for unseen categories, not
# the text of the category.
UNSEEN = "(unseen)"
_MICROSECONDS = {"day": 86_400_000_000, "hour": 3_600_000_000}

_Numbers = npt.NDArray[np.float32]
_Convert = Callable[[_Numbers, npt.NDArray[np.bool_]], pa.Array]


class TableDecoder:
    """Decodes the rows of one model. If `TableEncoder` encodes the decoded columns, it returns the original rows.

    The Arrow types are float32 for a number, bool for a boolean, and timestamp for a time. A category has the type of
    the categories. A missing value is null. An unseen category becomes `UNSEEN` in a column of texts, or the number
    after the largest category in a column of numbers. fields: the names and types of the columns, in the order of the
    features.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        columns = [_column(feature) for feature in features]
        self.fields = [pa.field(feature.name, kind) for feature, (kind, _) in zip(features, columns, strict=True)]
        self._converts = [convert for _, convert in columns]

    def columns(self, rows: Rows) -> list[pa.Array]:
        """Return a column for each feature. rows: float32 [rows, features]."""
        missing = np.isnan(rows)
        return [convert(rows[:, place], missing[:, place]) for place, convert in enumerate(self._converts)]


def _column(feature: Feature) -> tuple[pa.DataType, _Convert]:
    if feature.kind == "time" and feature.reading is not None:
        return _time_column(feature.reading)
    if feature.kind == "boolean":
        return pa.bool_(), lambda values, missing: pa.array(values == 1, mask=missing)
    if feature.kind == "categorical":
        return _category_column(feature.categories)
    return pa.float32(), lambda values, missing: pa.array(values, pa.float32(), mask=missing)


def _time_column(reading: Reading) -> tuple[pa.DataType, _Convert]:
    kind = pa.timestamp("us", "UTC" if reading.zoned else None)
    origin = int(np.datetime64(reading.origin, "us").astype(np.int64))
    step = _MICROSECONDS[reading.step]

    def convert(values: _Numbers, missing: npt.NDArray[np.bool_]) -> pa.Array:
        numbers = np.where(missing, 0, values).astype(np.int64)
        return pa.array(origin + step * numbers, pa.int64(), mask=missing).cast(kind)

    return kind, convert


def _category_column(categories: Sequence[Category]) -> tuple[pa.DataType, _Convert]:
    known = pa.array(_with_unseen(categories))

    def convert(values: _Numbers, missing: npt.NDArray[np.bool_]) -> pa.Array:
        return known.take(pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing))

    return known.type, convert


def _with_unseen(categories: Sequence[Category]) -> list[Any]:
    """Return the categories and the value of an unseen category. Categories of several types become texts."""
    numbers = [each for each in categories if not isinstance(each, str)]
    if len(numbers) < len(categories):
        texts = list(map(str, categories))
        unseen = UNSEEN
        while unseen in texts:
            unseen += "_"
        return [*texts, unseen]
    if any(isinstance(each, float) for each in numbers):
        top = float(max(numbers))
        return [*map(float, numbers), max(top + 1, math.nextafter(top, math.inf))]
    largest = max(numbers, default=0)
    return [*numbers, largest + 1 if largest < 2**63 - 1 else min(numbers) - 1]
