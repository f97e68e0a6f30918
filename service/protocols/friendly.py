"""The friendly protocol: instances in, labels and probabilities out.

    {"instances": [[0.5, 3, ...], ...]}  or  {"instances": [{"column": 0.5, ...}, ...]}
    -> {"model": ..., "version": ..., "predictions": [label or value, ...], "probabilities": [[...], ...]}

A category is written as its string or number, a boolean as true or false, and a missing value as null. If the training
table had texts in a numeric column, the service reads a text in this column as training did.

For large requests, the body may be raw float32, little-endian, one row after the other (`application/octet-stream`).
In raw rows, a category is its index, a boolean is 0 or 1, and a missing value is NaN. The answer may be raw as well, or
an Arrow stream.

This module owns the request and the answer of this protocol. It knows no route, no batcher and no runtime.
"""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Category, Feature, Manifest
from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.protocols.arrow import ArrowWriter
from foldserve.service.protocols.content import media_type, preferred
from foldserve.service.protocols.json_text import (
    MAX_ELEMENT_BYTES,
    PIECE_BYTES,
    SMALL,
    LongArray,
    Piece,
    cut,
    is_cut,
    parse_json,
    parse_piece,
)
from foldserve.service.protocols.reply import JSON, Headers, Reply
from foldserve.service.protocols.request import DecodedRequest, SlowBody
from foldserve.service.protocols.rows import Columns, RowsBuffer
from foldserve.service.protocols.simdjson_numbers import read_numbers

JSON_TYPE = b"application/json"
RAW_TYPE = b"application/octet-stream"
ARROW_TYPE = b"application/vnd.apache.arrow.stream"


