"""Converts Python tables to the float32 rows of one model, and outputs to labels, in the same way as the server.

`Model` runs the rows in this process, and `Client` sends them to a server. This module depends on neither `Model` nor
`Client`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from foldserve.api.frames import Columns as TableColumns
from foldserve.api.frames import as_array, column_like, library, read_columns, table_like
from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Decision, Feature, Manifest
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import json_value
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.rows import Columns

_JSON = {b"content-type": b"application/json"}
_ANY_NUMBER_OF_ROWS = 2**62


class RowReader:
    """Reads tables for one model, and returns the outputs as objects of the library of the table."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._columns = Columns(manifest.features)
        self._codec = FriendlyCodec(manifest, _ANY_NUMBER_OF_ROWS)
        self._decision = Decision.of(manifest)
        self._labels = np.array(manifest.labels)
        self._target = manifest.target.name if manifest.target else "prediction"

    def read(self, data: Any) -> Rows:
        """Return float32 [rows, features].

        data: a table as in `read_columns`, or a list of rows. In a list of rows, each row is a dict or a list of
        values. The values of an array or a list are in the order of the features. Raises the same errors as `encode`.
        """
        if isinstance(data, list | tuple):
            return self._read_list(data)
        names = self._columns.names
        if library(data) is None and not hasattr(data, "keys"):
            array = as_array(data)
            if array.dtype.kind in "fiu" and self._columns.are_plain and array.shape[1] == len(names):
                return self._columns.from_array(np.ascontiguousarray(array))
        return encode(read_columns(data, names), self.manifest.features)

    def _read_list(self, rows: Sequence[Any]) -> Rows:
        if not rows:
            return np.empty((0, self._columns.width), np.float32)
        try:
            body = orjson.dumps({"instances": rows}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
        except TypeError as error:
            raise InvalidInput(f"a row has a value that JSON can't represent: {error}") from error
        return self._codec.decode(_JSON, body).rows

    def labels(self, data: Any, outputs: Outputs) -> Any:
        """Return one label or value for each row, as an object of the library of `data`."""
        values: npt.NDArray[Any]
        values = self._labels[self._decision.classes(outputs)] if self.manifest.labels else outputs[:, 0]
        return column_like(data, values, self._target)

    def probabilities(self, data: Any, outputs: Outputs) -> Any:
        """Return the probability of each label [rows, labels], as an object of the library of `data`."""
        return table_like(data, outputs, self.manifest.labels, self._decision.names)


def encode(table: TableColumns, features: Sequence[Feature]) -> Rows:
    """Return the rows of a table, float32 [rows, features].

    A table may have further columns, which are ignored. A table may lack a feature that has only one value in training.
    Raises `InvalidInput` with the text of the server. The error message names the first refused row and its column.
    Raises `TableError` for a table that lacks a column, or has a column of the wrong type.
    """
    import pyarrow as pa

    from foldserve.service.tables import TableEncoder

    columns = {feature.name: table.take(feature.name) for feature in features if feature.name in table.names}
    for feature in features:
        if feature.name not in columns and feature.constant is not None:
            columns[feature.name] = pa.array([json_value(feature, feature.constant)] * table.rows)
    encoder = TableEncoder(features, typed=True)
    found = pa.table(columns)
    encoder.check(found.schema, table.name)
    encoded = encoder.encode(found)
    if encoded.refused:
        row, reason = min(encoded.refused.items())
        raise InvalidInput(f"row {row}, {reason}")
    return encoded.rows
