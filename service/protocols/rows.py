"""Converts the values of a request to float32 [rows, features].

The error message about a wrong value names its row and column. All checks of values are in this module. This module
does not depend on where a protocol puts the values in a body.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Rows
from foldserve.service.bundle import MAX_MOMENT, Feature, Reading
from foldserve.service.errors import InvalidInput
from foldserve.service.metrics import MAX_DEFERRED_VALUES, Counts
from foldserve.service.protocols.categories import NUMBERS, CategoricalColumn, TimeColumn
from foldserve.service.protocols.ranges import Ranges

_NUMBERS_AND_NULL = NUMBERS | {type(None)}

# Measurements show that `struct` converts up to this many numbers faster than NumPy.
_SMALL_COUNT = 512


class Columns:
    """The input columns of one model. coded: the boolean and categorical columns, whose numbers are codes."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.names = tuple(feature.name for feature in features)
        self.width = len(features)
        self.ranges = Ranges(features)
        self._nullable = np.array([feature.missing for feature in features])
        self.coded = tuple(
            CategoricalColumn(place, feature, feature.largest_code)
            for place, feature in enumerate(features)
            if feature.largest_code is not None
        )
        self._places = np.array([column.place for column in self.coded], np.intp)
        self._largest = np.array([column.largest for column in self.coded], np.float32)
        self._times = tuple(
            TimeColumn(place, feature.name, feature.reading)
            for place, feature in enumerate(features)
            if feature.kind == "time" and feature.reading is not None
        )
        self._converted: tuple[CategoricalColumn | TimeColumn, ...] = (*self.coded, *self._times)
        self._time_places = np.array([column.place for column in self._times], np.intp)
        # `_readings` is for the numeric columns in which texts are read as numbers. `_missing_numbers` is for the
        # numeric columns in which some numbers mean a missing value.
        self._readings = [feature.reading if feature.kind == "numeric" else None for feature in features]
        self._missing_numbers = tuple(
            (place, reading.missing_numbers)
            for place, reading in enumerate(self._readings)
            if reading and reading.missing_numbers
        )

    @property
    def are_plain(self) -> bool:
        """Whether the model gets each JSON number unchanged.

        The model gets each number unchanged if no column contains codes or times, and no column uses a number for
        missing values.
        """
        return not self.coded and not self._times and not self._missing_numbers

    def from_json_values(self, values: list[Any], first_row: int = 0, *, booleans: bool = True) -> Rows:
        """Read the values of whole rows, one row after the other, as float32 [rows, features].

        A boolean is given as true or false, a category as its string or number, and a missing value as None. This
        function interprets a text by the same rules that were used for the training table. first_row: the index of the
        first row in the request. booleans: whether a value may be true or false. Raises `InvalidInput`.
        """
        if len(values) == self.width:  # most requests have only one row, and slices would be slower for one row
            for column in self._converted:
                values[column.place] = column.code(values[column.place], first_row)
        else:
            for column in self._converted:
                values[column.place :: self.width] = column.codes(values[column.place :: self.width], first_row)
        if self._missing_numbers:
            self._remove_missing(values)
        return self._from_json_numbers(values, first_row, self._readings, booleans=booleans)

    def from_json_numbers(self, values: list[Any], first_row: int = 0, *, booleans: bool = True) -> Rows:
        """Read the numbers of whole rows, one row after the other, as float32 [rows, features].

        Booleans and categories are codes, and a missing value is None. first_row: the index of the first row in the
        request. booleans: whether `values` may contain true or false, which this function refuses. Raises
        `InvalidInput`.
        """
        rows = self._from_json_numbers(values, first_row, booleans=booleans)
        self._check_codes(rows, first_row)
        return rows

    def from_doubles(self, numbers: npt.NDArray[np.float64]) -> Rows | None:
        """Convert the finite numbers of whole rows in the same way as `from_json_numbers`.

        Returns None if `from_json_numbers` would raise an error.
        """
        with np.errstate(over="ignore"):
            rows = numbers.reshape(-1, self.width).astype(np.float32)
        if not np.isfinite(rows).all() or (self.coded and self._no_codes(rows).any()) or self._no_times(rows).any():
            return None
        return rows

    def _remove_missing(self, values: list[Any]) -> None:
        """Replace each number that means a missing value with None."""
        for place, missing in self._missing_numbers:
            for i in range(place, len(values), self.width):
                if type(values[i]) in NUMBERS and values[i] in missing:
                    values[i] = None

    def _read_texts(self, values: list[Any], first_row: int, readings: Sequence[Reading | None]) -> None:
        """In each column that has a `Reading`, replace each text with its number. Raises `InvalidInput`."""
        for i, value in enumerate(values):
            reading = readings[i % self.width] if type(value) is str else None
            if reading is not None:
                try:
                    values[i] = reading.number(value)
                except ValueError:
                    row, column = divmod(i, self.width)
                    raise InvalidInput(
                        f"row {first_row + row}, column {self.names[column]!r} is not a number"
                    ) from None

    def _from_json_numbers(
        self,
        values: list[Any],
        first_row: int,
        readings: Sequence[Reading | None] | None = None,
        *,
        booleans: bool,
    ) -> Rows:
        # If `values` has no booleans, the types of the values need no check here, because `_packed` refuses every value
        # that is neither a number nor a boolean.
        if not booleans and (rows := self._packed(values)) is not None:
            return rows
        types = set(map(type, values))
        if str in types and readings is not None:
            self._read_texts(values, first_row, readings)
            types = set(map(type, values))
        if types <= NUMBERS:
            if (rows := self._packed(values)) is not None:
                return rows
        elif not types <= _NUMBERS_AND_NULL:
            known = np.array([type(value) in _NUMBERS_AND_NULL for value in values])
            self._refuse_at(~known.reshape(-1, self.width), "is not a number", first_row)
        # orjson reads an integer of more than 64 bits as a float. NumPy turns None into NaN. JSON can't contain NaN, so
        # each NaN in `exact` means a missing value.
        exact = np.array(values, dtype=np.float64).reshape(-1, self.width)
        if type(None) in types:
            reason = "is null, and the feature has no missing values"
            self._refuse_at(np.isnan(exact) & ~self._nullable, reason, first_row)
        return self._float32(exact, first_row)

    def _packed(self, values: list[Any]) -> Rows | None:
        """Convert a small number of values to float32 [rows, features].

        Returns None in three cases: there are more than `_SMALL_COUNT` values; a value is too large for float32; a
        value is neither a number nor a boolean.
        """
        if len(values) > _SMALL_COUNT:
            return None
        try:
            packed = _packer(len(values))(*values)
        except (struct.error, OverflowError):
            return None
        return np.ndarray((len(values) // self.width, self.width), np.float32, packed)

    def from_array(self, exact: npt.NDArray[Any]) -> Rows:
        """Convert an array [rows, features] of any numeric dtype to float32.

        Booleans and categories are codes, and a missing value is NaN. Raises `InvalidInput`.
        """
        rows = self._from_array(exact)
        self._check_codes(rows)
        return rows

    def count(self, rows: Rows) -> Counts | None:
        """Count the unusual values of a large request.

        Returns None for a small request, because the metrics count its unusual values later.
        """
        return self.ranges.count(rows) if rows.size > MAX_DEFERRED_VALUES else None

    def _from_array(self, exact: npt.NDArray[Any]) -> Rows:
        if exact.dtype == np.float32:
            rows = exact if exact.flags.aligned else exact.copy()
            if _are_finite(rows):
                return rows
        self._refuse_at(np.isinf(exact), "is infinite")
        self._refuse_at(np.isnan(exact) & ~self._nullable, "is NaN, and the feature has no missing values")
        return self._float32(exact)

    def _no_codes(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return a bool array [rows, coded] that is True where a value is not a valid code, and False for NaN."""
        codes = rows.take(self._places, axis=1)
        with np.errstate(invalid="ignore"):  # NumPy warns about a signalling NaN
            bad: npt.NDArray[np.bool_] = (codes < 0) | (codes > self._largest) | (abs(codes - np.rint(codes)) > 0)
        return bad

    def _no_times(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return a bool array [rows, times] that is True where a value is not a valid time, and False for NaN."""
        times = rows.take(self._time_places, axis=1)
        with np.errstate(invalid="ignore"):  # NumPy warns about a signalling NaN
            bad: npt.NDArray[np.bool_] = (abs(times) > MAX_MOMENT) | (abs(times - np.rint(times)) > 0)
        return bad

    def _check_codes(self, rows: Rows, first_row: int = 0) -> None:
        if self.coded and (bad := self._no_codes(rows)).any():
            row, found = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {first_row + row}, column {self.coded[found].name!r} {self.coded[found].no_code}")
        if self._times and (bad := self._no_times(rows)).any():
            row, found = np.argwhere(bad)[0].tolist()
            raise InvalidInput(
                f"row {first_row + row}, column {self._times[found].name!r} is not a whole number from -2^24 to 2^24"
            )

    def _refuse_at(self, bad: npt.NDArray[np.bool_], reason: str, first_row: int = 0) -> None:
        """Raise `InvalidInput` if `bad`, a bool array [rows, features], contains a True.

        The message names the row and column of the first True.
        """
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {first_row + row}, column {self.names[column]!r} {reason}")

    def _float32(self, exact: npt.NDArray[Any], first_row: int = 0) -> Rows:
        with np.errstate(over="ignore", invalid="ignore"):  # NumPy warns about a signalling NaN as "invalid"
            rows = exact.astype(np.float32)
        self._refuse_at(np.isinf(rows), "is too large for float32", first_row)
        return rows


def _are_finite(rows: Rows) -> bool:
    # For few rows, searching the bytes for a zero takes only a third of the time of `all`.
    return b"\0" not in np.isfinite(rows).tobytes()


@lru_cache(_SMALL_COUNT)
def _packer(count: int) -> Callable[..., bytes]:
    # With the format "=", `struct` checks for overflow, and rounds as NumPy does.
    return struct.Struct(f"={count}f").pack


class RowsBuffer:
    """Collects the rows of a request, one piece at a time.

    The rows are added to one growing buffer. A list of arrays would need twice the memory when the arrays are joined.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._bytes = bytearray()
        self.count = 0  # the number of rows so far

    def append(self, rows: Rows) -> None:
        """Append a float32 array [rows, features]."""
        self._bytes += rows.tobytes()
        self.count += len(rows)

    def rows(self) -> Rows:
        """Return all rows as one float32 array [rows, features]."""
        return np.frombuffer(self._bytes, np.float32).reshape(self.count, self._width)
