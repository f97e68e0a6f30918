"""Determines the names and ranges of the columns and the meaning of the outputs, which many files do not state.

A front end calls `interpret` if its format describes only layers. `interpret` returns the imported model. The module
does not depend on a file format or a framework.
"""

from __future__ import annotations

from dataclasses import fields
from hashlib import sha256
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Label, Task
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import INPUT, Builder, Network
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.layers import Activation, Add, Affine, Array, Concat, Impute, Layer, Select, Softmax
from foldserve.training.table.schema import Column
from foldserve.training.text import join_some

# The kind of the outputs that the loss function of the model implies; "" if the kind is unknown.
Outputs = Literal["", "logits", "value"]
_Name = TypeVar("_Name", bound=Label)

# A standardised feature is rarely more than three standard deviations away from its mean.
_DEVIATIONS = 3


def interpret(
    builder: Builder,
    value: str,
    options: Options,
    *,
    framework: tuple[str, str],
    file: str,
    checksum: str = "",
    outputs: Outputs = "",
    names: tuple[str, ...] = (),
) -> Imported:
    """Return the imported model whose last value is `value`.

    The reference of the returned model is the network before folding.

    framework: the name and the version of the framework. file, checksum: the name and the hash of the file. If
    `checksum` is empty, the hash of the weights replaces it. The docstrings of `finish` and `_numeric_columns` describe
    the arguments `outputs` and `names`. Raises `ModelImportError`.
    """
    network, task, labels, notes = finish(builder, value, options, outputs)
    columns, named, renamed = _numeric_columns(network.features, options, names)
    return Imported(
        network=network,
        columns=columns,
        named=named,
        task=task,
        labels=labels,
        framework=framework[0],
        framework_version=framework[1],
        file=file,
        sha256=checksum or digest(network),
        reference="the layers as foldserve reads them, float64",
        evaluate=network.evaluate,
        ranges=typical_ranges(network),
        notes=(*renamed, *notes),
    )


def complete(bare: Network, network: Network, outputs: npt.NDArray[np.floating[Any]]) -> Array:
    """Convert outputs of a framework into outputs of the bundle, with the layers that `finish` adds.

    outputs: the outputs of the framework [rows, outputs]. bare: the network without the layers that `finish` adds.
    network: the network that `finish` returns.
    """
    names = {node.name for node in bare.nodes}
    added = [node for node in network.nodes if node.name not in names]
    values: dict[str, Array] = {bare.output: outputs.astype(np.float64)}
    if added and not any(bare.output in node.inputs for node in added):
        # The probabilities are the exponentials of the outputs, because `network` ends in a softmax and `bare` in a
        # log-softmax.
        return np.exp(values[bare.output])
    for node in added:
        values[node.name] = node.layer.apply(*(values[name] for name in node.inputs))
    return values[network.output]


def choose_names(given: tuple[_Name, ...], own: tuple[_Name, ...], flag: str) -> tuple[tuple[_Name, ...], list[str]]:
    """Return the names from the user, or else the names from the model.

    Also return a note if the names from the user replace the names from the model.

    given: the names from the user, or (). own: the names from the model, or (). flag: the flag for the names,
    "--features" or "--labels". Raises `ModelImportError` if the user gives the same names as the model, but in a
    different order, because columns or classes would then get wrong names.
    """
    texts, known = list(map(str, given)), list(map(str, own))
    if not given or texts == known:
        return own, []
    if sorted(texts) == sorted(known):
        raise ModelImportError(
            f"{flag} has the names of the model in another order, which would exchange them: leave {flag} out; the "
            f"order is {join_some(known, 10)}"
        )
    return given, [f"{flag} replaces the names of the model: {join_some(known, 5)}"] if own else []


def _numeric_columns(
    count: int, options: Options, names: tuple[str, ...] = ()
) -> tuple[tuple[Column, ...], bool, list[str]]:
    """Return three values: the numeric features, whether the features have names from the user or the model, and notes.

    names: the names of the features in the model, or (). Raises `ModelImportError` if the names from the user do not
    fit the model.
    """
    given, notes = choose_names(options.features, names, "--features")
    if given and len(given) != count:
        raise ModelImportError(f"--features has {len(given)} names, and the model has {count} features")
    if repeated := [name for i, name in enumerate(given) if name in given[:i]]:
        raise ModelImportError(f"two features have the name {repeated[0]!r}: give other names with --features")
    return tuple(Column(name, "numeric") for name in given or [f"x{i}" for i in range(count)]), bool(given), notes


