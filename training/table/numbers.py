"""Numbers: from cells to float64, and the messages that refuse a cell.

A text is a number if it is written like one, with or without an exponent; blanks around it are ignored. The text
`nan`, in any case, is a missing value in a column of numbers and an ordinary text in any other column.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.training.errors import DataError
from foldserve.training.table.cells import Distinct, as_text, cell_text, distinct, is_text, is_time
from foldserve.training.text import flag_value

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
# Texts that often mean a missing value. In a column of texts, such a text is an ordinary value.
_MISSING_MARKERS = {"na", "n/a", "#n/a", "null", "none", "nil", "missing", "?", "-", "--", "."}
# Up to here every integer has a float64 of its own.
MAX_EXACT_INTEGER = 2**53
_MAX_FLOAT32 = float(np.finfo(np.float32).max)

Values = npt.NDArray[np.float64]


def is_number(text: str) -> bool:
    """Whether all of `text` is a number, without blanks around it."""
    return bool(_NUMBER.fullmatch(text))


def integer_value(value: Any) -> int | None:
    """Return the number `value` as an exact integer; None if it has a fraction."""
    text = str(value).strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() else None


def number_column(cells: pa.ChunkedArray) -> Values | None:
    """Return float64 [rows], NaN for a missing value; None if a cell is not a number. Infinities are kept."""
    if not is_text(cells):
        return _to_numpy(cells) if not (pa.types.is_boolean(cells.type) or is_time(cells)) else None
    try:
        return _to_numpy(cells.cast(pa.float64()))
    except pa.ArrowInvalid:
        pass
    found = distinct(cells)
    if not all(is_number(value.strip()) for value in found.used):
        return None
    numbers = [float(value) if count else np.nan for value, count in zip(found.values, found.counts, strict=True)]
    return np.array([*numbers, np.nan])[found.codes]


def _to_numpy(cells: pa.ChunkedArray) -> Values:
    if not pa.types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False)
    values = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in cells.chunks] or [np.empty(0)])
    return values.astype(np.float64, copy=False)


def read_numbers(name: str, cells: pa.ChunkedArray) -> Values:
    """Return the column as float64 [rows], NaN for a missing value. Raises `DataError` if a cell is not a number."""
    values = number_column(cells)
    if values is None:
        raise not_numeric(name, "must be numeric", distinct(as_text(cells)))
    check_numbers(name, cells, values)
    return values


def check_numbers(name: str, cells: pa.ChunkedArray, values: Values) -> None:
    """Raise `DataError` for the first number that is infinite, too large for float32, or an integer past 2^53."""
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
    for row, cell in zip(large.tolist(), cells.take(pa.array(large)).to_pylist(), strict=True):
        text = str(cell).strip()
        if _INTEGER.fullmatch(text) and abs(int(text)) > MAX_EXACT_INTEGER:
            raise DataError(
                f"column {name!r}: row {row + 1} is {text}, an integer past 2^53 that would be rounded: use --drop "
                f"{flag_value(name)}, or --categorical {flag_value(name)} if it is a name"
            )


def almost_numeric(found: Distinct) -> str | None:
    """Describe the cells that are not numbers in a column that looks numeric; None for numbers, and for texts.

    A column looks numeric if at least half of its cells are numbers, or if every other cell is a common text for a
    missing value, such as NA. The texts `nan` and `inf` count neither as numbers nor as texts.
    """
    number = _which_are_numbers(found)
    has_digit = number & np.array([any(letter.isdigit() for letter in str(value)) for value in found.values], bool)
    others = {str(value).strip().lower() for value, n in zip(found.values, found.counts * ~number, strict=True) if n}
    numbers = int(found.counts[has_digit].sum())
    looks_numeric = numbers * 2 >= found.present or (numbers and others <= _MISSING_MARKERS)
    return _describe_others(found)[0] if others and looks_numeric else None


def not_numeric(name: str, claim: str, found: Distinct) -> DataError:
    """Return the error for a column that `claim`, as in `must be numeric`, and has cells that are not numbers."""
    description, first = _describe_others(found)
    return DataError(
        f"column {name!r} {claim}, but {description}; use --missing {flag_value(first)}, --categorical "
        f"{flag_value(name)} or --drop {flag_value(name)}"
    )


def _which_are_numbers(found: Distinct) -> npt.NDArray[np.bool_]:
    return np.array([is_number(str(value).strip()) for value in found.values], bool)


def _describe_others(found: Distinct) -> tuple[str, str]:
    """Describe the cells that are not numbers, and return the text of the first one."""
    number = _which_are_numbers(found)
    row = int((~np.append(number, True))[found.codes].argmax())
    text = str(found.values[found.codes[row]])
    count = f"{found.counts[~number].sum():,} of {found.present:,} cells are not numbers"
    return f"{count}, the first in row {row + 1}: {text[:40]!r}", text


def has_leading_zeros(cells: pa.ChunkedArray) -> bool:
    """Whether a text is a number with leading zeros: 007 and 7 are two codes, not one number."""
    return is_text(cells) and bool(pc.any(pc.match_substring_regex(cells, r"^\s*[+-]?0\d")).as_py())