class FriendlyCodec:
    """Decodes the requests of one model, and encodes its answers."""

    def __init__(self, manifest: Manifest, max_rows: int, piece_bytes: int = PIECE_BYTES) -> None:
        self._head = orjson.dumps({"model": manifest.name, "version": manifest.version})[:-1]
        self._labels = [orjson.dumps(label) for label in manifest.labels]
        self._columns = Columns(manifest.features)
        names = self._columns.names
        self._name_set = frozenset(names)
        # An itemgetter with only one name returns a value instead of a tuple.
        self._picked = itemgetter(*names) if len(names) > 1 else lambda row: [row[names[0]]]
        self._max_rows = max_rows
        self._arrow_writer = ArrowWriter(manifest.labels)
        self._answers = {JSON_TYPE: self._json, RAW_TYPE: self._raw, ARROW_TYPE: self._arrow}
        row_bytes = max(MAX_ELEMENT_BYTES, 1024 * self._columns.width)
        self._array = LongArray(("instances",), "rows", max_rows, row_bytes, piece_bytes)

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request: JSON or raw rows.

        Raises `InvalidInput` and `UnsupportedMedia`. With `fast_only`, raises `SlowBody` if decoding would take long.
        """
        kind = media_type(headers)
        if kind in (None, JSON_TYPE):
            rows = self._json_rows(body, fast_only=fast_only)
        elif kind == RAW_TYPE:
            rows = self._raw_rows(body)
        else:
            raise UnsupportedMedia("the Content-Type is neither application/json nor application/octet-stream")
        wanted = preferred(headers, b"accept", self._answers) if b"accept" in headers else None
        return DecodedRequest(rows, self._answers[wanted or JSON_TYPE], unseen=self._columns.unseen(rows))

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _json_rows(self, body: bytes | bytearray, *, fast_only: bool) -> Rows:
        if len(body) <= SMALL:
            instances = self._instances(parse_json(body))
            if len(instances) > self._max_rows:
                raise InvalidInput(f'"instances" has more rows than the {self._max_rows} that are allowed')
            return self._checked_rows(instances, 0, by_name=type(instances[0]) is dict)
        document = cut(body, self._array)
        if not is_cut(self._instances(document.around)):
            raise InvalidInput('"instances" is in the body more than once')
        if not document.pieces:
            raise InvalidInput('"instances" has no rows')
        return self._rows_of_pieces(body, document.pieces, fast_only=fast_only)

    def _rows_of_pieces(self, body: bytes | bytearray, pieces: list[Piece], *, fast_only: bool) -> Rows:
        columns = self._columns
        rows = RowsBuffer(columns.width)
        by_name = None
        # The fast path uses each number as the model's input. A number that is a category, or that means a missing
        # value, needs the slow path.
        fast = columns.are_plain
        for piece in pieces:
            numbers = read_numbers(body, piece, columns.width) if fast and piece.brackets else None
            some = None if numbers is None else columns.from_doubles(numbers)
            if some is None:
                if fast_only:
                    raise SlowBody
                fast = False  # the following pieces are probably like this one
                instances = parse_piece(body, piece)
                if by_name is None:
                    by_name = not rows.count and type(instances[0]) is dict
                some = self._checked_rows(instances, rows.count, by_name=by_name)
            rows.append(some)
        return rows.rows()

    def _instances(self, parsed: Any) -> list[Any]:
        instances = parsed.get("instances") if type(parsed) is dict else None
        if type(instances) is not list:
            raise InvalidInput('the body is not an object with an array "instances"')
        if not instances:
            raise InvalidInput('"instances" has no rows')
        return instances

    def _checked_rows(self, instances: list[Any], first_row: int, *, by_name: bool) -> Rows:
        """Read whole rows. first_row: the index of the first row in the request."""
        if by_name:
            instances = [self._by_name(i, row) for i, row in enumerate(instances, first_row)]
        width = self._columns.width
        for i, row in enumerate(instances, first_row):
            if type(row) is not list:
                raise InvalidInput(f"row {i} is not an array of {width} values")
            if len(row) != width:
                raise InvalidInput(f"row {i} has {len(row)} values, expected {width}")
        values = instances[0] if len(instances) == 1 else list(chain.from_iterable(instances))
        return self._columns.from_json_values(values, first_row)

    def _by_name(self, i: int, row: Any) -> list[Any]:
        if type(row) is not dict:
            raise InvalidInput(f"row {i} is not an object, as the rows before it are")
        if row.keys() != self._name_set:
            missing = next((name for name in self._columns.names if name not in row), None)
            raise InvalidInput(
                f"row {i} has a feature that is unknown"
                if missing is None
                else f"row {i} lacks the feature {missing!r}"
            )
        return list(self._picked(row))

    def _raw_rows(self, body: bytes | bytearray) -> Rows:
        width = self._columns.width
        count, rest = divmod(len(body), 4 * width)
        if rest or not count:
            raise InvalidInput(f"the body is not rows of {width} float32 values, {4 * width} bytes each")
        if count > self._max_rows:
            raise InvalidInput(f"the body has {count} rows, at most {self._max_rows} are allowed")
        return self._columns.from_array(np.frombuffer(body, "<f4").reshape(count, width))

    # --- answers ------------------------------------------------------------------------------------------------------

    def _json(self, outputs: Outputs) -> Reply:
        # The JSON texts of the labels are already known, so orjson writes only the numbers.
        if self._labels:
            predictions = b",".join([self._labels[i] for i in outputs.argmax(1).tolist()])
            numbers = orjson.dumps(outputs, option=orjson.OPT_SERIALIZE_NUMPY)
            rest = b',"predictions":[%b],"probabilities":%b}' % (predictions, numbers)
        else:
            values = orjson.dumps(np.ascontiguousarray(outputs[:, 0]), option=orjson.OPT_SERIALIZE_NUMPY)
            rest = b',"predictions":%b}' % values
        return Reply(200, (JSON,), self._head + rest)

    def _raw(self, outputs: Outputs) -> Reply:
        return Reply(200, ((b"content-type", RAW_TYPE),), outputs.astype("<f4", copy=False).tobytes())

    def _arrow(self, outputs: Outputs) -> Reply:
        return Reply(200, ((b"content-type", ARROW_TYPE),), self._arrow_writer.write(outputs))


def example(manifest: Manifest) -> list[Category | bool | None]:
    """Return the first golden row as a client would write it.

    A golden row may have the code of an unseen category. That code has no value, so the last category is returned
    instead.
    """
    return [
        _json_value(feature, value) for feature, value in zip(manifest.features, manifest.golden.inputs[0], strict=True)
    ]


def _json_value(feature: Feature, value: float | None) -> Category | bool | None:
    if value is None or feature.kind == "numeric":
        return value
    if feature.kind == "time" and feature.reading is not None:
        return feature.reading.moment_text(value)
    return bool(value) if feature.kind == "boolean" else (*feature.categories, feature.categories[-1])[int(value)]
