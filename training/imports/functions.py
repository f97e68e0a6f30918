"""The functions that an imported network applies to each number: their float64 arithmetic and their ONNX nodes.

To add a function, add an entry to `FUNCTIONS`. The module does not depend on a file format or a framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]

# An `Operator` maps the parameters of a function to the name of an ONNX operator and its attributes.
Operator = Callable[[Mapping[str, float]], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Function:
    """One function.

    compute: the Python function, which maps float64 numbers to float64 numbers. parameters: the names of the parameters
    of the function.

    operator: returns the ONNX operator and its attributes; None if `write.py` has its own rule for the function.
    """

    parameters: tuple[str, ...]
    compute: Callable[..., Array]
    operator: Operator | None


def _same(operator: str) -> Operator:
    """Return an `Operator` whose attributes have the same names as the parameters.

    The function converts the values to floats, because onnx would write an integer as another type.
    """
    return lambda parameters: (operator, {name: float(value) for name, value in parameters.items()})


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    result: Array = np.clip(alpha * x + beta, 0, 1)
    return result


def _gelu(x: Array) -> Array:
    normal: Array = special.ndtr(x)
    return x * normal


def _gelu_tanh(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return result


def _softplus(x: Array) -> Array:
    result: Array = np.logaddexp(0, x)
    return result


# The formulas follow the definitions of https://onnx.ai/onnx/operators/.
FUNCTIONS: dict[str, Function] = {
    "relu": Function((), lambda x: np.maximum(x, 0), _same("Relu")),
    "leaky_relu": Function(("alpha",), lambda x, alpha: np.where(x < 0, alpha * x, x), _same("LeakyRelu")),
    "thresholded_relu": Function(("alpha",), lambda x, alpha: np.where(x > alpha, x, 0), _same("ThresholdedRelu")),
    "elu": Function(("alpha",), _elu, _same("Elu")),
    "celu": Function(
        ("alpha",), lambda x, alpha: np.maximum(x, 0) + _elu(np.minimum(x, 0) / alpha, alpha), _same("Celu")
    ),
    "selu": Function(("alpha", "gamma"), lambda x, alpha, gamma: gamma * _elu(x, alpha), _same("Selu")),
    "gelu": Function((), _gelu, _same("Gelu")),
    "gelu_tanh": Function((), _gelu_tanh, lambda _: ("Gelu", {"approximate": "tanh"})),
    "silu": Function((), lambda x: x * special.expit(x), None),
    "mish": Function((), lambda x: x * np.tanh(_softplus(x)), _same("Mish")),
    "sigmoid": Function((), special.expit, _same("Sigmoid")),
    "hard_sigmoid": Function(("alpha", "beta"), _hard_sigmoid, _same("HardSigmoid")),
    "hard_swish": Function((), lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5), _same("HardSwish")),
    "tanh": Function((), np.tanh, _same("Tanh")),
    "softplus": Function((), _softplus, _same("Softplus")),
    "softsign": Function((), lambda x: x / (1 + abs(x)), _same("Softsign")),
    "erf": Function((), special.erf, _same("Erf")),
    "exp": Function((), np.exp, _same("Exp")),
    "log": Function((), np.log, _same("Log")),
    "sqrt": Function((), np.sqrt, _same("Sqrt")),
    "reciprocal": Function((), np.reciprocal, _same("Reciprocal")),
    "abs": Function((), np.abs, _same("Abs")),
    "power": Function(("exponent",), lambda x, exponent: np.power(x, exponent), None),
    # The limits of clip may be infinite.
    "clip": Function(("low", "high"), lambda x, low, high: np.clip(x, low, high), None),
}
