"""Boolean and categorical columns: the values of JSON become codes.

The code of a boolean is 0 or 1, that of a category its index. This module knows one column, and no row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from foldserve.service.bundle import Feature
from foldserve.service.errors import InvalidInput

# Compare exact types: to Python a bool is an int, to a client it is not a number.
NUMBERS: frozenset[type] = frozenset({int, float})

_MISFITS: dict[frozenset[type], str] = {
    frozenset({bool}): "is neither true nor false",
    frozenset({str}): "is not a string, as its categories are",
    NUMBERS: "is not a number, as its categories are",
    NUMBERS | {str}: "is neither a string nor a number",
}


class CategoricalColumn:
    """One boolean or categorical column.

    place: its index among all columns. largest: its largest code. reserved: the code of an unseen category; NaN for a
    boolean, which has no unseen value.
    """

    def __init__(self, place: int, feature: Feature, largest: int) -> None:
        self.place = place
        self.name = feature.name
        self.largest = largest
        values: tuple[Any, ...] = feature.categories or (False, True)
        self._codes: dict[Any, float | None] = {value: float(code) for code, value in enumerate(values)}
        # Where no value may be missing, null stays null, and the check of the whole rows refuses it.
        self._codes[None] = math.nan if feature.missing else None
        types = frozenset[type](map(type, values))
        if types & NUMBERS:
            types |= NUMBERS  # 1 is written 1.0 as well
        self._types = types | {type(None)}
        self._misfit = _MISFITS[types]
        boolean = feature.kind == "boolean"
        self.reserved = math.nan if boolean else float(largest)
        self.no_code = "is neither 0 nor 1" if boolean else f"is not an index from 0 to {largest}"

    def code(self, value: Any, row: int) -> float | None:
        """Return the code of one value. row: its row, for the message.

        Raises `InvalidInput` for a value of another type.
        """
        if type(value) not in self._types:
            raise InvalidInput(f"row {row}, column {self.name!r} {self._misfit}")
        return self._codes.get(value, self.reserved)

    def codes(self, values: Sequence[Any], first_row: int) -> list[float | None]:
        """Return the codes of values, one for each row. first_row: the row of the first value, for the message.

        Raises `InvalidInput` for a value of another type.
        """
        if not self._types.issuperset(map(type, values)):
            row = next(row for row, value in enumerate(values, first_row) if type(value) not in self._types)
            raise InvalidInput(f"row {row}, column {self.name!r} {self._misfit}")
        return list(map(self._codes.get, values, repeat(self.reserved)))
