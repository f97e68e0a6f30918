"""The spelling of names, numbers and lists on pages and terminals. The module needs only the standard library."""

from __future__ import annotations

import math
import shlex

from foldserve.service.text import count_of, join_some, printable

__all__ = [
    "MAX_NAME",
    "count_of",
    "flag_value",
    "format_count",
    "format_difference",
    "format_figure",
    "format_name",
    "format_percent",
    "format_value",
    "join_some",
    "printable",
]

MAX_NAME = 60
_UNDEFINED = "\N{EN DASH}"
# An absolute value below this is written as 0. Such a value is only a rounding error, for example the R2 of a constant
# answer.
_ZERO = 1e-12
_SMALL, _LARGE, _WHOLE = 1e-2, 1e3, 1e7


def format_name(name: object) -> str:
    """Write the name of a column, class or category, printable and at most `MAX_NAME` characters long."""
    text = printable(str(name))
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def format_figure(value: float) -> str:
    """Write a metric with four decimals. A small or a large number has four digits, and NaN becomes a dash."""
    if math.isnan(value):
        return _UNDEFINED
    return f"{value:.4f}" if _SMALL <= abs(value) < _LARGE or abs(value) < _ZERO else f"{value:.4g}"


def format_difference(value: float) -> str:
    """Write a difference or a tolerance with two digits: 3.2e-07."""
    return f"{value:.2g}"


def format_value(value: float) -> str:
    """Write a value of the table. A whole number has no decimals, and any other number has four digits."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < _WHOLE else f"{value:.4g}"


def format_percent(share: float) -> str:
    """Write a share, from 0 to 1, as a percentage with one decimal. NaN becomes a dash."""
    return _UNDEFINED if math.isnan(share) else f"{share:.1%}"


def flag_value(text: str) -> str:
    """Quote `text` as one value of a flag that takes a list.

    Commas are quoted as in a CSV, and then the value is quoted for a shell.
    """
    return shlex.quote('"' + text.replace('"', '""') + '"' if "," in text or text.startswith('"') else text)


def format_count(count: int) -> str:
    """Write a count with commas: 1,000."""
    return f"{count:,}"
