"""Runs a Keras file in Keras itself for the certificate, if Keras is installed.

Keras never opens the file of the user, because a description in this file can name any class. Keras opens a copy of the
file. The copy has the weights of the file. The description of the copy has only the layers that foldserve has read
(`ALLOWED`), plain values and names of activations. The module does not depend on the intermediate form.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foldserve.training.imports.keras.archive import Archive
from foldserve.training.imports.keras.layers import LAYERS

if TYPE_CHECKING:
    import h5py

_MODELS = {"Sequential": "keras", "Functional": "keras.src.models.functional", "Model": "keras"}
# The classes that may be in the copy, and their modules.
ALLOWED = {**_MODELS, **dict.fromkeys((*LAYERS, "InputLayer"), "keras.layers")}
# The fields that the description of a layer keeps in the copy.
_OF_LAYER = ("config", "name", "inbound_nodes", "shared_object_id")
# The copy leaves out the following fields, because Keras would allocate memory for the shapes in them, and the front
# end does not check these shapes against the weights.
_SHAPES = ("build_input_shape", "input_shape", "input_dim")
# Values that Keras writes as objects, and the fields that each object keeps.
_PLAIN = {
    "__keras_tensor__": ("shape", "dtype", "keras_history"),
    "__numpy__": ("value", "dtype"),
    "__tensor__": ("value", "dtype"),
}
# Settings whose names end in one of these texts affect only training.
_TRAINING = ("_initializer", "_regularizer", "_constraint", "activity_regularizer")

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]


class NotRunError(Exception):
    """The reason why Keras does not run the file, in one line, with a remedy if there is one."""


def open_original(archive: Archive, columns: int, output: int | str) -> tuple[str, Run]:
    """Open a copy of the file in Keras. The front end has already read the file and checked its weights.

    columns: the number of features. output: the index or the key of the output, for a model with several outputs.
    Return a name with the version of Keras and its backend, and a function that runs the model. The model computes in
    float32, because most backends of Keras have no float64. Keras rounds the result of each operation to float32.
    Raises `NotRunError`.
    """
    try:
        config = _clean(archive.config, archive.version.startswith("2."))
        if isinstance(config["config"], dict) and (built := archive.config["config"].get("build_input_shape")):
            config["config"]["build_input_shape"] = _plain(built)  # the front end reads the input shape from here
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NotRunError(f"Keras is not asked, because the description is unusual ({_first_line(error)})") from error
    _require_no_links(archive.weights)
    keras = _import_keras()
    name = f"Keras {keras.__version__} on {keras.backend.backend()}"
    try:
        run = _open(keras, archive, config, output)
        run(np.zeros((2, columns), np.float32))
    except Exception as error:
        # Keras and its backends raise many kinds of errors.
        reason = f"{name} can't run the file ({_first_line(error)})"
        raise NotRunError(f"{reason}; save the model again with this Keras") from error
    return name, run


def _import_keras() -> Any:
    """Import Keras 3. If the backend that the user has configured is not installed, Keras uses PyTorch."""
    if importlib.util.find_spec("keras") is None:
        raise NotRunError("Keras is not installed; to compare with Keras itself, pip install keras, and import again")
    chosen = {}
    if "keras" not in sys.modules and not os.environ.get("KERAS_BACKEND") and not _has_backend():
        chosen = {"KERAS_BACKEND": "torch"}
    try:
        os.environ.update(chosen)
        keras = importlib.import_module("keras")
        version = str(keras.__version__)
    except Exception as error:
        raise NotRunError(f"Keras can't be imported ({_first_line(error)}); see KERAS_BACKEND") from error
    finally:
        for each in chosen:
            del os.environ[each]
    if not version.startswith("3."):
        raise NotRunError(f"Keras {version} is installed; to compare with Keras itself, pip install 'keras>=3'")
    return keras


def _has_backend() -> bool:
    """Whether the backend of Keras is installed. The file keras.json names the backend; the default is TensorFlow."""
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        backend = str(json.loads((folder / "keras.json").read_text())["backend"])
    except (OSError, ValueError, LookupError, TypeError):
        backend = "tensorflow"
    return backend.isidentifier() and importlib.util.find_spec(backend) is not None


def _open(keras: Any, archive: Archive, config: dict[str, Any], output: int | str) -> Run:
    """Open a copy of the file with the description `config`."""
    with tempfile.TemporaryDirectory() as folder, _on_cpu(keras):
        path = Path(folder) / ("model.h5" if archive.legacy else "model.keras")
        _write_copy(path, archive, config)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    split = splitter(model)

    def run(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        with _on_cpu(keras):
            outputs: Any = model(split(rows), training=False)
            if isinstance(outputs, dict | list | tuple):
                several: Any = outputs
                outputs = several[output]
            return np.asarray(keras.ops.convert_to_numpy(outputs)).reshape(len(rows), -1)

    return run


def splitter(model: Any) -> Callable[[npt.NDArray[np.float32]], Any]:
    """Return a function that divides rows, float32 [rows, columns], into the inputs of a Keras model."""
    shapes = [tuple(each.shape[1:]) for each in model.inputs]
    ends = np.cumsum([prod(shape) for shape in shapes])[:-1]

    def split(rows: npt.NDArray[np.float32]) -> Any:
        parts = [part.reshape(-1, *shape) for part, shape in zip(np.split(rows, ends, 1), shapes, strict=True)]
        return parts if len(parts) > 1 else parts[0]

    return split


@contextmanager
def _on_cpu(keras: Any) -> Iterator[None]:
    """Run Keras on the CPU, and hide warnings about Keras' own code."""
    with warnings.catch_warnings(), keras.device("cpu"):
        warnings.simplefilter("ignore")
        yield


