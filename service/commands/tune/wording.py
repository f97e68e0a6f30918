"""Numbers as text: durations and counts."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Write a time with three digits and a fitting unit: 4.21 µs, 13.7 ms, 150 ms, 1.50 s."""
    unit, size = ("µs", 1e-6) if seconds < 999.5e-6 else ("ms", 1e-3) if seconds < 999.5e-3 else ("s", 1.0)
    value = seconds / size
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def plural(count: int, noun: str) -> str:
    """Write a number and its noun: 1 thread, 1,024 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"
