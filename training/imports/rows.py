"""The rows for the certificate of an imported model, and the features for its manifest.

The rows come from a table, or they are drawn at random from ranges. The module does not depend on the model's layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from foldserve.service import bundle
from foldserve.service.sources import Source
from foldserve.training.certify import certificate
from foldserve.training.certify.manifest import describe_features
from foldserve.training.errors import DataError
from foldserve.training.imports.imported import Imported
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load_for_model
from foldserve.training.table.schema import Column, Table
from foldserve.training.text import join_some

Range = tuple[float, float]
_EVERY = ""


@dataclass(frozen=True)
class Rows:
    """The rows for a certificate, and the features for the manifest.

    table: the table of the user, or a table without rows if the user gives none.

    features: the features for the manifest. drawn: random rows, float32 [rows, features]. notes: facts for the user.
    """

    table: Table
    features: tuple[bundle.Feature, ...]
    drawn: npt.NDArray[np.float32]
    notes: tuple[str, ...]


def parse_ranges(texts: tuple[str, ...]) -> dict[str, Range]:
    """Read the ranges of features: `age=0:99` for one feature, `0:16` for all others.

    Return the range for each name of a feature. The name "" stands for all other features. Raises `DataError` for a
    text that is not a range.
    """
    ranges: dict[str, Range] = {}
    for text in texts:
        name, _, limits = text.rpartition("=")
        try:
            low, high = (float(np.float32(limit)) for limit in limits.split(":"))
        except ValueError:
            raise DataError(f"--ranges: {text!r} is not a range, as in age=0:99 or 0:16") from None
        if not -np.inf < low <= high < np.inf:
            raise DataError(f"--ranges: {text!r} needs two numbers, the smaller one first")
        ranges[name] = (low, high)
    return ranges


def make_rows(
    imported: Imported,
    data: DataOptions | None,
    ranges: Mapping[str, Range],
    seed: int,
    source: Source | None = None,
) -> Rows:
    """Read the table `data`, or draw random rows from the ranges and the categories of the features.

    source: the table in memory; None if `data` names a file. Raises `DataError` if the table does not fit the model, or
    if a feature has neither rows nor a range.
    """
    empty = np.empty((0, len(imported.columns)), np.float32)
    schema = Table("", imported.task, "", imported.columns, empty, np.empty(0), imported.labels)
    if data is None:
        return _draw(imported, schema, ranges, seed)
    if ranges:
        raise DataError("--ranges has no effect with --data: leave one of them out")
    table = load_for_model(data, schema, by_position=not imported.named, given=source)
    if not len(table.x):
        raise DataError(f"{table.source} has no rows")
    notes = list(table.notes)
    if not imported.named:
        notes.append(f"the model does not name its features; they are the columns of {table.source}, in order")
    features = describe_features(table.columns, table.x)
    return Rows(table, features, certificate.draw(features, table.x, certificate.RANDOM_ROWS, seed), tuple(notes))


def _draw(imported: Imported, schema: Table, ranges: Mapping[str, Range], seed: int) -> Rows:
    known = dict(ranges)
    for i, column in enumerate(imported.columns):
        if imported.ranges is not None and np.isfinite(imported.ranges[i]).all():
            low, high = imported.ranges[i].astype(np.float32).tolist()
            known.setdefault(column.name, (low, high))
    names = [column.name for column in imported.columns]
    if unknown := [name for name in ranges if name != _EVERY and name not in names]:
        raise DataError(f"--ranges: the model has no feature {unknown[0]!r}; it has {join_some(names, 10)}")
    numeric = [column.name for column in imported.columns if column.kind != "categorical"]
    if lacking := [name for name in numeric if name not in known and _EVERY not in known]:
        raise DataError(
            f"the model does not say which values {join_some(lacking, 5)} may have: give a table with --data, or "
            "ranges with --ranges, for example --ranges 0:16"
        )
    features = tuple(
        _describe(column, known.get(column.name, known.get(_EVERY, (0.0, 1.0)))) for column in schema.columns
    )
    # If the example of a feature is a whole number, its drawn values are whole numbers too.
    example = np.array([[0.0 if i in imported.whole else 0.5 for i in range(len(features))]], np.float32)
    drawn = certificate.draw(features, example, certificate.RANDOM_ROWS, seed)
    note = "no table was given: the certificate is on random rows alone, and there are no metrics and no report"
    notes = (
        [note] if imported.named else [f"the model does not name its features: they are {join_some(names, 3)}", note]
    )
    return Rows(replace(schema, source="random rows"), features, drawn, tuple(notes))


def _describe(column: Column, limits: Range) -> bundle.Feature:
    """Describe a feature by its range. All counts in the histogram of the feature are 0."""
    count = len(column.categories)
    low, high = limits
    edges = [i - 0.5 for i in range(count + 1)] if count else [low, high]
    return bundle.Feature(
        name=column.name,
        kind=column.kind,
        missing=column.missing,
        categories=column.categories,
        range=None if count else limits,
        histogram=bundle.Histogram(edges=tuple(edges), counts=(0,) * (len(edges) - 1)),
    )
