"""Cells: from one column as a source holds it to numbers, and what kind it is. It knows no table.

A text is a number when it is written like one, with an exponent or without, blanks around it aside. `nan`, in any
case, is how programs write a number that there is not: no value, in a column whose other cells are numbers, and a
text like any other elsewhere. A cell of nothing but blanks has no value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.training.errors import DataError

Kind = Literal["numeric", "boolean", "categorical"]
Category = str | int | float

MAX_CATEGORIES = 4_096

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d(?:[T ]|\s*$)", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
# As Python and JSON write it: 007 is a code, not the number 7.
_PLAIN_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
# How tables write that there is no value, beside an empty cell. One of them among texts is a text.
_NO_VALUE = {"na", "n/a", "#n/a", "null", "none", "nil", "missing", "?", "-", "--", "."}
_TRUTH = {"false": 0.0, "true": 1.0}
_TRUTH_DECLARED = _TRUTH | {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
# The largest whole number below which a float64 has every other.
_EXACT = 2**53
_LARGEST = float(np.finfo(np.float32).max)

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distinct:
    """The different values of a column.

    values: texts, numbers or booleans. codes: int64 [rows], which of them a row has, -1 for none. counts: int64
    [values].
    """

    values: list[Any]
    codes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def present(self) -> int:
        """How many rows have a value."""
        return int(self.counts.sum())


def is_text(cells: pa.ChunkedArray) -> bool:
    """Whether the cells are texts."""
    kind = cells.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_moment(cells: pa.ChunkedArray) -> bool:
    """Whether the cells are dates or points in time."""
    return bool(pa.types.is_date(cells.type) or pa.types.is_timestamp(cells.type))


def plain(name: str, cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells of a dictionary as what they stand for. Raises `DataError` for nested and binary types."""
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    kind = cells.type
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return cells.cast(pa.float64())
    known = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if known or pa.types.is_null(kind) or is_text(cells) or is_moment(cells):
        return cells
    raise DataError(f"column {name!r} is of type {kind}, which is no feature: --drop {listed(name)}")


def distinct(cells: pa.ChunkedArray) -> Distinct:
    """Number the different values of `cells`, in the order of their first row; of dates and times, as ISO 8601."""
    encoded = cells.cast(pa.string()) if pa.types.is_null(cells.type) or is_moment(cells) else cells
    encoded = encoded.dictionary_encode().unify_dictionaries()
    values = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    parts = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    codes = np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64)
    for code, value in enumerate(values):
        if (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value):
            codes[codes == code] = -1
    counts = np.bincount(codes[codes >= 0], minlength=len(values)).astype(np.int64)
    return Distinct(values, codes, counts)


def without(cells: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """`cells` without those that are one of `missing`: a text as it is written, a number of the same value."""
    if is_text(cells):
        unwanted = pa.array(missing, pa.string()).cast(cells.type)
    elif pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False) if pa.types.is_floating(cells.type) else cells
        numbers = [float(text) for text in missing if _NUMBER.fullmatch(text)]
        whole = pa.types.is_integer(cells.type)
        unwanted = pa.array([int(n) if whole else n for n in numbers if not whole or n.is_integer()], cells.type)
    else:
        return cells
    return pc.if_else(pc.is_in(cells, unwanted), pa.scalar(None, cells.type), cells) if len(unwanted) else cells


def is_empty(cells: pa.ChunkedArray) -> bool:
    """Whether no cell has a value."""
    return bool(cells.null_count == len(cells))


def first_missing(values: npt.NDArray[Any]) -> int | None:
    """The row, from 1, of the first NaN in numbers or -1 in codes; None when every row has a value."""
    gone = np.isnan(values) if values.dtype.kind == "f" else values < 0
    return int(gone.argmax()) + 1 if gone.any() else None


def number_column(cells: pa.ChunkedArray) -> Values | None:
    """float64 [rows], NaN for no value; None when a cell is no number. An infinity stays one."""
    if not is_text(cells):
        return _to_numpy(cells) if not (pa.types.is_boolean(cells.type) or is_moment(cells)) else None
    try:
        return _to_numpy(cells.cast(pa.float64()))
    except pa.ArrowInvalid:
        pass
    found = distinct(cells)
    if not all(_NUMBER.fullmatch(found.values[code].strip()) for code in np.flatnonzero(found.counts)):
        return None
    table = [float(value) if n else np.nan for value, n in zip(found.values, found.counts, strict=True)]
    return np.array([*table, np.nan])[found.codes]


