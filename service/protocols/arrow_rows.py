"""Converts the columns of an Arrow table to float32 [rows, features], as the service reads the values of a request.

A value that the service refuses is refused here, with the same text. A number, a boolean, a date and a time may also
have their own Arrow type. Columns of these types are read as training reads the columns of a Parquet file.

This module knows columns, but no file and no data frame. It needs pyarrow, which the server does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.arrays import Rows
from foldserve.service.bundle import MAX_MOMENT, Feature, Reading
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import CategoricalColumn, TimeColumn

_Flags = npt.NDArray[np.bool_]
_Values = npt.NDArray[Any]
_Read = tuple[_Values, _Flags | None, str]
"""The numbers of a column [rows] with NaN for a missing value, the refused values, and the reason for the refusal."""

_HOUR = 3_600_000_000  # in microseconds
_NOT_A_NUMBER = "is not a number"
_TOO_LARGE = "is too large for float32"


class ArrowRows:
    """Reads tables with the features of one model."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        self._readers = tuple(_reader(place, feature) for place, feature in enumerate(self._features))

    def read(self, columns: Mapping[str, Any], first_row: int = 0) -> Rows:
        """Read float32 [rows, features] from `columns`: a pyarrow Array or ChunkedArray for each feature, by name.

        Other columns are ignored. first_row: the index of the first row, for the message. Raises `InvalidInput` for a
        missing column, and for the first row that is refused. The message names the column, and the row if there is
        one.
        """
        rows, refused = self.read_accepted(columns)
        if refused:
            row, reason = min(refused.items())
            raise InvalidInput(f"row {first_row + row}, {reason}")
        return rows

    def read_accepted(self, columns: Mapping[str, Any]) -> tuple[Rows, dict[int, str]]:
        """Read as `read` does, but return the refused rows instead of raising an error for them.

        Returns float32 [rows, features], and the reason for each refused row, by its index. The numbers of a refused
        row have no meaning. Raises `InvalidInput` for a missing column.
        """
        for feature in self._features:
            if feature.name not in columns:
                raise InvalidInput(f"the table lacks the feature {feature.name!r}")
        count = len(columns[self._features[0].name])
        rows = np.empty((count, len(self._features)), np.float32)
        refused: dict[int, str] = {}
        for place, (feature, reader) in enumerate(zip(self._features, self._readers, strict=True)):
            values, bad, reason = reader(_simplify(feature.name, columns[feature.name]))
            with np.errstate(over="ignore", invalid="ignore"):
                rows[:, place] = values
            if bad is not None:
                _refuse(refused, bad, feature.name, reason)
            # Two checks of a whole column are cheap. So the reasons are computed only if a value is refused.
            if not np.isfinite(rows[:, place]).all():
                self._check(refused, feature, values, rows[:, place], bad)
        return rows, refused

    def _check(
        self, refused: dict[int, str], feature: Feature, values: _Values, rounded: _Values, bad: _Flags | None
    ) -> None:
        """Refuse values that are infinite or too large, and missing values if training had none."""
        if values.dtype == np.float32 or feature.kind != "numeric":
            _refuse(refused, np.isinf(rounded), feature.name, "is infinite")
        else:
            _refuse(refused, np.isinf(values), feature.name, "is infinite")
            _refuse(refused, np.isinf(rounded), feature.name, _TOO_LARGE)
        if not feature.missing:
            absent = np.isnan(rounded) if bad is None else np.isnan(rounded) & ~bad
            _refuse(refused, absent, feature.name, "is null, and the feature has no missing values")


def _refuse(refused: dict[int, str], bad: _Flags, name: str, reason: str) -> None:
    for row in np.flatnonzero(bad).tolist():
        refused.setdefault(row, f"column {name!r} {reason}")


def _simplify(name: str, cells: Any) -> Any:
    """Return a ChunkedArray of numbers, booleans, times, texts of type string, or nulls. Raises `InvalidInput`."""
    if not isinstance(cells, pa.ChunkedArray):
        cells = pa.chunked_array([cells])
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    kind = cells.type
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return cells.cast(pa.float64())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return cells.cast(pa.string())
    simple = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_null)
    if _is_time(kind) or any(check(kind) for check in simple):
        return cells
    raise InvalidInput(f"column {name!r} has the type {kind}, which no feature has")


def _is_time(kind: Any) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _reader(place: int, feature: Feature) -> Callable[[Any], _Read]:
    """Return the function that reads the cells of one feature."""
    if feature.kind == "time" and feature.reading is not None:
        return _Times(place, feature.name, feature.reading)
    if feature.largest_code is not None:
        return _Categories(CategoricalColumn(place, feature, feature.largest_code), feature)
    return _Numbers(feature.reading)


def _all_refused(cells: Any, reason: str) -> _Read:
    present = cells.is_valid().to_numpy()
    return np.full(len(cells), np.nan, np.float32), present, reason


def _to_numpy(cells: Any) -> _Values:
    """Return numbers as an array [rows] of a floating-point type; null becomes NaN."""
    if not pa.types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False)
    chunks = [chunk.to_numpy(zero_copy_only=False) for chunk in cells.chunks]
    if len(chunks) == 1:
        return chunks[0]  # type: ignore[no-any-return]  # pyarrow has no types
    return np.concatenate(chunks) if chunks else np.empty(0, np.float32)


