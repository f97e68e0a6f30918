"""Reads a Keras file as an imported model. The module calls the other modules of this package in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from foldserve.training.imports.form import Network
from foldserve.training.imports.imported import Evaluate, Imported, Options
from foldserve.training.imports.keras.archive import open_archive
from foldserve.training.imports.keras.graph import Input, ModelReader
from foldserve.training.imports.keras.original import NotRunError, Run, open_original
from foldserve.training.imports.keras.weights import open_store
from foldserve.training.imports.meaning import Outputs, complete, interpret

_REGRESSION = ("mean_", "mse", "mae", "mape", "msle", "huber", "log_cosh", "logcosh", "poisson")


@dataclass(frozen=True)
class FileRead:
    """The result of reading a Keras file.

    imported: the model, with its own network as the reference. bare: the network without the layers that turn logits
    into probabilities. original: the name of Keras and a function that runs the model in Keras. If Keras does not run
    the file, `original` is a text that gives the reason. The text is empty if Keras was not asked.
    """

    imported: Imported
    bare: Network
    original: tuple[str, Run] | str

    def compared(self) -> Imported:
        """Return the imported model. If Keras runs the file, the certificate also compares the model with Keras."""
        if isinstance(self.original, str):
            note = f"the certificate compares only with foldserve's own reading of the file: {self.original}"
            return replace(self.imported, notes=(*self.imported.notes, note))
        name, run = self.original
        return replace(self.imported, float32={f"{name} float32, original": self.finish(run)})

    def finish(self, run: Run) -> Evaluate:
        """Return a function that converts the outputs of Keras into outputs of the bundle.

        run: returns the outputs of Keras.
        """
        return lambda rows: complete(self.bare, self.imported.network, run(rows))


def read(path: Path, options: Options) -> Imported:
    """Read a `.keras` or `.h5` file, and run it in Keras if Keras is installed. Raises `ModelImportError`."""
    return read_file(path, options).compared()


def read_file(path: Path, options: Options, *, ask_keras: bool = True) -> FileRead:
    """Read a file. Raises `ModelImportError` with a one-line message.

    ask_keras: whether Keras also opens the file, to compare the outputs.
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
        original: tuple[str, Run] | str = ""
        try:
            if ask_keras:
                original = open_original(archive, bare.features, reader.place)
        except NotRunError as reason:
            original = str(reason)
    whole, start = set[int](), 0
    for each in reader.inputs:
        size = prod(each.shape)
        whole.update(range(start, start + size) if each.whole else ())
        start += size
    imported = replace(imported, whole=frozenset(whole), notes=(*reader.notes, *imported.notes))
    return FileRead(imported, bare, original)


def _names(inputs: tuple[Input, ...]) -> tuple[str, ...]:
    """Name the features after the inputs, if the model has several inputs.

    Return () if the model has a single input, because this input may have many features.
    """
    if len(inputs) < 2:
        return ()
    names = []
    for each in inputs:
        size = prod(each.shape)
        names += [each.name] if size == 1 else [f"{each.name}_{i}" for i in range(size)]
    return tuple(names)


def _outputs(loss: Any) -> Outputs:
    """Return the kind of the outputs that the loss function of the model implies; "" if the kind is unknown."""
    config: Any = {}
    if isinstance(loss, dict):
        loss, config = loss.get("class_name"), loss.get("config")
    if not isinstance(loss, str):
        return ""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in loss).lstrip("_")
    if name.endswith("crossentropy") and isinstance(config, dict) and config.get("from_logits"):
        return "logits"
    return "value" if name.startswith(_REGRESSION) else ""