def _write_copy(path: Path, archive: Archive, config: dict[str, Any]) -> None:
    import h5py

    weights = archive.weights
    if archive.legacy:
        with h5py.File(path, "w") as file:
            weights.file.copy(weights, file, "model_weights")
            file.attrs["model_config"] = json.dumps(config)
            file.attrs["keras_version"] = archive.version
            file.attrs["backend"] = "tensorflow"
        return
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for key in weights:
            weights.copy(weights[key], file, key)
        for key, value in weights.attrs.items():
            file.attrs[key] = value
    with zipfile.ZipFile(path, "w") as copy:
        copy.writestr("metadata.json", json.dumps({"keras_version": archive.version}))
        copy.writestr("config.json", json.dumps(config))
        copy.writestr("model.weights.h5", content.getvalue())


def _require_no_links(weights: h5py.Group) -> None:
    """Refuse weights that contain links to other places, or whose numbers are stored in other files."""
    import h5py

    names: list[str] = []
    weights.visit_links(names.append)
    for name in names:
        found = weights[name] if isinstance(weights.get(name, getlink=True), h5py.HardLink) else None
        if found is None or (isinstance(found, h5py.Dataset) and (found.is_virtual or found.external)):
            raise NotRunError("Keras is not asked, because the weights have a link to another place")


def _clean(value: Any, is_keras_2: bool) -> Any:
    """Return a copy of the description that has only known layers and plain values, and no settings for training.

    Every layer of the copy computes in float32. Raises `NotRunError` if the description contains an object of an
    unknown class.
    """
    if isinstance(value, list):
        return [_clean(each, is_keras_2) for each in value]
    if not isinstance(value, dict):
        if value == "hard_sigmoid" and is_keras_2:
            raise NotRunError("Keras 3 computes hard_sigmoid in another way than Keras 2, which wrote the file")
        return value
    if "class_name" not in value:
        kept = {key: each for key, each in value.items() if not key.endswith(_TRAINING) and key not in _SHAPES}
        return {key: _clean(each, is_keras_2) for key, each in kept.items()}
    kind, config = value["class_name"], value.get("config", {})
    if kind in ALLOWED:
        return _clean_layer(value, is_keras_2)
    if kind in _PLAIN:
        return {"class_name": kind, "config": {key: _plain(config[key]) for key in _PLAIN[kind]}}
    if kind == "function":
        return _plain(config)
    if kind in ("DTypePolicy", "Policy"):
        return _plain(config["name"])
    raise NotRunError(f"Keras is not asked, because the file has an object of the class {str(kind)[:40]!r}")


def _clean_layer(value: dict[str, Any], is_keras_2: bool) -> dict[str, Any]:
    """Reduce the description of a layer or a model to its Keras class and the fields in `_OF_LAYER`."""
    kind = value["class_name"]
    cleaned = {key: _clean(value[key], is_keras_2) for key in _OF_LAYER if key in value}
    if kind not in _MODELS:
        cleaned["config"]["dtype"] = "float32"
    if kind == "BatchNormalization" and isinstance(axis := value["config"].get("axis"), list) and len(axis) == 1:
        cleaned["config"]["axis"] = axis[0]  # Keras 2 writes the axis as a list, and Keras 3 needs a number
    return {**cleaned, "class_name": kind, "module": ALLOWED[kind], "registered_name": None}


def _plain(value: Any) -> Any:
    """Return `value` if it is a number, a text, or a list of numbers and texts.

    Raises `TypeError` for a JSON object.
    """
    if isinstance(value, dict):
        raise TypeError("an object in the place of a value")
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
