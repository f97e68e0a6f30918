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
from sklearn.model_selection import train_test_split

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

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


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
    """Draw `test` and `validation`, as shares of all rows, from the table; stratified by class."""
    rows = np.arange(len(table.x))
    rest, held_out = _draw(table, rows, test, seed)
    train, stop = _draw(table, rest, validation / (1 - test), seed)
    return Split(np.sort(train), np.sort(stop), np.sort(held_out))


def _draw(
    table: Table, rows: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    by = table.y[rows] if table.labels else None
    # Every class in both parts, however small its share.
    drawn = max(round(share * len(rows)), len(table.labels), 1)
    first, second = train_test_split(rows, test_size=drawn, random_state=seed, stratify=by)
    return first, second
