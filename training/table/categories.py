"""Categories: chooses the categories of a column, and encodes each row as the index of its category."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from foldserve.training.table.cells import Distinct
from foldserve.training.table.numbers import MAX_EXACT_INTEGER, Values
from foldserve.training.table.schema import Category

MAX_CATEGORIES = 4_096

# A text that Python and JSON read as an integer. This pattern does not match 007, so 007 stays a text.
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)


def choose_categories(found: Distinct) -> tuple[tuple[Category, ...], int]:
    """Return the sorted categories of a column, and the number of rows whose value is not one of the categories.

    The categories are integers if every cell is an integer or the text of an integer; in every other case, they are the
    values of the cells. Only the `MAX_CATEGORIES` most frequent values are kept.
    """
    used = [(_simple(value), int(n)) for value, n in zip(found.values, found.counts, strict=True) if n]
    if all(isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value)) for value, _ in used):
        used = [(int(value), n) for value, n in used]
    elif any(isinstance(value, str) for value, _ in used):
        used = [(str(value), n) for value, n in used]
    kept = sorted(used, key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES]
    return tuple(sorted(value for value, _ in kept)), sum(n for _, n in used) - sum(n for _, n in kept)


def category_indices(found: Distinct, categories: Sequence[Category]) -> Values:
    """Return the index of each row's value in `categories`. An unknown value gets len(categories), and a missing value
    gets NaN.
    """
    indices = {str(category): index for index, category in enumerate(categories)}
    index_of = [indices.get(str(_simple(value)), len(categories)) for value in found.values]
    return np.array([*index_of, np.nan], np.float64)[found.codes]


def _simple(value: Any) -> Category:
    """Convert a value to a category: 2.0 becomes the integer 2, and a boolean becomes a text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INTEGER:
        return int(value)
    return value  # type: ignore[no-any-return]
