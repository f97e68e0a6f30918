"""Categories: the values of a categorical column, and each row's index among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from foldserve.training.table.cells import Distinct
from foldserve.training.table.numbers import MAX_EXACT_INTEGER, Values
from foldserve.training.table.schema import Category

MAX_CATEGORIES = 4_096

# An integer as Python and JSON write it: 007 is a code, not the number 7.
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d(?:[T ]|\s*$)", re.ASCII)


def choose_categories(found: Distinct) -> tuple[tuple[Category, ...], int]:
    """Return the categories of a column, sorted, and the number of rows whose value is not among them.

    The categories are integers if every cell is one in its usual form, and otherwise the values of the cells. The
    `MAX_CATEGORIES` most frequent values are kept.
    """
    used = [(_simple(value), int(n)) for value, n in zip(found.values, found.counts, strict=True) if n]
    if all(isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value)) for value, _ in used):
        used = [(int(value), n) for value, n in used]
    elif any(isinstance(value, str) for value, _ in used):
        used = [(str(value), n) for value, n in used]
    kept = sorted(used, key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES]
    return tuple(sorted(value for value, _ in kept)), sum(n for _, n in used) - sum(n for _, n in kept)


def category_indices(found: Distinct, categories: Sequence[Category]) -> Values:
    """Return each row's index in `categories`; len(categories) for an unknown category, NaN for a missing value."""
    indices = {str(category): index for index, category in enumerate(categories)}
    index_of = [indices.get(str(_simple(value)), len(categories)) for value in found.values]
    return np.array([*index_of, np.nan], np.float64)[found.codes]


def _simple(value: Any) -> Category:
    """Return a value as JSON has it: 2.0 is the integer 2, and a boolean is a text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INTEGER:
        return int(value)
    return value  # type: ignore[no-any-return]


def are_dates(found: Distinct) -> bool:
    """Whether every value is a text that begins with a date of ISO 8601."""
    return bool(found.used) and all(isinstance(value, str) and _DATE.match(value) for value in found.used)
