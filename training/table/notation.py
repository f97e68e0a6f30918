"""Notation: the marks, units and parentheses in a column of numbers.

The cells of a column have one notation in common, so the module looks at all cells to find the notation.

The result is a `Reading`. The module numbers.py converts the cells with this `Reading`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.bundle import Reading
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table.cells import is_text
from foldserve.training.table.numbers import (
    NUMBER_IN_ANY_NOTATION,
    UNIT,
    Values,
    matches,
    number_column,
    without_blanks,
)
from foldserve.training.text import flag_value

_DECIMALS = (".", ",")
# The module tries the separators in this order and takes the first one that fits all cells. The empty separator comes
# first, so that another separator is used only if a cell contains it.
_THOUSANDS = ("", ",", ".", " ", "'")
# The module first checks this many distinct cells, and checks the whole column only if all of them are numbers.
_HEAD = 50


@dataclass(frozen=True)
class Marks:
    """The user's settings for all columns: the texts that mean a missing value, and the marks of numbers.

    A mark is None if the user did not choose it. If a mark is None, the module finds out which mark the cells use.

    missing: texts that mean a missing value, as a blank cell does.
    """

    missing: tuple[str, ...] = ()
    decimal: str | None = None
    thousands: str | None = None

    @classmethod
    def of(cls, options: DataOptions) -> Marks:
        """Return the marks that the user chose by flags."""
        return cls(options.missing, options.decimal, options.thousands)

    @property
    def plain(self) -> Reading:
        """The `Reading` for a column whose numbers have no special notation."""
        return Reading(missing=self.missing)

    @property
    def allow_point(self) -> bool:
        """Whether the user's flags allow a point as the decimal mark."""
        return self.decimal != "," and self.thousands != "."


def read_notation(
    name: str, cells: pa.ChunkedArray, marks: Marks, otherwise: str = ""
) -> tuple[Values, Reading] | None:
    """Return the numbers of a column as float64 [rows], and the `Reading` with their notation. A missing value is NaN.

    Returns None if a cell is not a number, or if no single notation fits all cells. Raises `DataError` if the numbers
    are ambiguous, because a text such as 1,234 could mean 1234 or 1.234. otherwise: the flag that the error message
    recommends for reading the column as texts; by default, --categorical.
    """
    if marks.allow_point or not is_text(cells):
        values = number_column(cells, marks.plain)
        if values is not None:
            return values, marks.plain
    reading = _find(name, cells, marks, otherwise) if is_text(cells) else None
    values = None if reading is None else number_column(cells, reading)
    return None if reading is None or values is None else (values, reading)


def _find(name: str, cells: pa.ChunkedArray, marks: Marks, otherwise: str) -> Reading | None:
    texts = pc.drop_null(without_blanks(pc.unique(cells)))
    head = texts.slice(0, _HEAD).to_pylist()
    if not head or not all(NUMBER_IN_ANY_NOTATION.fullmatch(text) for text in head):
        return None
    unit = next((match[0] for text in head if (match := UNIT.search(text))), "")
    if unit and not matches(pc.if_else(pc.match_substring(texts, unit), None, texts), "[+-]?0*[.,]?0+|[nN][aA][nN]"):
        return None  # some cells have the unit and others do not
    accounting = bool(pc.any(pc.match_substring(texts, "(")).as_py())
    found: dict[str, Reading] = {}
    for decimal, thousands in _candidates(marks):
        reading = Reading.model_validate(
            {
                "missing": marks.missing,
                "decimal": decimal,
                "thousands": thousands,
                "unit": unit,
                "accounting": accounting,
            }
        )
        if decimal not in found and matches(texts, reading.number_pattern):
            found[decimal] = reading
    if len(found) == 2 and (marked := pc.match_substring_regex(texts, "[.,]")).true_count:
        raise _ambiguous(name, str(texts.filter(marked)[0]), found, otherwise)
    return next(iter(found.values()), None)


def _candidates(marks: Marks) -> Iterator[tuple[str, str]]:
    for decimal in _DECIMALS:
        for thousands in _THOUSANDS:
            fits = marks.decimal in (None, decimal) and (not thousands or marks.thousands in (None, thousands))
            if fits and decimal not in (thousands, marks.thousands):
                yield decimal, thousands


def _ambiguous(name: str, text: str, found: dict[str, Reading], otherwise: str) -> DataError:
    point, comma = (f"{found[decimal].number(text):.10g}" for decimal in _DECIMALS)
    ways = f"{comma} with --decimal , or {point} with --thousands ,"
    if "," not in text:
        ways = f"{point} with --decimal . or {comma} with --thousands ."
    return DataError(
        f"column {name!r} can be read in two ways: {text[:40]!r} is {ways}; say which, or use "
        f"{otherwise or '--categorical ' + flag_value(name)}"
    )
