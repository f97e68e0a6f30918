"""The axes of charts: the range of values, the position of a value on the axis, and the ticks with their labels. The
module does not draw anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.figures import format_value

Values = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_TICKS = 6
# A power of ten whose exponent is in this range is written as an ordinary number. A larger or smaller power of ten is
# written with an exponent, such as 10⁻³.
_PLAIN_POWERS = range(-2, 5)


@dataclass(frozen=True)
class Axis:
    """An axis of a chart: an interval of values, with ticks.

    ticks: pairs of a value and its label. logarithmic: whether the axis is logarithmic. All values on a logarithmic
    axis are positive.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def place(self, values: Values) -> npt.NDArray[np.float64]:
        """Return the position of each value on the axis: 0 for `low`, 1 for `high`, and a number between 0 and 1 for a
        value between them.

        NaN stays NaN. On a logarithmic axis, a value that is not positive becomes NaN.
        """
        numbers, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.logarithmic:
            numbers = np.log(np.where(numbers > 0, numbers, np.nan))
            low, high = math.log(low), math.log(high)
        return (numbers - low) / (high - low)


def linear_axis(
    label: str,
    values: Iterable[Any],
    *,
    low: float | None = None,
    high: float | None = None,
    integers: bool = False,
    most_ticks: int = _MOST_TICKS,
) -> Axis:
    """Return a linear axis for the numbers in the arrays `values`.

    low, high: the ends of the axis. If an end is None, the function chooses this end and leaves a margin between it and
    the values. integers: whether all ticks are at whole numbers. Numbers that are not finite are ignored.
    """
    shown = _finite(values)
    first, last = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    first, last = first if low is None else low, last if high is None else high
    if last <= first:
        half = abs(first) / 2 or 0.5
        first, last = first if low is not None else first - half, last if high is not None else last + half
        last = last if last > first else first + 1
    margin = 0.04 * (last - first)
    first, last = first if low is not None else first - margin, last if high is not None else last + margin
    step = _round_step((last - first) / (most_ticks - 1))
    step = max(step, 1.0) if integers else step
    close = 1e-9 * (last - first) / step  # the division rounds
    places = [n * step for n in range(math.ceil(first / step - close), math.floor(last / step + close) + 1)]
    return Axis(label, first, last, tuple((place, _label(place, step)) for place in places))


def log_axis(label: str, values: Iterable[Any], *, least_decades: float = 1.0) -> Axis:
    """Return a logarithmic axis for the positive numbers in `values`, with ticks at powers of ten."""
    shown = _finite(values)
    shown = shown[shown > 0]
    low, high = (math.log10(shown.min()), math.log10(shown.max())) if len(shown) else (0.0, 1.0)
    half = max(0.54 * (high - low), least_decades / 2)
    low, high = (low + high) / 2 - half, (low + high) / 2 + half
    powers = range(math.ceil(low), math.floor(high) + 1)
    stride = max(1, math.ceil(len(powers) / _MOST_TICKS))
    ticks = [(10.0**power, _power_of_ten(power)) for power in powers if power % stride == 0]
    if len(ticks) < 2:  # too few powers of ten: add ticks at 2 and 5 times the powers
        steps = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
        ticks = [(step, format_value(step)) for step in steps if low <= math.log10(step) <= high]
    return Axis(label, 10**low, 10**high, tuple(ticks), logarithmic=True)


def powers_axis(label: str, values: Iterable[int]) -> Axis:
    """Return a logarithmic axis with one tick for each of `values`, such as the batch sizes 2, 4, 8."""
    ticks = sorted(set(values)) or [1]
    low, high = ticks[0] / 1.3, ticks[-1] * 1.3
    return Axis(label, low, high, tuple((tick, format_value(tick)) for tick in ticks), logarithmic=True)


def category_axis(label: str, names: Iterable[str]) -> Axis:
    """Return an axis with the names as the labels of the ticks 0, 1, 2, ..."""
    ticks = tuple((float(place), name) for place, name in enumerate(names))
    return Axis(label, -0.6, max(len(ticks), 1) - 0.4, ticks)


def _finite(values: Iterable[Any]) -> npt.NDArray[np.float64]:
    parts = [np.asarray(part, np.float64).ravel() for part in values]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return joined[np.isfinite(joined)]


def _round_step(step: float) -> float:
    """Round `step` up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def _label(value: float, step: float) -> str:
    """Write the value of a tick. step: the distance between two ticks, which decides the number of digits."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(step) < 1e6:
        digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(step) + 1e-9) + 1
        return f"{value:.{max(3, digits)}g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _power_of_ten(power: int) -> str:
    return format_value(10.0**power) if power in _PLAIN_POWERS else "10" + str(power).translate(_SUPERSCRIPTS)
