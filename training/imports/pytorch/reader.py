"""Reads a PyTorch model as an imported model: a module in memory, or a `.pt2` file of torch.export."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import replace
from functools import partial
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.archives import read_bytes
from foldserve.training.imports.form import Builder, Network
from foldserve.training.imports.imported import Evaluate, Imported, Options
from foldserve.training.imports.meaning import complete, interpret
from foldserve.training.imports.pytorch.operators import Mapper
from foldserve.training.imports.pytorch.original import Run, open_original
from foldserve.training.imports.pytorch.program import Program, read_program


def read(path: Path, options: Options) -> Imported:
    """Read a `.pt2` file without unpickling anything. Raises `ModelImportError` with a one-line message."""
    content = read_bytes(path)
    return _read(read_program(content), options, path.name, sha256(content).hexdigest(), None)


def read_object(model: Any, options: Options) -> Imported:
    """Read a PyTorch module that is in eval mode. Raises `ModelImportError` with a one-line message."""
    if not isinstance(model, torch.nn.Module):
        raise ModelImportError(f"a {type(model).__name__} is not a torch.nn.Module")
    if training := [name or type(model).__name__ for name, part in model.named_modules() if part.training]:
        raise ModelImportError(f"the module {training[0]!r} is in training mode: call model.eval() first")
    module = copy.deepcopy(model).cpu().float()
    columns = _find_columns(module, options)
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns about its own future changes
            dynamic = ({0: torch.export.Dim("rows")},)
            program = torch.export.export(module, (torch.zeros(2, columns),), dynamic_shapes=dynamic)
            torch.export.save(program, buffer)
    except Exception as error:
        # torch.export raises many kinds of errors for a module that it can't trace.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelImportError(f"torch.export can't export the {type(model).__name__}: {reason}") from error
    return _read(read_program(buffer.getvalue()), options, type(model).__name__, "", module)


def _find_columns(module: torch.nn.Module, options: Options) -> int:
    """Return a number of features for which the module runs without an error.

    The function first tries the number of feature names that the user gave, and then the input sizes of the layers.
    """
    sizes = [len(options.features)] if options.features else []
    for part in module.modules():
        sizes += [
            getattr(part, name)
            for name in ("in_features", "num_features")
            if isinstance(getattr(part, name, None), int)
        ]
    for size in dict.fromkeys(sizes):
        if _takes(module, size):
            return size
    raise ModelImportError("the module does not say how many features it has: name them with features=[...]")


def _takes(module: torch.nn.Module, size: int) -> bool:
    """Return whether a module runs on rows of `size` numbers."""
    try:
        with torch.no_grad():
            module(torch.zeros(2, size))
    except Exception:  # noqa: BLE001 (any error means that the module takes another number of features)
        return False
    return True


def _read(program: Program, options: Options, file: str, checksum: str, original: torch.nn.Module | None) -> Imported:
    if program.input not in program.shapes:
        raise ModelImportError("the number of features of the model is not fixed: export it with a fixed number")
    builder = Builder(prod(program.shapes[program.input]))
    value = Mapper(program, builder, program.weights).run()
    bare = builder.network(value)
    framework = ("PyTorch", program.version)
    imported = interpret(builder, value, options, framework=framework, file=file, checksum=checksum)
    open_with = partial(open_original, program) if original is None else partial(_open_module, original)
    notes, name = imported.notes, f"PyTorch {torch.__version__.partition('+')[0]}"
    exact, single = (_finish(open_with(dtype), bare, imported.network) for dtype in (torch.float64, torch.float32))
    try:
        for evaluate in (exact, single):
            evaluate(np.zeros((2, bare.features), np.float32))
    except Exception as error:  # noqa: BLE001 (PyTorch raises many kinds of errors)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        note = f"the certificate compares only with foldserve's own reading: {name} can't run the model ({reason})"
        return replace(imported, notes=(*notes, note))
    return replace(
        imported, reference=f"{name}, float64", evaluate=exact, float32={f"{name} float32, original": single}
    )


def _open_module(module: torch.nn.Module, dtype: torch.dtype) -> Run:
    copied = copy.deepcopy(module).to(dtype)

    def run(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        with torch.no_grad():
            outputs: npt.NDArray[np.floating[Any]] = copied(torch.tensor(rows, dtype=dtype)).numpy()
        return outputs.reshape(len(rows), -1)

    return run


def _finish(run: Run, bare: Network, network: Network) -> Evaluate:
    """Return a function that converts the outputs of PyTorch into outputs of the bundle.

    run: returns the outputs of PyTorch.
    """
    return lambda rows: complete(bare, network, run(rows))