def _to_numpy(cells: pa.ChunkedArray) -> Values:
    if not pa.types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False)
    values = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in cells.chunks] or [np.empty(0)])
    return values.astype(np.float64, copy=False)


def check_numbers(name: str, cells: pa.ChunkedArray, values: Values) -> None:
    """Refuse what float32 or float64 would change beyond rounding. Raises `DataError` with the column and row."""
    beyond = np.abs(values) > _LARGEST  # NaN is not
    if beyond.any():
        row = int(beyond.argmax())
        what = (
            "is infinite" if _cell(cells, row).strip().lstrip("+-").lower() in ("inf", "infinity") else "is too large"
        )
        raise DataError(
            f"column {name!r}: row {row + 1} {what}, {_cell(cells, row)!r}: a float32 holds up to 3.4e38; if it means "
            f"no value, --missing {listed(_cell(cells, row))}"
        )
    large = np.flatnonzero(np.abs(values) >= _EXACT)
    if pa.types.is_floating(cells.type):
        return
    for row, cell in zip(large.tolist(), cells.take(pa.array(large)).to_pylist(), strict=True):
        text = str(cell).strip()
        if _INTEGER.fullmatch(text) and abs(int(text)) > _EXACT:
            raise DataError(
                f"column {name!r}: row {row + 1} holds {text}, a whole number past 2^53 that would be rounded: "
                f"--drop {listed(name)}, or --categorical {listed(name)} if it is a name"
            )


def _cell(cells: pa.ChunkedArray, row: int) -> str:
    cell = cells[row]
    return str((cell.cast(pa.string()) if is_moment(cells) else cell).as_py())


def listed(text: str) -> str:
    """Write a text as one of a flag's list, for a shell: a comma is quoted as in a CSV, and both as the shell needs."""
    return shlex.quote('"' + text.replace('"', '""') + '"' if "," in text or text.startswith('"') else text)


def numeric(name: str, cells: pa.ChunkedArray) -> Values:
    """float64 [rows] of a column that is or has to be numbers, NaN for no value. Raises `DataError`."""
    values = number_column(cells)
    if values is None:
        raise _mixed(name, "is to be numeric", distinct(_as_text(cells)))
    check_numbers(name, cells, values)
    return values


