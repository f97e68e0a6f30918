"""Notes on columns of texts that look like numbers or dates.

Other modules decide whether the texts of a column are categories, numbers or dates. This module decides nothing and
only writes notes for the user.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from foldserve.training.table.cells import Distinct, is_text
from foldserve.training.table.numbers import all_plain, almost_numeric, first_text, has_leading_zeros
from foldserve.training.table.schema import Kind
from foldserve.training.text import flag_value

_DATE = re.compile(
    r"\s*(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}([-/.])\d{1,2}\1\d{4}|\d{1,2}/\d{1,2}/\d\d)(?:[T ,]|\s*$)", re.ASCII
)
# Matches a time that is not a whole hour. A time zone at the end of the text is ignored.
_PART_OF_AN_HOUR = r"[T ]\d\d:(?:[0-5][1-9]|[1-5]0|00:(?:[0-5][1-9]|[1-5]0|00[.]\d*[1-9]))"


def read_note(name: str, kind: Kind) -> str | None:
    """Return a note if a column is read as numbers or times, although the source says that its cells are texts."""
    if kind not in ("numeric", "time"):
        return None
    read = "all numbers and are read as numbers" if kind == "numeric" else "all dates and are read as times"
    return f"column {name!r} has texts, which are {read}; use --categorical {flag_value(name)} if they are names"


def category_note(name: str, cells: pa.ChunkedArray, found: Distinct, *, typed: bool) -> str | None:
    """Return a note if the texts of a categorical column look like numbers or dates."""
    if not is_text(cells) or not found.used:
        return None
    if all(_DATE.match(value) for value in found.used):
        return (
            f"column {name!r} contains dates, but a text is only read as a date if it is written as 2024-12-31; write "
            f"all of them so, or use --drop {flag_value(name)}"
        )
    if not typed:
        return None
    numeric = f"--numeric {flag_value(name)}"
    if all_plain(found):
        if has_leading_zeros(cells):
            return None
        return f"column {name!r} has texts, although all of them are numbers; use {numeric} to read them as numbers"
    if description := almost_numeric(found):
        missing = f"--missing {flag_value(text)} and " if (text := first_text(found)) else ""
        return f"column {name!r} looks numeric, but {description}; use {missing}{numeric} to read it as numbers"
    return None


def has_minutes(cells: pa.ChunkedArray) -> bool:
    """Whether the column has a time that is not a whole hour."""
    if is_text(cells):
        found = pc.any(pc.match_substring_regex(cells, _PART_OF_AN_HOUR), min_count=0)
    elif pa.types.is_timestamp(cells.type):
        found = pc.any(pc.not_equal(cells, pc.floor_temporal(cells, unit="hour")), min_count=0)
    else:
        return False
    return bool(found.as_py())
