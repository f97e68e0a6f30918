"""Turns one Arrow column into the numbers of a feature. This module handles single columns, not whole rows.

Cells that Arrow can convert are converted together. All other cells go through the function that converts the values of
a request. This function converts each different cell only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.bundle import FALSE, MAX_MOMENT, TRUE, Feature, Reading
from foldserve.service.errors import InvalidInput, TableError
from foldserve.service.protocols.categories import CategoricalColumn, TimeColumn

Values = npt.NDArray[np.float64] | npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Problem = tuple[Mask, str]
"""A bool array [rows] that is True for the refused rows, and the reason, which follows the name of the column."""

# The texts that mean true or false in a file without types, such as a CSV file. These texts apply only to a column that
# had no texts in the training table.
_UNTYPED = Reading(true=TRUE, false=FALSE)
_MICROSECONDS = {"day": 86_400_000_000, "hour": 3_600_000_000}


class FeatureColumn:
    """Reads the column of one feature.

    typed: whether the source states the types of its cells. If the source states no types, every text may be a number
    or a boolean.
    """

    def __init__(self, feature: Feature, *, typed: bool) -> None:
        if not typed and feature.reading is None:
            feature = feature.model_copy(update={"reading": _UNTYPED})
        self._feature = feature
        self._reading = feature.reading
        self._code: Callable[[Any, int], float | None]
        if feature.kind == "time" and feature.reading is not None:
            time = TimeColumn(0, feature.name, feature.reading)
            self._code, self._misfit = time.code, "is not a date or time as in the training table"
        elif feature.largest_code is not None:
            coded = CategoricalColumn(0, feature, feature.largest_code)
            self._code, self._misfit = coded.code, coded.misfit
        else:
            number = (feature.reading or _UNTYPED).number
            self._code, self._misfit = lambda value, _: number(value), "is not a number"
        self._read = {
            "numeric": self._numbers,
            "boolean": self._booleans,
            "categorical": self._categories,
            "time": self._times,
        }[feature.kind]

    def check_type(self, kind: pa.DataType) -> None:
        """Raise `TableError` if no cell of the Arrow type `kind` can be a value of this feature."""
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text, time = is_text(kind), _is_time(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        boolean = pa.types.is_boolean(kind)
        fits = (
            pa.types.is_null(kind)
            or {
                "numeric": number or (text and self._reading is not None),
                "boolean": boolean or number or (text and self._reading is not None),
                "categorical": text or number or boolean or time,
                "time": text or time,
            }[self._feature.kind]
        )
        if not fits:
            raise TableError(
                f"column {self._feature.name!r} has the type {kind}, but the model's feature is {self._feature.kind}: "
                "convert the column, as the training table has it"
            )

    def read(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        """Return the number of each cell, [rows], and the refused rows. A missing value is NaN.

        The Arrow type must have passed `check_type`.
        """
        if pa.types.is_dictionary(cells.type):
            cells = cells.cast(cells.type.value_type)
        if pa.types.is_null(cells.type):
            return np.full(len(cells), np.nan, np.float32), []
        return self._read(cells)

    def _numbers(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        if is_text(cells.type):
            return self._numbers_of_texts(cells)
        return self._without_missing(_to_numpy(cells)), []

    def _numbers_of_texts(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        reading = self._reading or _UNTYPED
        if reading.is_plain:
            try:
                values = _to_numpy(cells.cast(pa.float64()))
            except pa.ArrowInvalid:  # a column of texts needs the slower code below
                pass
            else:
                return self._without_missing(values), [(np.isinf(values), self._misfit)]
        texts = pc.utf8_trim_whitespace(cells)
        plain = pc.fill_null(pc.match_substring_regex(texts, f"^(?:{reading.number_pattern})$"), False)
        known = pc.if_else(plain, texts, None)
        for pattern, replacement in reading.number_rewrites:
            known = pc.replace_substring_regex(known, pattern, replacement)
        values = self._without_missing(_to_numpy(known.cast(pa.float64())))
        others = pc.if_else(plain, None, cells)
        read, problems = self._by_distinct(others)
        return np.where(plain.to_numpy(), values, read), [*problems, (np.isinf(values), self._misfit)]

    def _without_missing(self, values: Values) -> Values:
        """Replace the numbers that mean a missing value by NaN."""
        if self._reading and self._reading.missing_numbers:
            return np.where(np.isin(values, self._reading.missing_numbers), np.nan, values)
        return values

    def _booleans(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        if is_text(cells.type):
            return self._by_distinct(cells)
        values = _to_numpy(cells)
        return values, [(~((values == 0) | (values == 1) | np.isnan(values)), self._misfit)]

    def _categories(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        kind = cells.type
        if pa.types.is_boolean(kind) or _is_time(kind):
            cells = cells.cast(pa.string())  # a boolean becomes the text true or false, as in training
        elif pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            cells = cells.cast(pa.float64())
        return self._by_distinct(cells)

    def _times(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        if is_text(cells.type):
            return self._by_distinct(cells)
        reading = self._reading or _UNTYPED
        zoned = pa.types.is_timestamp(cells.type) and cells.type.tz is not None
        if zoned != reading.zoned:
            return np.zeros(len(cells)), [(pc.is_valid(cells).to_numpy(), self._misfit)]
        since = cells.cast(pa.timestamp("us", "UTC" if zoned else None), safe=False).cast(pa.int64())
        origin = int(np.datetime64(reading.origin, "us").astype(np.int64))
        step = _MICROSECONDS[reading.step]
        numbers = (pc.fill_null(since, 0).to_numpy() - origin) // step
        values = np.where(pc.is_null(cells).to_numpy(), np.nan, numbers)
        return values, [(np.abs(values) > MAX_MOMENT, self._misfit)]

    def _by_distinct(self, cells: pa.ChunkedArray) -> tuple[Values, list[Problem]]:
        """Convert each different cell once, by the rules for a value in a request."""
        encoded = cells.dictionary_encode().unify_dictionaries().combine_chunks()
        codes, refused = [], []
        for value in encoded.dictionary.to_pylist():
            code, fits = _code_of(value, self._code)
            codes.append(code)
            refused.append(not fits)
        places = pc.fill_null(encoded.indices.cast(pa.int64()), len(codes)).to_numpy()
        values = np.array([*codes, np.nan])[places]
        if not any(refused):
            return values, []
        return values, [(np.array([*refused, False])[places], self._misfit)]


def _code_of(value: Any, code: Callable[[Any, int], float | None]) -> tuple[float, bool]:
    """Return the number for a value, and whether the feature allows the value. A missing value is NaN."""
    if isinstance(value, float) and math.isnan(value):
        value = None
    try:
        found = code(value, 0)
    except (InvalidInput, ValueError):
        return math.nan, False
    return math.nan if found is None else found, True


def is_text(kind: pa.DataType) -> bool:
    """Whether the cells of this Arrow type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _to_numpy(cells: pa.ChunkedArray) -> Values:
    """Return the cells as float32 if they are float32, otherwise as float64. A null becomes NaN."""
    kind = cells.type
    if pa.types.is_boolean(kind):
        cells = cells.cast(pa.uint8()).cast(pa.float64())
    elif not (pa.types.is_float32(kind) or pa.types.is_float64(kind)):
        cells = cells.cast(pa.float64(), safe=False)
    if cells.num_chunks == 1:
        return cells.chunk(0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    return cells.to_numpy()  # type: ignore[no-any-return]