def _as_text(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return cells if is_text(cells) else cells.cast(pa.string())


def _numbers_in(found: Distinct) -> npt.NDArray[np.bool_]:
    return np.array([bool(_NUMBER.fullmatch(str(value).strip())) for value in found.values], bool)


def _not_numbers(found: Distinct) -> tuple[str, str]:
    """Which cells are no number, in words, and the first of them."""
    number = _numbers_in(found)
    row = int((~np.append(number, True))[found.codes].argmax())
    text = str(found.values[found.codes[row]])
    wrong = f"{found.counts[~number].sum():,} of {found.present:,} cells are no number, the first in row {row + 1}"
    return f"{wrong}: {text[:40]!r}", text


def nearly_numeric(found: Distinct) -> str | None:
    """Which cells are no number where at least half are, or where all others say that there is no value, as NA does.

    None for numbers, and for texts. A spelled `nan` or `inf` proves nothing either way.
    """
    number = _numbers_in(found)
    written = number & np.array([any(letter.isdigit() for letter in str(value)) for value in found.values], bool)
    others = {str(value).strip().lower() for value, n in zip(found.values, found.counts * ~number, strict=True) if n}
    numbers = int(found.counts[written].sum())
    mixed = others and (numbers * 2 >= found.present or (numbers and others <= _NO_VALUE))
    return _not_numbers(found)[0] if mixed else None


def _mixed(name: str, what: str, found: Distinct) -> DataError:
    wrong, text = _not_numbers(found)
    return DataError(
        f"column {name!r} {what}, but {wrong}; --missing {listed(text)}, --categorical {listed(name)} "
        f"or --drop {listed(name)}"
    )


def boolean(name: str, cells: pa.ChunkedArray) -> Values:
    """0 or 1, NaN for no value, of a column declared boolean: true, false, 1 or 0. Raises `DataError`."""
    found = distinct(cells)
    truths = [_TRUTH_DECLARED.get(str(value).strip().lower(), np.inf) for value in found.values]
    values = np.array([*truths, np.nan])[found.codes]
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise DataError(
            f"column {name!r} is to be boolean, but row {row + 1} is {_cell(cells, row)[:40]!r}: "
            "expected true, false, 1 or 0"
        )
    return values


def infer(name: str, cells: pa.ChunkedArray, *, typed: bool) -> tuple[Kind, Values | Distinct]:
    """The kind of a column, and its numbers or its different values. Raises `DataError` for what is neither.

    typed: the source says what its cells are, so that a text is a text. Otherwise a column of which at least half of
    the cells are numbers, and not all, is a mistake to be named, not a category.
    """
    if is_moment(cells):
        raise DataError(
            f"column {name!r} is a date or time, which is no feature: make a number of it, --time {shlex.quote(name)} "
            f"to split by it, or --drop {listed(name)}"
        )
    if pa.types.is_boolean(cells.type):
        return "boolean", boolean(name, cells)
    values = number_column(cells) if not (typed and is_text(cells)) else None
    if values is not None:
        check_numbers(name, cells, values)
        return "numeric", values
    found = distinct(cells)
    used = [value for value, n in zip(found.values, found.counts, strict=True) if n]
    if not typed and used and all(value.strip().lower() in _TRUTH for value in used):
        return "boolean", boolean(name, cells)
    if not typed and nearly_numeric(found):
        raise _mixed(name, "looks numeric", found)
    return "categorical", found


def categories(found: Distinct) -> tuple[tuple[Category, ...], int]:
    """The categories of a column, sorted, and how many rows have one that is not among them.

    Whole numbers where every cell is one, in its plain form; otherwise what the cells are. The `MAX_CATEGORIES` most
    frequent are kept.
    """
    used = [(_simple(value), int(n)) for value, n in zip(found.values, found.counts, strict=True) if n]
    if all(isinstance(value, int) or (isinstance(value, str) and _PLAIN_INTEGER.fullmatch(value)) for value, _ in used):
        used = [(int(value), n) for value, n in used]
    elif any(isinstance(value, str) for value, _ in used):
        used = [(str(value), n) for value, n in used]
    kept = sorted(used, key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES]
    return tuple(sorted(value for value, _ in kept)), sum(n for _, n in used) - sum(n for _, n in kept)


def _simple(value: Any) -> Category:
    """A category as JSON has it: 2.0 is the whole number 2, and a boolean that was declared a category a text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value  # type: ignore[no-any-return]


def index(found: Distinct, known: Sequence[Category]) -> Values:
    """Each row's index in `known`, len(known) for a category that is not there, NaN for no value."""
    places = {str(category): place for place, category in enumerate(known)}
    table = [places.get(str(_simple(value)), len(known)) for value in found.values]
    return np.array([*table, np.nan], np.float64)[found.codes]


def has_codes(cells: pa.ChunkedArray) -> bool:
    """Whether a text is a number by its digits alone: 007 and 7 are two codes."""
    return is_text(cells) and bool(pc.any(pc.match_substring_regex(cells, r"^\s*[+-]?0\d")).as_py())


def are_dates(found: Distinct) -> bool:
    """Whether every value is a text that begins like a date of ISO 8601."""
    used = [value for value, n in zip(found.values, found.counts, strict=True) if n]
    return bool(used) and all(isinstance(value, str) and _DATE.match(value) for value in used)


def truths(found: Distinct) -> list[bool] | None:
    """`found.values` as booleans, None when one is not."""
    texts = [str(value).strip().lower() for value in found.values]
    return [text == "true" for text in texts] if all(text in _TRUTH for text in texts) else None


def whole(value: Any) -> int | None:
    """The whole number that `value` is, exactly, or None."""
    text = str(value).strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() else None