def finish(
    builder: Builder, value: str, options: Options, outputs: Outputs
) -> tuple[Network, Task, tuple[Label, ...], tuple[str, ...]]:
    """Return four values: the network with its last layers, its task, its labels, and notes for the user.

    The network gives probabilities or one value. value: the last value of the model. A softmax or a sigmoid is added if
    the loss function or the labels in `options` show that the outputs are logits. Raises `ModelImportError` if the
    outputs are neither probabilities nor one value.
    """
    columns, layers = builder.columns[value], {node.name: node for node in builder.network(value).nodes}
    last = layers[value].layer if value in layers else None
    labels, notes = options.labels, []
    mass = find_mass(builder.network(value))
    if isinstance(last, Softmax) and last.log:
        value = builder.add("probabilities", "Softmax", Softmax(), *layers[value].inputs)
        notes.append("the outputs are logarithms of probabilities; the bundle returns the probabilities")
    elif isinstance(last, Softmax) and columns == 1:
        raise ModelImportError("the model ends with a softmax of one column, which is always 1")
    elif _is_probability(mass, columns, last) and (labels or outputs != "value"):
        pass
    elif outputs == "logits" or labels:
        if mass is not None:
            raise ModelImportError(
                f"the outputs of the model are neither probabilities nor logits: they sum to {mass:g}"
            )
        reason = "the loss function of the model reads logits" if outputs == "logits" else "there are labels"
        layer: Layer = Softmax() if columns > 1 else Activation("sigmoid")
        value = builder.add("probabilities", "Softmax", layer, value)
        notes.append(f"the outputs are taken as logits, and turned into probabilities, because {reason}")
    elif columns == 1:
        return builder.network(value), "regression", (), ()
    else:
        raise ModelImportError(unnamed_logits(columns))
    if columns == 1:
        rest = builder.add("complement", "Affine", Affine.of(-1, 0, 1, 1), value)
        value = builder.add("probabilities", "Concat", Concat(), rest, value)
    if not labels:
        labels = tuple(range(builder.columns[value]))
        notes.append(default_labels(len(labels)))
    return builder.network(value), "classification", labels, tuple(notes)


def unnamed_logits(count: int) -> str:
    """Return the error text for a model whose outputs may be logits, or the values of several targets."""
    example = ",".join(map(str, range(min(count, 12)))) + (",..." if count > 12 else "")
    return (
        f"the model gives {count} numbers for a row that are not probabilities: if they are the logits of {count} "
        f"classes, name the classes with --labels, in the order of the outputs, for example --labels {example}; a "
        "model of several values is not supported"
    )


def default_labels(count: int) -> str:
    """Return the note for a model that does not name its classes."""
    return f"the model does not name its classes; their labels are the numbers 0 to {count - 1}: see --labels"


def _is_probability(mass: float | None, columns: int, last: Layer | None) -> bool:
    if mass is None or abs(mass - 1) > 1e-6:
        return False
    if columns > 1 and isinstance(last, Activation):
        raise ModelImportError(
            f"the model gives {columns} independent probabilities for a row; a bundle has one distribution, so import "
            "a model with one output"
        )
    return True


def find_mass(network: Network) -> float | None:
    """Return the sum of the outputs of a softmax, or the largest possible output of a sigmoid; None for other networks.

    Sums and scalings may follow the softmax or the sigmoid, as in an ensemble. If the returned number is 1, the outputs
    are probabilities.
    """
    masses: dict[str, float | None] = {}
    for node in network.nodes:
        layer, before = node.layer, [masses.get(name) for name in node.inputs]
        known = [mass for mass in before if mass is not None]
        mass: float | None = None
        if (isinstance(layer, Softmax) and not layer.log) or (
            isinstance(layer, Activation) and layer.function == "sigmoid"
        ):
            mass = 1.0
        elif len(known) < len(before):
            pass
        elif isinstance(layer, Affine):
            is_scaling = (layer.scale == layer.scale[0]).all() and (layer.shift == layer.scale * layer.offset).all()
            mass = float(layer.scale[0] * known[0]) if is_scaling else None
        elif type(layer) is Add:
            mass = sum(known)
        masses[node.name] = mass
    return masses.get(network.output)


def typical_ranges(network: Network) -> Array | None:
    """Return the range of each feature that the network standardises: its mean minus and plus three standard
    deviations.

    The result is float64 [features, 2]. A feature that the network does not standardise has NaN. The result is None if
    the network standardises no feature.
    """
    sources = {INPUT: np.arange(network.features)}
    ranges = np.full((network.features, 2), np.nan)
    for node in network.nodes:
        source = sources.get(node.inputs[0])
        if source is None:
            continue
        if isinstance(node.layer, Select):
            sources[node.name] = source[node.layer.source]
        elif isinstance(node.layer, Impute):
            sources[node.name] = source
        elif isinstance(node.layer, Affine) and node.layer.offset.any() and node.layer.scale.all():
            spread = _DEVIATIONS / abs(node.layer.scale)
            ranges[source] = np.stack([node.layer.offset - spread, node.layer.offset + spread], 1)
    return ranges if np.isfinite(ranges).any() else None


def digest(network: Network) -> str:
    """Return the sha256 of the layers and weights of a network, for a model that has no file."""
    found = sha256()
    for node in network.nodes:
        found.update(repr((node.name, type(node.layer).__name__, node.inputs)).encode())
        for each in fields(node.layer):
            value = getattr(node.layer, each.name)
            content = np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            found.update(content)
    return found.hexdigest()
