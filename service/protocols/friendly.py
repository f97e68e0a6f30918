"""The friendly protocol: instances in, labels and probabilities out.

    {"instances": [[0.5, 3, ...], ...]}  or  {"instances": [{"column": 0.5, ...}, ...]}
    -> {"model": ..., "version": ..., "predictions": [label or value, ...], "probabilities": [[...], ...]}

A category is its own string or number, a boolean true or false, a missing value null.

For large requests, the body may be raw float32, little-endian, one row after the other (`application/octet-stream`).
There a category is its index, a boolean 0 or 1, a missing value NaN. The answer may be raw as well, or an Arrow stream.

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
from foldserve.service.protocols.reply import JSON, Headers, Reply
from foldserve.service.protocols.rows import (
    SIMDJSON_ERRORS,
    SMALL_BODY,
    Columns,
    DecodedRequest,
    SlowBody,
    count_byte,
    has_more_brackets,
    parse_json,
    proxies,
)

JSON_TYPE = b"application/json"
RAW_TYPE = b"application/octet-stream"
ARROW_TYPE = b"application/vnd.apache.arrow.stream"


class FriendlyCodec:
    """Decodes the requests of one model, and encodes its answers."""

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self._head = orjson.dumps({"model": manifest.name, "version": manifest.version})[:-1]
        self._labels = [orjson.dumps(label) for label in manifest.labels]
        self._columns = Columns(manifest.features)
        names = self._columns.names
        self._name_set = frozenset(names)
        # An itemgetter of one name returns the value and no tuple.
        self._picked = itemgetter(*names) if len(names) > 1 else lambda row: [row[names[0]]]
        self._max_rows = max_rows
        self._arrow_writer = ArrowWriter(manifest.labels)
        self._answers = {JSON_TYPE: self._json, RAW_TYPE: self._raw, ARROW_TYPE: self._arrow}
        # A right body has one bracket for each row, and those inside names and categories. The rest leaves room for
        # small mistakes, which get a clearer message.
        in_names = sum(map(_brackets_in, self._columns.names))
        in_values = sum(max(map(_brackets_in, feature.categories), default=0) for feature in manifest.features)
        self._max_brackets = 2 * max_rows * (1 + in_names + in_values) + 200_000

    def decode(self, headers: Headers, body: bytes, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request: JSON or raw rows.

        Raises `InvalidInput` and `UnsupportedMedia`; with `fast_only`, `SlowBody` where decoding would take long.
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

    def _json_rows(self, body: bytes, *, fast_only: bool) -> Rows:
        if has_more_brackets(body, self._max_brackets):
            raise InvalidInput(
                f'"instances" has too many rows, or rows inside rows; at most {self._max_rows} are allowed'
            )
        # A number may be a category here, and simdjson's array would take it for a code.
        rows = self._plain_rows(body) if len(body) > SMALL_BODY and not self._columns.coded else None
        if rows is None and fast_only:
            raise SlowBody
        return self._checked_rows(body) if rows is None else rows

    def _plain_rows(self, body: bytes) -> Rows | None:
        """Read the usual large body, rows of numbers. Returns None for a body that `_checked_rows` must judge."""
        try:
            instances = proxies(body)["instances"]
            rows = count_byte(body, b"[") - 1
            if 0 < rows <= self._max_rows:
                return self._columns.from_simdjson(instances, rows)
        except SIMDJSON_ERRORS:
            pass
        return None

    def _checked_rows(self, body: bytes) -> Rows:
        instances = self._instances(body)
        if isinstance(instances[0], dict):
            instances = [self._by_name(i, row) for i, row in enumerate(instances)]
        width = self._columns.width
        for i, row in enumerate(instances):
            if type(row) is not list:
                raise InvalidInput(f"row {i} is not an array of {width} values")
            if len(row) != width:
                raise InvalidInput(f"row {i} has {len(row)} values, expected {width}")
        values = instances[0] if len(instances) == 1 else list(chain.from_iterable(instances))
        return self._columns.from_json_values(values)

    def _instances(self, body: bytes) -> list[Any]:
        parsed = parse_json(body)
        instances = parsed.get("instances") if type(parsed) is dict else None
        if type(instances) is not list:
            raise InvalidInput('the body is not an object with an array "instances"')
        if not instances:
            raise InvalidInput('"instances" has no rows')
        if len(instances) > self._max_rows:
            raise InvalidInput(f'"instances" has {len(instances)} rows, at most {self._max_rows} are allowed')
        return instances

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

    def _raw_rows(self, body: bytes) -> Rows:
        width = self._columns.width
        count, rest = divmod(len(body), 4 * width)
        if rest or not count:
            raise InvalidInput(f"the body is not rows of {width} float32 values, {4 * width} bytes each")
        if count > self._max_rows:
            raise InvalidInput(f"the body has {count} rows, at most {self._max_rows} are allowed")
        return self._columns.from_array(np.frombuffer(body, "<f4").reshape(count, width))

    # --- answers ------------------------------------------------------------------------------------------------------

    def _json(self, outputs: Outputs) -> Reply:
        # The texts of the labels are known, so only the numbers go through orjson.
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

    The code of an unseen category has no value of its own: the last category takes its place.
    """
    return [
        _json_value(feature, value) for feature, value in zip(manifest.features, manifest.golden.inputs[0], strict=True)
    ]


def _json_value(feature: Feature, value: float | None) -> Category | bool | None:
    if value is None or feature.kind == "numeric":
        return value
    return bool(value) if feature.kind == "boolean" else (*feature.categories, feature.categories[-1])[int(value)]


def _brackets_in(text: Category) -> int:
    return str(text).count("[") + str(text).count("{")
