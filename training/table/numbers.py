"""Numbers: converts cells to float64 with the notation in a `Reading`, and raises the errors about cells that are not
valid numbers.

Blanks around a number are ignored. In a column of numbers, the text `nan` is a missing value, in lower or upper case.
In any other column, `nan` is an ordinary text.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.bundle import Reading
from foldserve.training.errors import DataError
from foldserve.training.table.buffers import copy_numbers, find_empty, replace_by_null
from foldserve.training.table.cells import Distinct, as_text, cell_text, distinct, is_text, is_time
from foldserve.training.text import flag_value

PLAIN = Reading()

# A unit of a number: a currency sign, a currency code or a percent sign.
_UNIT = "[%$\u00a2-\u00a5\u20a0-\u20c0]|USD|EUR|GBP|JPY|CNY|CHF|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL|MXN|ZAR|KRW|RUB|kr"
UNIT = re.compile(_UNIT)
_DIGITS = (
    "(?:[1-9]\\d{0,2}(?:[.,'\u2019 \u00a0\u2007\u2009\u202f]\\d{3})+(?:[.,]\\d*)?|\\d+(?:[.,]\\d*)?|[.,]\\d+)"
    "(?:e[+-]?\\d+)?"
)
_AROUND = f"\\s*(?:{_UNIT})?\\s*"
NUMBER_IN_ANY_NOTATION = re.compile(
    f"[+\u2212-]?{_AROUND}[+\u2212-]?{_DIGITS}{_AROUND}|{_AROUND}[(]{_AROUND}{_DIGITS}{_AROUND}[)]{_AROUND}"
    "|[+-]?(?:nan|inf|infinity)",
    re.IGNORECASE | re.ASCII,
)
_PLAIN_NUMBER = re.compile(PLAIN.number_pattern)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
# Texts that often mean a missing value. In a column of categories, a text such as NA is an ordinary value.
_MISSING_MARKERS = {"na", "n/a", "#n/a", "null", "none", "nil", "missing", "?", "-", "--", "."}
# All integers up to this number are exact in float64.
MAX_EXACT_INTEGER = 2**53
_MAX_FLOAT32 = float(np.finfo(np.float32).max)

Values = npt.NDArray[np.float64]


def integer_value(value: Any) -> int | None:
    """Return the number `value` as an exact integer, or None if the number has a fraction."""
    text = str(value).strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() else None


def number_column(cells: pa.ChunkedArray, reading: Reading = PLAIN) -> Values | None:
    """Return the numbers as float64 [rows], or None if a cell is not a number.

    A missing value is NaN. Infinities are kept.

    reading: the notation of the numbers in texts, and the numbers that mean a missing value. Numbers that mean a
    missing value become NaN, whether the cells are texts or numbers.
    """
    if not is_text(cells):
        if pa.types.is_boolean(cells.type) or is_time(cells):
            return None
        return _without(reading.missing_numbers, _to_numpy(cells))
    if reading.is_plain:
        try:
            return _without(reading.missing_numbers, _to_numpy(cells.cast(pa.float64())))
        except pa.ArrowInvalid:
            pass
    texts = without_blanks(cells)
    # The first 64 rows are checked before the whole column, because in most columns of texts one of these rows is not a
    # number.
    if not all(matches(part, reading.number_pattern) for part in (texts.slice(0, 64), texts)):
        return None
    for pattern, replacement in reading.number_rewrites:
        texts = pc.replace_substring_regex(texts, pattern, replacement)
    return _without(reading.missing_numbers, _to_numpy(texts.cast(pa.float64())))


def without_blanks(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Remove the blanks around each text, and replace each empty text with null."""
    texts = pc.utf8_trim_whitespace(texts)
    return replace_by_null(texts, find_empty(texts))


def matches(texts: pa.ChunkedArray, pattern: str) -> bool:
    """Return whether every text matches `pattern` completely. Nulls are ignored."""
    return bool(pc.all(pc.match_substring_regex(texts, f"^(?:{pattern})$"), min_count=0).as_py())


def _without(missing: tuple[float, ...], values: Values) -> Values:
    return np.where(np.isin(values, missing), np.nan, values) if missing else values


def _to_numpy(cells: pa.ChunkedArray) -> Values:
    if not pa.types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False)
    return copy_numbers(cells, np.nan).astype(np.float64, copy=False)


def read_numbers(name: str, cells: pa.ChunkedArray, reading: Reading = PLAIN) -> Values:
    """Return the column as float64 [rows]; a missing value is NaN. Raises `DataError` if a cell is not a number."""
    values = number_column(cells, reading)
    if values is None:
        raise not_numeric(name, "must be numeric", distinct(as_text(cells)))
    check_numbers(name, cells, values, reading)
    return values


