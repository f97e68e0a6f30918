"""Turns batches of Arrow columns into float32 [rows, features]. If a value is bad, only its row is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Feature
from foldserve.service.errors import TableError
from foldserve.service.tables.column import FeatureColumn
from foldserve.service.text import join_some


@dataclass(frozen=True)
class Encoded:
    """The input rows of a model.

    rows: float32 [rows, features]. A missing value is NaN. The values of a refused row have no meaning.
    refused: the reason for each refused row, by the index of the row.
    """

    rows: Rows
    refused: Mapping[int, str] = field(default_factory=dict)

    def accepted(self) -> npt.NDArray[np.bool_] | None:
        """Return a bool array [rows] that is False for a refused row; None if no row is refused."""
        if not self.refused:
            return None
        mask = np.ones(len(self.rows), bool)
        mask[list(self.refused)] = False
        return mask


class TableEncoder:
    """Encodes tables for one model. Columns are found by name, and further columns are ignored.

    A table may lack a feature that had only one value in training; the encoder then uses this value. typed: whether the
    source states the types of its cells. A CSV file does not state types: all its cells are texts.
    """

    def __init__(self, features: Sequence[Feature], *, typed: bool) -> None:
        self.names = tuple(feature.name for feature in features)
        self._columns = [FeatureColumn(feature, typed=typed) for feature in features]
        self._typed = typed
        self._nullable = np.array([feature.missing for feature in features])
        self._constants = {feature.name: feature.constant for feature in features if feature.constant is not None}
        self._numeric = all(feature.kind == "numeric" and not _missing_numbers(feature) for feature in features)

    def check(self, schema: pa.Schema, source: str = "the table") -> None:
        """Raise `TableError` if the table lacks a feature, or if a column's type does not fit the feature.

        source: the name of the table for the message.
        """
        for name, column in zip(self.names, self._columns, strict=True):
            place = schema.get_field_index(name)
            if place < 0 and name in self._constants:
                continue
            if place < 0:
                # A delimited file with a single column was probably read with a wrong separator.
                sep = "; if another character separates its cells, use --sep" if self._is_one_text(schema) else ""
                has = join_some(schema.names, 10)
                raise TableError(f"{source} has no column {name!r}, a feature of the model; it has {has}{sep}")
            column.check_type(schema.field(place).type)

    def _is_one_text(self, schema: pa.Schema) -> bool:
        return not self._typed and len(schema.names) == 1

    def encode(self, table: pa.RecordBatch | pa.Table) -> Encoded:
        """Encode all rows of a table that has passed `check`."""
        numbers = self._numbers(table) if self._numeric and isinstance(table, pa.RecordBatch) else None
        return self._by_columns(table) if numbers is None else Encoded(numbers)

    def _numbers(self, batch: pa.RecordBatch) -> Rows | None:
        """Encode a batch that has only numbers.

        Returns None if a column is missing or not numeric, or if a row is refused.
        """
        fields = [batch.schema.get_field_index(name) for name in self.names]
        if min(fields) < 0 or not all(_is_number(batch.schema.field(place).type) for place in fields):
            return None
        exact = batch.select(fields).to_tensor(null_to_nan=True, row_major=True).to_numpy()
        # An overflow becomes infinite, and a signalling NaN becomes an ordinary NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            rows: Rows = exact.astype(np.float32, copy=False)
        if np.isfinite(rows).all():
            return rows
        refused = np.isinf(rows).any() or np.isnan(rows[:, ~self._nullable]).any()
        return None if refused else rows

    def _by_columns(self, table: pa.RecordBatch | pa.Table) -> Encoded:
        rows = np.empty((len(table), len(self.names)), np.float32)
        refused: dict[int, str] = {}
        for place, (name, column) in enumerate(zip(self.names, self._columns, strict=True)):
            if name in self._constants and name not in table.schema.names:
                rows[:, place] = self._constants[name]
                continue
            cells = table.column(name)
            values, problems = column.read(cells if isinstance(cells, pa.ChunkedArray) else pa.chunked_array([cells]))
            with np.errstate(over="ignore", invalid="ignore"):  # the code below finds the overflows
                rows[:, place] = values
            for mask, reason in problems:
                if mask.any():
                    refused = _refuse(mask, f"column {name!r} {reason}") | refused
                    rows[mask, place] = 0
        return Encoded(rows, self._check(rows, refused))

    def _check(self, rows: Rows, refused: dict[int, str]) -> dict[int, str]:
        """Refuse each row that has an infinity, or a NaN in a column that must not have missing values."""
        if np.isfinite(rows).all():
            return refused
        for place, name in enumerate(self.names):
            column = rows[:, place]
            infinite, missing = np.isinf(column), np.isnan(column)
            if infinite.any():
                refused = _refuse(infinite, f"column {name!r} is too large for float32") | refused
            if not self._nullable[place] and missing.any():
                reason = f"column {name!r} is null, and the feature has no missing values"
                refused = _refuse(missing, reason) | refused
        return refused


def _missing_numbers(feature: Feature) -> bool:
    return bool(feature.reading and feature.reading.missing_numbers)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_integer(kind))


def _refuse(mask: npt.NDArray[np.bool_], reason: str) -> dict[int, str]:
    return dict.fromkeys(np.flatnonzero(mask).tolist(), reason)
