"""Brent's method: finds the minimum of a function of one variable in an interval.

This module makes the same steps as `scipy.optimize.minimize_scalar(method="bounded")`, bit for bit. A test compares the
module with SciPy. The module does not import scipy.optimize, because this import takes 0.3 s, which is a tenth of a
whole training on a small table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_GOLDEN = 0.5 * (3.0 - math.sqrt(5.0))
_ROOT_EPS = math.sqrt(2.2e-16)
_TOLERANCE = 1e-5
_MOST_CALLS = 500


def minimise(cost: Callable[[float], float], low: float, high: float) -> float:
    """Return the point between `low` and `high` where `cost` is lowest, to about 1e-5.

    `cost` must have only one minimum in this interval. Source: Brent, Algorithms for Minimization without Derivatives,
    1973, chapter 5. The variables have the same meanings as in `fmin` of Forsythe, Malcolm and Moler, 1977.
    """
    # best, second, third: the three points with the lowest costs so far. of_best, of_second, of_third: the costs of
    # `best`, `second` and `third`.
    best = second = third = low + _GOLDEN * (high - low)
    of_best = of_second = of_third = cost(best)
    step = previous = 0.0
    for _ in range(_MOST_CALLS - 1):
        middle = 0.5 * (low + high)
        tolerance = _ROOT_EPS * abs(best) + _TOLERANCE / 3.0
        if abs(best - middle) <= 2.0 * tolerance - 0.5 * (high - low):
            break
        parabolic = None
        if abs(previous) > tolerance:
            parabolic = _parabolic_step((best, of_best), (second, of_second), (third, of_third), previous, low, high)
            previous = step
        if parabolic is None:
            previous = (low if best >= middle else high) - best
            step = _GOLDEN * previous
        else:
            step = parabolic
            if best + step - low < 2.0 * tolerance or high - (best + step) < 2.0 * tolerance:
                step = math.copysign(tolerance, middle - best)
        point = best + math.copysign(max(abs(step), tolerance), step)
        of_point = cost(point)
        if of_point <= of_best:
            low, high = (best, high) if point >= best else (low, best)
            third, of_third, second, of_second, best, of_best = second, of_second, best, of_best, point, of_point
            continue
        low, high = (point, high) if point < best else (low, point)
        if of_point <= of_second or second == best:
            third, of_third, second, of_second = second, of_second, point, of_point
        elif of_point <= of_third or third in (best, second):
            third, of_third = point, of_point
    return best


_Point = tuple[float, float]


def _parabolic_step(
    best: _Point, second: _Point, third: _Point, previous: float, low: float, high: float
) -> float | None:
    """Return the step from `best` to the minimum of the parabola through the three points. A point is a pair of a
    position and a cost.

    Return None if this step is at least half as long as the step `previous`, or if the minimum is outside the interval
    from `low` to `high`.
    """
    r = (best[0] - second[0]) * (best[1] - third[1])
    q = (best[0] - third[0]) * (best[1] - second[1])
    p = (best[0] - third[0]) * q - (best[0] - second[0]) * r
    q = 2.0 * (q - r)
    p = -p if q > 0.0 else p
    q = abs(q)
    if abs(p) < abs(0.5 * q * previous) and q * (low - best[0]) < p < q * (high - best[0]):
        return (p + 0.0) / q  # the addition of 0.0 turns -0.0 into 0.0
    return None
