"""The activations as curves: for the name of each ONNX operator, the values and the slopes in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Function = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Curve:
    """One activation. is_piecewise_linear: whether value(x) == slope(x) * x for every x."""

    value: Function
    slope: Function
    is_piecewise_linear: bool = False


def _relu(_: Mapping[str, Any]) -> Curve:
    return Curve(lambda x: np.maximum(x, 0.0), lambda x: (x > 0).astype(np.float64), is_piecewise_linear=True)


def _leaky_relu(attributes: Mapping[str, Any]) -> Curve:
    alpha = float(attributes.get("alpha", 0.01))
    return Curve(
        lambda x: np.where(x > 0, x, alpha * x), lambda x: np.where(x > 0, 1.0, alpha), is_piecewise_linear=True
    )


def _identity(_: Mapping[str, Any]) -> Curve:
    return Curve(lambda x: x, np.ones_like, is_piecewise_linear=True)


def _sigmoid_of(x: Floats) -> Floats:
    result: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))
    return result


def _sigmoid(_: Mapping[str, Any]) -> Curve:
    def slope(x: Floats) -> Floats:
        y = _sigmoid_of(x)
        return y * (1.0 - y)

    return Curve(_sigmoid_of, slope)


def _tanh(_: Mapping[str, Any]) -> Curve:
    return Curve(np.tanh, lambda x: 1.0 - np.tanh(x) ** 2)


# --- gelu -------------------------------------------------------------------------------------------------------------

# The values of the normal distribution function at the points of a grid. Left of the grid, the function is below 1e-15;
# right of the grid, it is above 1 - 1e-15. NumPy has no normal distribution function.
_END, _CELLS = 8.0, 4096
_WIDTH = 2 * _END / _CELLS
_GRID = np.linspace(-_END, _END, _CELLS + 1)
_AT_GRID = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in _GRID.tolist()])


def _density(x: Floats) -> Floats:
    result: Floats = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return result


_SLOPE_AT_GRID = _density(_GRID)


def normal_cdf(x: Floats) -> Floats:
    """Compute the normal distribution function to an accuracy of 1e-11, by cubic Hermite interpolation on the grid."""
    clipped = np.clip(x, -_END, _END)
    cell = np.minimum(((clipped + _END) / _WIDTH).astype(np.intp), _CELLS - 1)
    t = (clipped - _GRID[cell]) / _WIDTH
    low, high = _AT_GRID[cell], _AT_GRID[cell + 1]
    low_slope, high_slope = _SLOPE_AT_GRID[cell] * _WIDTH, _SLOPE_AT_GRID[cell + 1] * _WIDTH
    result: Floats = low + t * (
        low_slope
        + t * (3 * (high - low) - 2 * low_slope - high_slope + t * (2 * (low - high) + low_slope + high_slope))
    )
    return result


def _gelu(attributes: Mapping[str, Any]) -> Curve:
    if attributes.get("approximate", b"none") == b"tanh":
        c, cube = math.sqrt(2 / math.pi), 0.044715

        def bend(x: Floats) -> Floats:
            result: Floats = np.tanh(c * (x + cube * x**3))
            return result

        return Curve(
            lambda x: 0.5 * x * (1 + bend(x)),
            lambda x: 0.5 * (1 + bend(x)) + 0.5 * x * (1 - bend(x) ** 2) * c * (1 + 3 * cube * x * x),
        )
    return Curve(lambda x: x * normal_cdf(x), lambda x: normal_cdf(x) + x * _density(x))


CURVES: dict[str, Callable[[Mapping[str, Any]], Curve]] = {
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "Identity": _identity,
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "Gelu": _gelu,
}
