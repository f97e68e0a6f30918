"""An imported model: its network, the meaning of its columns and outputs, its origin, and the original model.

Every front end returns an `Imported`. The module does not depend on a file format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Label, Task
from foldserve.training.imports.form import Network
from foldserve.training.imports.layers import Array
from foldserve.training.table.schema import Column

# Evaluates the original model: raw rows float32 [rows, features] -> float64 [rows, outputs]. In a raw row, a category
# is its index, and a missing value is NaN, as in a bundle. The index len(categories) means an unseen category. The
# outputs are probabilities, or the values of a regression [rows, 1].
Evaluate = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Options:
    """Facts about a model that some files do not contain.

    features: the names of the features in order; if empty, the names come from the file or the table. labels: the
    labels of the classes in the order of the outputs; if empty, the labels come from the file. output: for a model with
    several outputs, the name of one output; "" chooses the output with scores. keep_unknown: whether an unknown ONNX
    operator is kept unchanged. layers: a text file with the output of `print(model)`, for a file that has only weights.
    ranges: the ranges of the features by name, as in `ImportPlan`.
    """

    features: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    output: str = ""
    keep_unknown: bool = False
    layers: Path | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """One model that a front end has read.

    network: the layers that map raw rows to probabilities or to one value. columns: the columns of the input, one for
    each feature, in order. named: whether the columns have names from the model or from the user. If the columns have
    no names, the columns of a table are matched by position. labels: the labels of the classes in the order of the
    outputs; () for a regression. framework: the framework that wrote the model. framework_version: the version of the
    framework, or "" if the file does not name it. file: the name of the file, or the class name of an object in memory.
    sha256: the hash of the file, or the hash of the weights of an object in memory. evaluate: evaluates the original
    model in float64. reference: a text for the user that describes the arithmetic of `evaluate`. float32: maps the name
    of each runtime to a function that runs the original model in float32. The certificate also compares the outputs of
    these functions with the reference. ranges: the typical ranges of the features, float64 [features, 2]. A feature
    without a typical range has NaN. narrow: names the part of the original that rounds more than float32 does, or
    "". whole: the indices of the features whose values must be whole numbers. notes: facts
    that the user should know, one sentence each.
    """

    network: Network
    columns: tuple[Column, ...]
    named: bool
    task: Task
    labels: tuple[Label, ...]
    framework: str
    framework_version: str
    file: str
    sha256: str
    reference: str
    evaluate: Evaluate
    float32: dict[str, Evaluate] = field(default_factory=dict)
    ranges: Array | None = None
    narrow: str = ""
    whole: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def is_independent(self) -> bool:
        """Whether the reference is the original model itself, and not the layers that foldserve read from the model."""
        return self.evaluate != self.network.evaluate


# Reads a file, and returns the imported model. Raises `ModelImportError` with a one-line message.
Read = Callable[[Path, Options], Imported]
