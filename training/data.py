"""Sources and splits: from a name to a checked table of float32 features and one target, and which rows learn.

It knows no network. Today the sources are scikit-learn's built-in tables; files come next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import datasets

from service.bundle import Label, Task
from training.errors import DataError

_BUILT_IN: dict[str, Callable[..., Any]] = {
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
}
_REGRESSION = {"diabetes"}

# A class needs a row in each of training, validation and test.
_MIN_ROWS_PER_CLASS = 3
# Two to train on, since a BN has no statistics of one; one to stop by, two to report on.
_MIN_ROWS = 5

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """A table ready to be learned from.

    x: float32 [rows, features], finite, raw values.
    y: classification: int64 [rows], indices into `labels`; regression: float64 [rows], finite.
    labels: the classes in index order; () for regression.
    """

    source: str
    task: Task
    features: tuple[str, ...]
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    labels: tuple[Label, ...]

    @property
    def outputs(self) -> int:
        """How many columns a model of it gives: one a class, or the value."""
        return len(self.labels) or 1

    def sha256(self) -> str:
        """Hash what is learned from: names, labels, values, all in little-endian order."""
        digest = hashlib.sha256()
        digest.update(repr((self.task, self.features, self.labels)).encode())
        digest.update(np.ascontiguousarray(self.x, "<f4").tobytes())
        digest.update(np.ascontiguousarray(self.y, "<i8" if self.labels else "<f8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Row indices, int64, disjoint: rows to fit on, to stop by, and to report on."""

    train: Rows
    validation: Rows
    test: Rows


def load(source: str) -> Table:
    """Load the table that `source` names.

    Raises `DataError` for an unknown source, a class with too few rows, a value that is not finite.
    """
    if source not in _BUILT_IN:
        raise DataError(f"unknown source {source!r}: expected one of {', '.join(sorted(_BUILT_IN))}")
    raw = _BUILT_IN[source]()
    features = tuple(str(name) for name in raw.feature_names)
    if source in _REGRESSION:
        return _checked(Table(source, "regression", features, raw.data.astype("f4"), raw.target.astype("f8"), ()))
    # A label keeps the table's own JSON type: digits' classes are the numbers 0 to 9, iris's are names.
    labels: tuple[Label, ...] = tuple(raw.target_names.tolist())
    return _checked(Table(source, "classification", features, raw.data.astype("f4"), raw.target.astype("i8"), labels))


def _checked(table: Table) -> Table:
    for name, column in zip(table.features, table.x.T, strict=True):
        if not np.isfinite(column).all():
            raise DataError(f"column {name!r} holds a value that is not a finite float32")
    if not np.isfinite(table.y).all():
        raise DataError("the target holds a value that is not finite")
    for index, label in enumerate(table.labels):
        rows = int((table.y == index).sum())
        if rows < _MIN_ROWS_PER_CLASS:
            raise DataError(f"class {label!r} has {rows} rows: it needs {_MIN_ROWS_PER_CLASS}, one in each split")
    return table


def split(table: Table, *, test: float, validation: float, seed: int) -> Split:
    """Draw `test` and `validation`, as shares of the rows, class by class: each class is in every part.

    Raises `DataError` when there are too few rows for that.
    """
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(table.y == index) for index in range(len(table.labels))] or [np.arange(len(table.x))]
    if len(table.x) < _MIN_ROWS:
        raise DataError(f"{len(table.x)} rows are too few: at least {_MIN_ROWS} are needed")
    least = 1 if table.labels else 2  # of one row there is no R2, and no BN
    parts = [_cut(generator.permutation(rows), test, validation, least) for rows in classes]
    train, stop, held_out = (np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))
    return Split(train, stop, held_out)


def _cut(rows: Rows, test: float, validation: float, least: int) -> tuple[Rows, Rows, Rows]:
    count = len(rows)
    held_out = min(max(round(test * count), least), count - least - 1)
    stop = min(max(round(validation * count), 1), count - held_out - least)
    return rows[held_out + stop :], rows[held_out : held_out + stop], rows[:held_out]
