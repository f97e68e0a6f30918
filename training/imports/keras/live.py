"""Reads a Keras model in memory. The module saves the model into a temporary file, and reads this file.

For the certificate, Keras also runs the object itself. The module only calls methods of the model object.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.keras.original import splitter
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
        found = read_file(path, options, ask_keras=False)
    split = splitter(model)

    def run(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        return np.asarray(model.predict_on_batch(split(rows)), np.float64).reshape(len(rows), -1)

    imported = found.imported
    if len(model.outputs) == 1:
        imported = replace(imported, float32={"Keras float32, original": found.finish(run)})
    return replace(imported, file=kind, sha256=digest(imported.network))
