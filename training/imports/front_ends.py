"""Chooses the front end that reads a model.

The suffix of a file decides which front end reads the file. The module of a front end is imported only when a model of
its format is read.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.imported import Imported, Options, Read

_PACKAGE = "foldserve.training.imports"
# Maps the suffix of a file to the module that reads the file. Each module has a function `read`.
FRONT_ENDS = {
    ".onnx": "onnx_model",
    ".keras": "keras.reader",
    ".h5": "keras.reader",
    ".hdf5": "keras.reader",
    ".skops": "scikit_learn.reader",
    ".pt2": "pytorch.reader",
}
# Suffixes of files that have only weights. For a file that has only weights, `Options.layers` names a text file that
# describes the layers.
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
FRONT_ENDS |= dict.fromkeys(WEIGHTS, "pytorch.weights")
# Formats that are refused, because their readers would run code from the file.
UNSAFE = (".pkl", ".pickle", ".joblib")
_SAFE = "save a pipeline with skops.io.dump, a module with torch.export.save, or call foldserve.import_model(object)"
# Maps the package of an object in memory to the module that reads the object. The function `read_object` of the module
# also reads instances of subclasses.
OBJECTS = {
    "sklearn": "scikit_learn.reader",
    "keras": "keras.live",
    "tf_keras": "keras.live",
    "torch": "pytorch.reader",
}


def read_model(path: Path, options: Options) -> Imported:
    """Read a model of another framework. Raises `ModelImportError` with a one-line message."""
    module = FRONT_ENDS.get(path.suffix.lower())
    if path.suffix.lower() in UNSAFE:
        raise ModelImportError(f"{path.name} is a pickle, and loading it would run its code: {_SAFE}")
    if module is None:
        raise ModelImportError(f"{path.name}: models are read from files with the suffix {', '.join(FRONT_ENDS)}")
    if options.layers is not None and path.suffix.lower() not in WEIGHTS:
        raise ModelImportError(f"{path.name} has its layers: --layers is only for weights ({', '.join(WEIGHTS)})")
    _check_flags(options, module)
    read: Read = import_module(f"{_PACKAGE}.{module}").read
    return read(path, options)


def _check_flags(options: Options, module: str) -> None:
    """Refuse a flag that the front end does not use. Raises `ModelImportError`."""
    if options.keep_unknown and not module.startswith("onnx"):
        raise ModelImportError("--keep-unknown is only for ONNX models: leave it out")
    if options.output and not module.startswith(("onnx", "keras")):
        raise ModelImportError("--output is only for ONNX and Keras models: leave it out")


def read_object(model: Any, options: Options) -> Imported:
    """Read a model that is an object in memory. Raises `ModelImportError` with a one-line message."""
    if options.layers is not None:
        raise ModelImportError("--layers is only for files of weights: leave it out")
    for kind in type(model).__mro__:
        if module := OBJECTS.get(kind.__module__.partition(".")[0]):
            _check_flags(options, module)
            found: Imported = import_module(f"{_PACKAGE}.{module}").read_object(model, options)
            return found
    known = f"files ({', '.join(FRONT_ENDS)})" + "".join(f", objects of {package}" for package in OBJECTS)
    raise ModelImportError(f"a {type(model).__name__} is not a model that can be imported: {known}")
