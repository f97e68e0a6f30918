"""Runs the operators of a `.pt2` file in PyTorch itself, for the certificate.

PyTorch runs each call that `program.py` has read. `torch.export.load` is never called, because it evaluates texts of
the file as Python (sympy.sympify, guards) and may unpickle objects. PyTorch runs only operators that foldserve
understands, and passes them only tensors and plain values. The module does not depend on the intermediate form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foldserve.training.imports.pytorch.operators import OPERATORS
from foldserve.training.imports.pytorch.program import Program, Ref

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]


def open_original(program: Program, dtype: torch.dtype) -> Run:
    """Return a function that runs the program in PyTorch: raw rows [rows, features] -> outputs [rows, outputs].

    dtype: the type of the numbers. The returned function raises `ValueError` for an operator that foldserve does not
    understand. The function also raises the errors of PyTorch.
    """
    weights = {name: torch.from_numpy(array).to(dtype) for name, array in program.weights.items()}
    shape = program.shapes[program.input]

    def run(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        # Some operators, such as relu_, change their inputs, so each run copies the weights.
        values: dict[str, Any] = {name: weight.clone() for name, weight in weights.items()}
        values[program.input] = torch.tensor(rows, dtype=dtype).reshape(-1, *shape)
        with torch.no_grad():
            for call in program.calls:
                arguments = {name: _resolve(values, value) for name, value in call.arguments.items()}
                result = _operator(call.operator)(**arguments)
                values[call.output] = result[0] if isinstance(result, list | tuple) else result
        outputs: npt.NDArray[np.floating[Any]] = values[program.output].reshape(len(rows), -1).numpy()
        return outputs

    return run


def _operator(name: str) -> Any:
    """Return an operator of ATen by its name, such as `linear.default`.

    Raises `ValueError` if foldserve does not understand the operator.
    """
    kind, _, overload = name.partition(".")
    if kind.removesuffix("_") not in OPERATORS:
        raise ValueError(f"the operator {kind} is not supported")
    return getattr(getattr(torch.ops.aten, kind), overload or "default")


def _resolve(values: dict[str, Any], argument: Any) -> Any:
    """Return the value of an argument of a call.

    An integer that depends on the number of rows is stored under a name, like a tensor.
    """
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, list):
        return [_resolve(values, each) for each in argument]
    if isinstance(argument, dict):
        return values[argument["as_name"]] if "as_name" in argument else argument["as_int"]
    return argument
