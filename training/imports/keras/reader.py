"""Reads a Keras file as an imported model. The module calls the other modules of this package in order."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from foldserve.training.imports.form import Network
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.keras.archive import open_archive
from foldserve.training.imports.keras.graph import Input, ModelReader
from foldserve.training.imports.keras.weights import open_store
from foldserve.training.imports.meaning import Outputs, interpret

_REGRESSION = ("mean_", "mse", "mae", "mape", "msle", "huber", "log_cosh", "logcosh", "poisson")


def read(path: Path, options: Options) -> Imported:
    """Read a `.keras` or `.h5` file. Raises `ModelImportError` with one line."""
    return read_both(path, options)[0]


def read_both(path: Path, options: Options) -> tuple[Imported, Network]:
    """Return the imported model and the network of the file. The network has no added layers that turn logits into
    probabilities. Raises `ModelImportError`.
    """
    with open_archive(path) as archive:
        reader = ModelReader(open_store(archive), archive.version.startswith("2."), options.output)
        builder, value = reader.read(archive.config)
        imported = interpret(
            builder,
            value.name,
            options,
            framework=("Keras", archive.version),
            file=path.name,
            checksum=archive.sha256,
            outputs=_outputs(archive.training.get("loss")),
            names=_names(reader.inputs),
        )
        bare = builder.network(value.name)
    whole, start = set[int](), 0
    for each in reader.inputs:
        size = prod(each.shape)
        whole.update(range(start, start + size) if each.whole else ())
        start += size
    return replace(imported, whole=frozenset(whole), notes=(*reader.notes, *imported.notes)), bare


def _names(inputs: tuple[Input, ...]) -> tuple[str, ...]:
    """Name the features after the inputs, if there are several. Return () for a single input, because this input may
    have many features.
    """
    if len(inputs) < 2:
        return ()
    names = []
    for each in inputs:
        size = prod(each.shape)
        names += [each.name] if size == 1 else [f"{each.name}_{i}" for i in range(size)]
    return tuple(names)


def _outputs(loss: Any) -> Outputs:
    """Return the meaning of the outputs, found from the loss function of the model; "" if it is unknown."""
    config: Any = {}
    if isinstance(loss, dict):
        loss, config = loss.get("class_name"), loss.get("config")
    if not isinstance(loss, str):
        return ""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in loss).lstrip("_")
    if name.endswith("crossentropy") and isinstance(config, dict) and config.get("from_logits"):
        return "logits"
    return "value" if name.startswith(_REGRESSION) else ""
