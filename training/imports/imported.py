"""An imported model: its network, the meaning of its columns and outputs, its origin, and the original model.

Every front end returns an `Imported`. The module does not depend on a file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Label, Task
from foldserve.training.imports.form import Network
from foldserve.training.imports.layers import Array
from foldserve.training.table.schema import Column

# A function that evaluates the ORIGINAL model: raw rows float32 [rows, features] -> float64 [rows, outputs]. The rows
# have the form of a bundle: a category is its index, and a missing value is NaN. The index len(categories) means an
# unseen category. The outputs are probabilities, or values [rows, 1].
Evaluate = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Options:
    """The facts about a model that a file does not always have.

    features: the names of the columns in order; () to take them from the file or the table. labels: the labels of the
    classes in the order of the outputs; () to take them from the file. output: the name of the output, if a model has
    several; "" to choose the one with scores. keep_unknown: whether an unknown operation is kept unchanged, if the
    format allows this. layers: a text file with the printed layers of a file that has weights alone.
    """

    features: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    output: str = ""
    keep_unknown: bool = False
    layers: Path | None = None


@dataclass(frozen=True)
class Imported:
    """One model that a front end has read.

    network: maps raw rows to probabilities or to a value. columns: one for each feature, in order. named: whether the
    names of the columns come from the model or the user; if not, the columns of a table are taken by position.
    labels: the classes in the order of the outputs; () for regression. framework, framework_version: the framework
    that wrote the model; the version is empty if the file does not have it. file: the name of the file, or of the class
    of an object. sha256: the hash of the file, or of the weights of an object. evaluate: the original model in float64.
    reference: a text that names the arithmetic of `evaluate`. float32: functions that run the original in float32, by
    the name of the runtime. The certificate also measures the differences of these functions. ranges: the typical range
    of each feature, if the model has one, float64 [features, 2]; NaN where it has none. whole: the indices of the
    features that must be whole numbers. notes: facts that the user should know, one sentence each.
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
    whole: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def is_independent(self) -> bool:
        """Whether the reference is not the network that foldserve has read from the model."""
        return self.evaluate != self.network.evaluate


# A front end for files: reads a file, and returns the model. It raises `ModelImportError` with one line.
Read = Callable[[Path, Options], Imported]