class _Numbers:
    """Reads a numeric feature. reading: the notation of its texts; None if a text is refused."""

    def __init__(self, reading: Reading | None) -> None:
        self._reading = reading

    def __call__(self, cells: Any) -> _Read:
        kind = cells.type
        if pa.types.is_string(kind):
            if self._reading is None:
                return _all_refused(cells, _NOT_A_NUMBER)
            return self._from_texts(cells, self._reading)
        if pa.types.is_boolean(kind) or _is_time(kind):
            return _all_refused(cells, _NOT_A_NUMBER)
        return self._without_missing(_to_numpy(cells)), None, ""

    def _from_texts(self, cells: Any, reading: Reading) -> _Read:
        missing = pa.array(reading.missing, pa.string())
        bare = pc.utf8_trim_whitespace(cells)
        absent = pc.or_(pc.equal(bare, ""), pc.or_(pc.is_in(bare, missing), pc.is_in(cells, missing)))
        texts = pc.if_else(absent, pa.scalar(None, pa.string()), bare)
        values, bad = None, None
        if reading.is_plain:
            with suppress(pa.ArrowInvalid):  # a text is not a plain number; the pattern below finds this text
                values = _to_numpy(texts.cast(pa.float64()))
        if values is None:
            fits = pc.fill_null(pc.match_substring_regex(texts, f"^(?:{reading.number_pattern})$"), True)
            bad = ~fits.to_numpy()
            texts = pc.if_else(fits, texts, pa.scalar(None, pa.string()))
            for pattern, replacement in reading.number_rewrites:
                texts = pc.replace_substring_regex(texts, pattern, replacement)
            values = _to_numpy(texts.cast(pa.float64()))
        infinite = np.isinf(values)
        if infinite.any():
            bad = infinite if bad is None else bad | infinite
            values = np.where(infinite, np.nan, values)
        return self._without_missing(values), bad, _NOT_A_NUMBER

    def _without_missing(self, values: _Values) -> _Values:
        """Replace each number that means a missing value with NaN."""
        numbers = self._reading.missing_numbers if self._reading else ()
        return np.where(np.isin(values, numbers), np.nan, values) if numbers else values


class _Categories:
    """Reads a boolean or categorical feature. The service's `CategoricalColumn` gives the code of each distinct value.

    The numbers 0 and 1 are also booleans, as in training. In a feature of texts, a boolean or a time is converted to
    its text.
    """

    def __init__(self, column: CategoricalColumn, feature: Feature) -> None:
        self._column = column
        self._boolean = feature.kind == "boolean"
        self._texts = any(isinstance(category, str) for category in feature.categories)

    def __call__(self, cells: Any) -> _Read:
        if self._texts and (pa.types.is_boolean(cells.type) or _is_time(cells.type)):
            cells = cells.cast(pa.string())
        if _is_time(cells.type):
            return _all_refused(cells, self._column.misfit)
        encoded = cells.dictionary_encode().unify_dictionaries()
        if not encoded.num_chunks:
            return np.empty(0, np.float32), None, ""
        values = encoded.chunk(0).dictionary.to_pylist()
        codes, bad = zip(*map(self._code, [*values, None]), strict=True)
        indices = pc.fill_null(pa.chunked_array([chunk.indices for chunk in encoded.chunks]), len(values)).to_numpy()
        refused = np.array(bad)[indices] if any(bad) else None
        return np.array(codes, np.float32)[indices], refused, self._column.misfit

    def _code(self, value: Any) -> tuple[float, bool]:
        """Return the code of a value, and whether the value is refused."""
        if isinstance(value, float) and value != value:
            value = None
        if self._boolean and type(value) in (int, float) and value in (0, 1):
            value = bool(value)
        try:
            code = self._column.code(value, 0)
        except InvalidInput:
            return np.nan, True
        return (np.nan if code is None else code), False


class _Times:
    """Reads a feature of dates and times."""

    def __init__(self, place: int, name: str, reading: Reading) -> None:
        self._column = TimeColumn(place, name, reading)
        self._reading = reading

    def __call__(self, cells: Any) -> _Read:
        reading, kind = self._reading, cells.type
        if pa.types.is_null(kind):
            return np.full(len(cells), np.nan, np.float32), None, ""
        if pa.types.is_string(kind):
            return self._from_texts(cells)
        zoned = pa.types.is_timestamp(kind) and kind.tz is not None
        if not _is_time(kind) or zoned != reading.zoned:
            return _all_refused(cells, self._column.misfit)
        times = cells.cast(pa.timestamp("us", "UTC" if zoned else None), safe=False)
        absent = times.is_null().to_numpy()
        since = pc.fill_null(times.cast(pa.int64()), 0).to_numpy()
        since = since - np.datetime64(reading.origin, "us").astype(np.int64)
        numbers = np.where(absent, np.nan, since // (24 * _HOUR if reading.step == "day" else _HOUR))
        return numbers, np.abs(numbers) > MAX_MOMENT, self._column.misfit

    def _from_texts(self, cells: Any) -> _Read:
        encoded = cells.dictionary_encode().unify_dictionaries()
        if not encoded.num_chunks:
            return np.empty(0, np.float32), None, ""
        numbers, bad = zip(*map(self._number, [*encoded.chunk(0).dictionary.to_pylist(), None]), strict=True)
        indices = pa.chunked_array([chunk.indices for chunk in encoded.chunks])
        places = pc.fill_null(indices, len(numbers) - 1).to_numpy()
        return np.array(numbers)[places], np.array(bad)[places], self._column.misfit

    def _number(self, text: str | None) -> tuple[float, bool]:
        """Return the number of a text, and whether the text is refused."""
        try:
            number = self._column.code(text, 0)
        except InvalidInput:
            return np.nan, True
        return (np.nan if number is None else number), False
