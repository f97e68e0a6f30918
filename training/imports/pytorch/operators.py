"""Maps the operators of ATen to the intermediate form.

To add an operator, add an entry to `_FUNCTIONS` or `_OPERATORS`. The module does not depend on a file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import INPUT, Builder, refuse
from foldserve.training.imports.layers import (
    Activation,
    Add,
    Affine,
    Array,
    Concat,
    Dense,
    Layer,
    Multiply,
    PRelu,
    Select,
    Softmax,
    batch_norm,
)
from foldserve.training.imports.pytorch.program import Call, Program, Ref

# The types to which a softmax may convert its input: none, and the numbers of float32 and float64 in
# torch._export.serde.schema.ScalarType.
_WIDE = (None, 7, 8)
_EVAL = "call model.eval() before you export it"


@dataclass
class Mapper:
    """Adds the calls of a program to a graph.

    names: for each tensor of the program, the name of its value in the graph.
    """

    program: Program
    builder: Builder
    constants: dict[str, npt.NDArray[np.float64]]
    names: dict[str, str] = field(default_factory=dict)

    def run(self) -> str:
        """Map every call, and return the name of the output value.

        Raises `ModelImportError` for an unknown operator.
        """
        self.names[self.program.input] = INPUT
        for call in self.program.calls:
            kind = call.operator.partition(".")[0].removesuffix("_")
            if kind == "sym_size":
                continue
            try:
                self._map(call, kind)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise refuse(call.output, kind, f"its arguments are not supported ({error})") from error
        if self.program.output not in self.names:
            raise ModelImportError("the output of the model does not depend on its input")
        return self.names[self.program.output]

    def _map(self, call: Call, kind: str) -> None:
        if kind in OPERATORS:
            _refuse_arguments(call, kind)
        if kind in _FUNCTIONS:
            source = self.value(call, next(iter(call.arguments)))
            self.add(call, kind, _FUNCTIONS[kind](call.arguments), source)
        elif kind in _OPERATORS:
            _OPERATORS[kind](self, call, kind)
        else:
            known = ", ".join(sorted({*_FUNCTIONS, *_OPERATORS}))
            raise refuse(call.output, f"aten.{kind}", "this operator is not supported", f"supported are {known}")

    def value(self, call: Call, argument: str) -> str:
        """Return the name of the value that an argument refers to."""
        reference = call.arguments[argument]
        if not isinstance(reference, Ref) or reference.name not in self.names:
            raise ValueError(f"{argument} does not depend on the input of the model")
        return self.names[reference.name]

    def constant(self, call: Call, argument: str) -> Array | None:
        """Return an argument as an array, if the argument does not depend on the input.

        Return None if the argument depends on the input or is absent.
        """
        found = call.arguments.get(argument)
        if isinstance(found, Ref):
            return self.constants.get(found.name)
        return None if found is None else np.asarray(found, np.float64)

    def add(self, call: Call, kind: str, layer: Layer, *values: str) -> None:
        """Add the layer that computes the result of a call."""
        self.names[call.output] = self.builder.add(call.output, kind, layer, *values)

    def require_row(self, call: Call, argument: str) -> None:
        """Refuse a tensor that does not have the shape [rows, columns]."""
        reference = call.arguments[argument]
        shape = self.program.shapes.get(reference.name) if isinstance(reference, Ref) else None
        if shape is not None and len(shape) != 1:
            raise ValueError("its input has more than two axes: flatten it first")


def _refuse_arguments(call: Call, kind: str) -> None:
    """Raise `ValueError` for an argument that no reader of the operator knows. None is the default of an argument."""
    known = _ARGUMENTS.get(kind, ("self",))
    unknown = [name for name, value in call.arguments.items() if value is not None and name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]}={call.arguments[unknown[0]]!r} is unknown")


def _linear(mapper: Mapper, call: Call, kind: str) -> None:
    mapper.require_row(call, "input")
    weight, bias = mapper.constant(call, "weight"), mapper.constant(call, "bias")
    if weight is None:
        raise ValueError("its weight depends on the input")
    mapper.add(call, kind, Dense(weight, np.zeros(len(weight)) if bias is None else bias), mapper.value(call, "input"))


def _product(mapper: Mapper, call: Call, kind: str) -> None:
    """Add a matrix product with a constant, from addmm, mm or matmul."""
    first, second = ("mat1", "mat2") if kind == "addmm" else ("self", "mat2" if "mat2" in call.arguments else "other")
    mapper.require_row(call, first)
    weight = mapper.constant(call, second)
    if weight is None or weight.ndim != 2 or call.arguments.get("alpha", 1) != 1 or call.arguments.get("beta", 1) != 1:
        raise ValueError("it is no product with a constant matrix")
    bias = mapper.constant(call, "self") if kind == "addmm" else np.zeros(weight.shape[1])
    if bias is None:
        raise ValueError("its bias depends on the input")
    mapper.add(
        call, kind, Dense(weight.T.copy(), np.broadcast_to(bias, weight.shape[1]).copy()), mapper.value(call, first)
    )


def _batch_norm(mapper: Mapper, call: Call, kind: str) -> None:
    mapper.require_row(call, "input")
    mean, variance = mapper.constant(call, "running_mean"), mapper.constant(call, "running_var")
    if call.arguments.get("training") or mean is None or variance is None:
        raise refuse(call.output, kind, "it normalises with the statistics of each batch", _EVAL)
    gamma, beta = mapper.constant(call, "weight"), mapper.constant(call, "bias")
    gamma, beta = np.ones(len(mean)) if gamma is None else gamma, np.zeros(len(mean)) if beta is None else beta
    layer = batch_norm(gamma, beta, mean, variance, float(call.arguments["eps"]))
    mapper.add(call, kind, layer, mapper.value(call, "input"))


def _arithmetic(mapper: Mapper, call: Call, kind: str) -> None:
    """Add a sum, a difference, a product or a quotient of two values, or of a value and a constant."""
    alpha = float(call.arguments.get("alpha", 1))
    left, right = mapper.constant(call, "self"), mapper.constant(call, "other")
    if kind == "rsub":
        if right is None:
            raise ValueError("it subtracts one value of the rows from another")
        _affine(mapper, call, kind, "self", -alpha, right)
    elif left is None and right is None:
        first, second = mapper.value(call, "self"), mapper.value(call, "other")
        if kind == "mul":
            mapper.add(call, kind, Multiply(), first, second)
            return
        factor = {"add": alpha, "sub": -alpha}[kind]
        if factor != 1:
            columns = mapper.builder.columns[second]
            second = mapper.builder.add(call.output, kind, Affine.of(factor, 0, 0, columns), second)
        mapper.add(call, kind, Add(), first, second)
    elif right is not None:
        if kind == "div" and not right.all():
            raise ValueError("it divides by 0")
        slope = right if kind == "mul" else 1 / right if kind == "div" else 1.0
        _affine(mapper, call, kind, "self", slope, {"add": alpha * right, "sub": -alpha * right}.get(kind))
    else:
        scale: Any = {"add": alpha, "sub": -alpha, "mul": left}[kind]
        _affine(mapper, call, kind, "other", scale, None if kind == "mul" else left)


def _affine(mapper: Mapper, call: Call, kind: str, argument: str, scale: Any, term: Any) -> None:
    source = mapper.value(call, argument)
    columns = mapper.builder.columns[source]
    for part in (scale, term):
        if np.ndim(part) > 1 and np.size(part) not in (1, np.shape(part)[-1]):
            raise ValueError("its constant differs between rows")
    mapper.add(call, kind, Affine.of(scale, 0, 0 if term is None else term, columns), source)


def _same(mapper: Mapper, call: Call, kind: str) -> None:
    """Use the value of the input as the result.

    The operator changes no number: it is a dropout in eval mode, a copy, or a reshape of a row.
    """
    del kind
    source = next(iter(call.arguments))
    if call.arguments.get("train"):
        raise refuse(call.output, "dropout", "it is in training mode", _EVAL)
    name = mapper.value(call, source)
    shape = mapper.program.shapes.get(call.output)
    if shape is None or prod(shape) != mapper.builder.columns[name]:
        raise ValueError("it changes the rows")
    mapper.names[call.output] = name


def _cat(mapper: Mapper, call: Call, kind: str) -> None:
    values = [mapper.names[each.name] for each in call.arguments["tensors"]]
    if call.arguments.get("dim", 0) not in (1, -1) or len(mapper.program.shapes.get(call.output, ())) != 1:
        raise ValueError("it does not join the columns")
    mapper.add(call, kind, Concat(), *values)


def _slice(mapper: Mapper, call: Call, kind: str) -> None:
    source = mapper.value(call, "self")
    columns = mapper.builder.columns[source]
    start, end, step = (call.arguments.get(key) for key in ("start", "end", "step"))
    if call.arguments.get("dim", 0) == 0:
        if start not in (None, 0) or step not in (None, 1) or (end or 0) < 2**62:
            raise ValueError("it selects rows")
        mapper.names[call.output] = source
        return
    mapper.require_row(call, "self")
    mapper.add(call, kind, Select(np.arange(columns)[start:end:step].astype(np.int64)), source)


def _prelu(mapper: Mapper, call: Call, kind: str) -> None:
    source, slope = mapper.value(call, "self"), mapper.constant(call, "weight")
    if slope is None:
        raise ValueError("its weight depends on the input")
    mapper.add(call, kind, PRelu(np.broadcast_to(slope.reshape(-1), mapper.builder.columns[source]).copy()), source)


def _softmax(mapper: Mapper, call: Call, kind: str) -> None:
    mapper.require_row(call, "self")
    if call.arguments.get("dim") not in (1, -1):
        raise ValueError("it does not normalise the columns")
    if call.arguments.get("dtype") not in _WIDE:
        raise ValueError("it rounds the numbers to another type")
    mapper.add(call, kind, Softmax(log=kind == "log_softmax"), mapper.value(call, "self"))


def _softplus(arguments: dict[str, Any]) -> Activation:
    if arguments.get("beta", 1) != 1:
        raise ValueError("beta is not 1")
    # Above the threshold, PyTorch returns its input. From 20 on, the difference is smaller than a float32 shows.
    if arguments.get("threshold", 20) < 20:
        raise ValueError("threshold is less than 20")
    return Activation("softplus")


def _elu(arguments: dict[str, Any]) -> Activation:
    if arguments.get("scale", 1) != 1 or arguments.get("input_scale", 1) != 1:
        raise ValueError("scale is not 1")
    return Activation("elu", {"alpha": float(arguments.get("alpha", 1))})


def _clip(arguments: dict[str, Any], low: str = "min", high: str = "max") -> Activation:
    limits = [arguments.get(low), arguments.get(high)]
    values = [limit if given is None else float(given) for given, limit in zip(limits, (-np.inf, np.inf), strict=True)]
    return Activation("clip", {"low": values[0], "high": values[1]})


def _plain(function: str, **parameters: float) -> Callable[[dict[str, Any]], Activation]:
    return lambda _: Activation(function, parameters)


# The functions follow the definitions of https://docs.pytorch.org/docs/stable/nn.functional.html.
_FUNCTIONS: dict[str, Callable[[dict[str, Any]], Activation]] = {
    "abs": _plain("abs"),
    "celu": lambda arguments: Activation("celu", {"alpha": float(arguments.get("alpha", 1))}),
    "clamp": _clip,
    "clamp_max": _clip,
    "clamp_min": _clip,
    "elu": _elu,
    "exp": _plain("exp"),
    "gelu": lambda arguments: Activation("gelu_tanh" if arguments.get("approximate") == "tanh" else "gelu"),
    "hardsigmoid": _plain("hard_sigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": _plain("hard_swish"),
    "hardtanh": lambda arguments: _clip({"min_val": -1, "max_val": 1} | arguments, "min_val", "max_val"),
    "leaky_relu": lambda arguments: Activation("leaky_relu", {"alpha": float(arguments.get("negative_slope", 0.01))}),
    "mish": _plain("mish"),
    "relu": _plain("relu"),
    "relu6": _plain("clip", low=0, high=6),
    "selu": _plain("selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "sigmoid": _plain("sigmoid"),
    "silu": _plain("silu"),
    "softplus": _softplus,
    "tanh": _plain("tanh"),
}
_OPERATORS: dict[str, Callable[[Mapper, Call, str], None]] = {
    "add": _arithmetic,
    "addmm": _product,
    "alpha_dropout": _same,
    "batch_norm": _batch_norm,
    "cat": _cat,
    "clone": _same,
    "contiguous": _same,
    "detach": _same,
    "div": _arithmetic,
    "dropout": _same,
    "feature_dropout": _same,
    "flatten": _same,
    "linear": _linear,
    "log_softmax": _softmax,
    "matmul": _product,
    "mm": _product,
    "mul": _arithmetic,
    "prelu": _prelu,
    "reshape": _same,
    "rsub": _arithmetic,
    "slice": _slice,
    "softmax": _softmax,
    "squeeze": _same,
    "sub": _arithmetic,
    "unsqueeze": _same,
    "view": _same,
}
_SPEED = ("cudnn_enabled",)
# The arguments that the reader of each operator knows: the ones that it reads, and the ones that change no result. For
# any other operator, the only argument is `self`.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "sub", "rsub"), ("self", "other", "alpha")),
    **dict.fromkeys(("mul", "div", "matmul"), ("self", "other")),
    **dict.fromkeys(("dropout", "alpha_dropout", "feature_dropout"), ("input", "p", "train")),
    **dict.fromkeys(("clone", "contiguous"), ("self", "memory_format")),
    **dict.fromkeys(("softmax", "log_softmax"), ("self", "dim", "dtype")),
    **dict.fromkeys(("squeeze", "unsqueeze"), ("self", "dim")),
    "addmm": ("self", "mat1", "mat2", "alpha", "beta"),
    "batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", *_SPEED),
    "cat": ("tensors", "dim"),
    "celu": ("self", "alpha"),
    "clamp": ("self", "min", "max"),
    "clamp_max": ("self", "max"),
    "clamp_min": ("self", "min"),
    "elu": ("self", "alpha", "scale", "input_scale"),
    "flatten": ("self", "start_dim", "end_dim"),
    "gelu": ("self", "approximate"),
    "hardtanh": ("self", "min_val", "max_val"),
    "leaky_relu": ("self", "negative_slope"),
    "linear": ("input", "weight", "bias"),
    "mm": ("self", "mat2"),
    "prelu": ("self", "weight"),
    "reshape": ("self", "shape"),
    "slice": ("self", "dim", "start", "end", "step"),
    "softplus": ("self", "beta", "threshold"),
    "view": ("self", "size"),
}
# The operators that a program may call. `sym_size` returns the number of rows, which the intermediate form does not
# need.
OPERATORS = frozenset({*_FUNCTIONS, *_OPERATORS, "sym_size"})
