"""Formats the numbers on pages and terminals by one rule. The module needs only the standard library.

A measured figure has four significant digits, and a difference has two. All digits before the decimal point are
written, in groups of three. A number that is very small or very large is written with an exponent. A share is written
as a percentage.
"""

from __future__ import annotations

import math

_UNDEFINED = "\N{EN DASH}"
# A value is written as 0 if its absolute value is below this limit. A value this small is only a rounding error, for
# example in the R2 of a constant answer.
_ZERO = 1e-12
# A number outside this interval is written with an exponent.
_SMALL, _LARGE = 1e-4, 1e12
_MOST_DECIMALS = 6


def format_figure(value: float) -> str:
    """Format a measured figure with four digits: 0.9721, 12.30, 1,235, 3.200e-06. NaN is written as a dash."""
    return _digits(value, 4)


def format_value(value: float) -> str:
    """Format a number for a table.

    A whole number has no decimals, and other numbers have up to four digits: 32.1, 1,500.
    """
    if math.isfinite(value) and value == round(value) and abs(value) < _LARGE:
        return f"{value:,.0f}"
    mantissa, exponent, power = _digits(value, 4).partition("e")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + exponent + power


def format_difference(value: float) -> str:
    """Format a difference, a tolerance or a change with two digits: 3.2e-07, 0.012."""
    return _digits(value, 2)


def format_percent(share: float) -> str:
    """Format a share, from 0 to 1, as a percentage with one decimal: 97.2%. NaN becomes a dash.

    A share gets more decimals if one decimal would turn it into 0% or 100%: 99.98%.
    """
    if math.isnan(share):
        return _UNDEFINED
    for decimals in range(1, _MOST_DECIMALS):
        text = f"{share:.{decimals}%}"
        if share in (0, 1) or float(text[:-1]) not in (0, 100):
            return text
    return f"{share:.1%}"


def format_change(before: float, after: float) -> str:
    """Format the relative change of a positive number: -50%, +3.2%, no change."""
    change = after / before - 1
    text = f"{change:+.{0 if abs(change) >= 0.0995 else 1}%}"
    return "no change" if float(text[:-1]) == 0 else text


def format_duration(seconds: float) -> str:
    """Format a duration with three digits and a suitable unit: 4.21 µs, 13.7 ms, 150 ms, 1.50 s."""
    if math.isnan(seconds):
        return _UNDEFINED
    unit, size = ("µs", 1e-6) if seconds < 999.5e-6 else ("ms", 1e-3) if seconds < 999.5e-3 else ("s", 1.0)
    value = seconds / size
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def format_count(count: int) -> str:
    """Format a count with commas: 1,000."""
    return f"{count:,}"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: `1 row`, `2 rows`, `1,000 classes`."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _digits(value: float, digits: int) -> str:
    """Format `value` with this number of significant digits, and with all digits before the decimal point."""
    if math.isnan(value):
        return _UNDEFINED
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    if abs(value) < _ZERO:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    if not _SMALL <= abs(float(rounded)) < _LARGE:
        return rounded
    power = int(rounded.partition("e")[2])
    return f"{value:,.{max(digits - 1 - power, 0)}f}"
