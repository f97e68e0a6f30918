"""The kinds of a column whose numbers are codes: a boolean and its 0 and 1, a category and its index.

From the values that people write, in JSON's own types, to codes; rows.py has the rest of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from foldserve.service.bundle import Feature
from foldserve.service.errors import InvalidInput

# Of exactly these types: a bool is an int to Python, and no number to a client.
NUMBERS: frozenset[type] = frozenset({int, float})

_MISFITS: dict[frozenset[type], str] = {
    frozenset({bool}): "is neither true nor false",
    frozenset({str}): "is not a string, as its categories are",
    NUMBERS: "is not a number, as its categories are",
    NUMBERS | {str}: "is neither a string nor a number",
}


class CategoricalColumn:
    """One boolean or categorical column; `place` among all columns.

    largest: the largest code. reserved: the code of what training has not seen; NaN, which equals no code, where
    nothing can be that.
    """

    def __init__(self, place: int, feature: Feature, largest: int) -> None:
        self.place = place
        self.name = feature.name
        self.largest = largest
        values: tuple[Any, ...] = feature.categories or (False, True)
        self._codes: dict[Any, float | None] = {value: float(code) for code, value in enumerate(values)}
        # Where nothing may be missing, null stays null: whoever reads the whole rows tells so.
        self._codes[None] = math.nan if feature.missing else None
        types = frozenset[type](map(type, values))
        if types & NUMBERS:
            types |= NUMBERS  # 1 is written 1.0 as well
        self._types = types | {type(None)}
        self._misfit = _MISFITS[types]
        boolean = feature.kind == "boolean"
        self.reserved = math.nan if boolean else float(largest)
        self.no_code = "is neither 0 nor 1" if boolean else f"is not an index from 0 to {largest}"

    def code(self, value: Any) -> float | None:
        """Give the code of the value in the only row, as `codes` does for many."""
        if type(value) not in self._types:
            raise InvalidInput(f"row 0, column {self.name!r} {self._misfit}")
        return self._codes.get(value, self.reserved)

    def codes(self, values: Sequence[Any]) -> list[float | None]:
        """Give the codes of JSON's own values, one a row. Raises `InvalidInput` for a value of another type."""
        if not self._types.issuperset(map(type, values)):
            row = next(row for row, value in enumerate(values) if type(value) not in self._types)
            raise InvalidInput(f"row {row}, column {self.name!r} {self._misfit}")
        return list(map(self._codes.get, values, repeat(self.reserved)))
