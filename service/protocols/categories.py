"""Converts the JSON values of boolean and categorical columns to codes.

The code of a boolean is 0 or 1. The code of a category is its index among the categories of the column. If a column
contained texts in the training table, the service interprets the column's texts by the same rules that were used for
that table. This module handles single columns, not whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foldserve.service.bundle import Category, Feature, Reading
from foldserve.service.errors import InvalidInput

# Compare exact types. In Python a bool is an int, but for a client a boolean is not a number.
NUMBERS: frozenset[type] = frozenset({int, float})

JsonValue = Category | bool | None

_MISFITS: dict[frozenset[type], str] = {
    frozenset({bool}): "is neither true nor false",
    frozenset({str}): "is not a string, as its categories are",
    NUMBERS: "is not a number, as its categories are",
    NUMBERS | {str}: "is neither a string nor a number",
}


class _Codes(dict[Any, float | None]):
    """A dict from each known value to its code.

    A text that means a missing value gets the code of a missing value. If a value is unknown and does not mean a
    missing value, it gets the code of an unseen category.
    """

    def __init__(self, known: dict[Any, float | None], reading: Reading | None, unseen: float) -> None:
        super().__init__(known)
        self._is_missing = reading.is_missing if reading else lambda _: False
        self._missing = known[None]
        self._unseen = unseen

    def __missing__(self, value: Any) -> float | None:
        return self._missing if type(value) is str and self._is_missing(value) else self._unseen


class TimeColumn:
    """One column of dates and times. Each value is a text in ISO 8601.

    place: the index of this column among all columns.

    misfit: the reason why a value is refused.
    """

    misfit = "is not a date or time as in the training table"

    def __init__(self, place: int, name: str, reading: Reading) -> None:
        self.place = place
        self.name = name
        self._read = reading.moment

    def code(self, value: Any, row: int) -> float | None:
        """Return the number that the model gets as input for one value.

        Raises `InvalidInput` if the value is neither null nor the text of a date or time.
        """
        try:
            if value is None or type(value) is str:
                return None if value is None else self._read(value)
        except ValueError:
            pass
        raise InvalidInput(f"row {row}, column {self.name!r} {self.misfit}")

    def codes(self, values: Sequence[Any], first_row: int) -> list[float | None]:
        """Return one number for each value. first_row: the index of the first value's row, for error messages."""
        return [self.code(value, row) for row, value in enumerate(values, first_row)]


class CategoricalColumn:
    """One boolean or categorical column.

    place: the index of the column among all columns. largest: the largest code; in a categorical column, this is the
    code of an unseen category. misfit: the reason why a value of another type is refused.
    """

    def __init__(self, place: int, feature: Feature, largest: int) -> None:
        self.place = place
        self.name = feature.name
        self.largest = largest
        values: tuple[Any, ...] = feature.categories or (False, True)
        boolean, reading = feature.kind == "boolean", feature.reading
        types = frozenset[type](map(type, values))
        if types & NUMBERS:
            types |= NUMBERS  # a client may write the number 1 as 1.0
        self._types = types | {type(None)}
        self.misfit = _MISFITS[types]
        known: dict[Any, float | None] = {value: float(code) for code, value in enumerate(values)}
        # If the feature allows no missing values, a null has no code and stays None, so that the later check of the
        # whole rows refuses the null.
        known[None] = math.nan if feature.missing else None
        # A boolean column has no code for an unseen value, so an unknown text in a boolean column is refused.
        self._read_boolean = reading.boolean if boolean and reading else None
        if reading and not boolean:
            known = dict.fromkeys(reading.missing_numbers, known[None]) | {str(v): known[v] for v in values} | known
            self._types |= {str}
        self._codes = _Codes(known, reading, float(largest))  # a boolean column does not use `unseen`
        self.no_code = "is neither 0 nor 1" if boolean else f"is not an index from 0 to {largest}"

    def code(self, value: Any, row: int) -> float | None:
        """Return the code of one value. row: the index of the row, for the error message.

        Raises `InvalidInput` for a value of another type.
        """
        if type(value) not in self._types:
            return self._code_of_text(value, row)
        return self._codes[value]

    def codes(self, values: Sequence[Any], first_row: int) -> list[float | None]:
        """Return one code for each value. first_row: the index of the first value's row, for error messages.

        Raises `InvalidInput` for a value of another type.
        """
        if not self._types.issuperset(map(type, values)):
            return [self.code(value, row) for row, value in enumerate(values, first_row)]
        return list(map(self._codes.__getitem__, values))

    def _code_of_text(self, value: Any, row: int) -> float | None:
        """Return the code of a text that means a boolean.

        Raises `InvalidInput` unless the value is a text that means a boolean.
        """
        if self._read_boolean is not None and type(value) is str:
            try:
                return self._codes[self._read_boolean(value)]
            except ValueError:
                pass
        raise InvalidInput(f"row {row}, column {self.name!r} {self.misfit}")


def json_value(feature: Feature, value: float | None) -> JsonValue:
    """Convert an input number of the model to the JSON value that a client would send for it."""
    if value is None or feature.kind == "numeric":
        return value
    if feature.kind == "time" and feature.reading is not None:
        return feature.reading.moment_text(value)
    return bool(value) if feature.kind == "boolean" else (*feature.categories, feature.categories[-1])[int(value)]