def check_numbers(name: str, cells: pa.ChunkedArray, values: Values, reading: Reading = PLAIN) -> None:
    """Raise `DataError` for an infinite number, a number that is too large for float32, and an integer whose absolute
    value is above 2^53.
    """
    too_large = np.abs(values) > _MAX_FLOAT32  # False for NaN
    if too_large.any():
        row = int(too_large.argmax())
        text = cell_text(cells, row)
        problem = "is infinite" if text.strip().lstrip("+-").lower() in ("inf", "infinity") else "is too large"
        raise DataError(
            f"column {name!r}: row {row + 1} {problem}, {text!r}: a float32 holds up to 3.4e38; if it means a missing "
            f"value, use --missing {flag_value(text)}"
        )
    if pa.types.is_floating(cells.type):
        return
    large = np.flatnonzero(np.abs(values) >= MAX_EXACT_INTEGER)
    if not len(large):
        return
    for row, cell in zip(large.tolist(), cells.take(pa.array(large)).to_pylist(), strict=True):
        text = reading.plain_number(str(cell))
        if _INTEGER.fullmatch(text) and abs(int(text)) > MAX_EXACT_INTEGER:
            raise DataError(
                f"column {name!r}: row {row + 1} is {text}, an integer past 2^53 that would be rounded: use --drop "
                f"{flag_value(name)}, or --categorical {flag_value(name)} if it is a name"
            )


def all_plain(found: Distinct) -> bool:
    """Return whether all values are plain numbers, which contain no mark except a decimal point."""
    return all(_PLAIN_NUMBER.fullmatch(str(value).strip()) for value in found.used)


def first_text(found: Distinct) -> str | None:
    """Return the text of the first cell that is not a number in any notation, or None if there is no such cell."""
    return _describe_others(found)[1]


def almost_numeric(found: Distinct, *, allow_plain: bool = True) -> str | None:
    """If the column looks numeric, return a description of the cells that are not numbers. Return None if the column
    does not look numeric.

    A column looks numeric in two cases: at least half of its cells are numbers in some notation, or all cells that are
    not numbers are common texts for a missing value, such as NA. The texts `nan` and `inf` count neither as numbers nor
    as texts. If all cells are numbers but have different notations, the function returns a description of the
    notations. allow_plain: whether to return None if all cells are plain numbers, which contain no mark except a
    decimal point.
    """
    if allow_plain and all_plain(found):
        return None
    number = _which_are_numbers(found)
    has_digit = number & np.array([any(letter.isdigit() for letter in str(value)) for value in found.values], bool)
    others = {str(value).strip().lower() for value, n in zip(found.values, found.counts * ~number, strict=True) if n}
    numbers = int(found.counts[has_digit].sum())
    looks_numeric = numbers and (numbers * 2 >= found.present or others <= _MISSING_MARKERS)
    return _describe_others(found)[0] if looks_numeric else None


def not_numeric(name: str, claim: str, found: Distinct) -> DataError:
    """Return the error for a column in which some cells are not numbers. claim: the words that follow the name of the
    column in the message, such as `must be numeric`.
    """
    description, first = _describe_others(found)
    missing = f"--missing {flag_value(first)}, " if first else ""
    return DataError(
        f"column {name!r} {claim}, but {description}; use {missing}--categorical {flag_value(name)} or --drop "
        f"{flag_value(name)}"
    )


def _which_are_numbers(found: Distinct) -> npt.NDArray[np.bool_]:
    return np.array([bool(NUMBER_IN_ANY_NOTATION.fullmatch(str(value).strip())) for value in found.values], bool)


def _describe_others(found: Distinct) -> tuple[str, str | None]:
    """Return a description of the cells that are not numbers, and the text of the first of these cells."""
    number = _which_are_numbers(found)
    if number[found.counts > 0].all():
        return _describe_notations([str(value).strip() for value in found.used]), None
    row = int((~np.append(number, True))[found.codes].argmax())
    text = str(found.values[found.codes[row]])
    count = f"{found.counts[~number].sum():,} of {found.present:,} cells are not numbers"
    return f"{count}, the first in row {row + 1}: {text[:40]!r}", text


def _describe_notations(texts: list[str]) -> str:
    """Say that the numbers of a column have different notations, or that the user's flags ask for another notation."""
    first = texts[0]
    other = next((text for text in texts if _marks(text) != _marks(first)), None)
    if other is None:
        return f"{first[:40]!r} has another notation than --decimal and --thousands demand"
    return f"its numbers have no notation in common, as {first[:40]!r} and {other[:40]!r}"


def _marks(text: str) -> list[str]:
    return [*UNIT.findall(text), *re.findall("[.,]", text)]


def has_leading_zeros(cells: pa.ChunkedArray) -> bool:
    """Whether a cell is a number with leading zeros, such as 007. In a column with a cell such as 007, the cells 007
    and 7 are different codes.
    """
    return is_text(cells) and bool(pc.any(pc.match_substring_regex(cells, r"^\s*[+-]?0\d")).as_py())
