"""Reads a Keras model in memory. The module saves the model into a temporary file, and reads this file.

For the certificate, Keras also runs the object itself. The module only calls methods of the model object.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.keras.reader import read_file
from foldserve.training.imports.meaning import digest


def read_object(model: Any, options: Options) -> Imported:
    """Read a Keras model with one output, or with the output that `options` names. Raises `ModelImportError`."""
    kind = type(model).__name__
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise ModelImportError(f"the {kind} does not say how many features it has: give it an Input, or call it once")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
        except Exception as error:
            # Keras raises many kinds of errors for a model that it can't save.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ModelImportError(f"Keras can't save the {kind}: {reason}") from error
        found = read_file(path, options)
    shapes = [tuple(each.shape[1:]) for each in model.inputs]
    ends = np.cumsum([prod(shape) for shape in shapes])[:-1]

    def run(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        parts = [part.reshape(-1, *shape) for part, shape in zip(np.split(rows, ends, 1), shapes, strict=True)]
        outputs = model.predict_on_batch(parts if len(parts) > 1 else parts[0])
        return np.asarray(outputs, np.float64).reshape(len(rows), -1)

    imported = found.imported
    if len(model.outputs) == 1:
        imported = replace(imported, float32={"Keras float32, original": found.finish(run)})
    return replace(imported, file=kind, sha256=digest(imported.network))
