"""The friendly protocol: a request has instances, and an answer has labels and probabilities.

    {"instances": [[0.5, 3, ...], ...]}  or  {"instances": [{"column": 0.5, ...}, ...]}
    -> {"model": ..., "version": ..., "predictions": [label or value, ...], "probabilities": [[...], ...]}

An instance that is an object may contain columns of the training table that are not features; the service ignores these
columns. An instance that is an object may leave out features that had only one value in training. The metrics count the
ignored columns and the left-out features. The query of the URL may ask for another form of the answer.

A category is written as its string or number, a boolean as true or false, and a missing value as null. If a numeric
column contained texts in the training table, the service interprets the texts of a request by the same rules that were
used for that table.

For large requests, the body may be raw float32, little-endian, one row after the other (`application/octet-stream`). In
raw rows, a category is written as its index, a boolean as 0 or 1, and a missing value as NaN. The answer may also be
raw float32, or an Arrow stream.

This module decodes requests, and `answers.py` writes answers. This module does not depend on routes, batchers or
runtimes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Manifest
from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.metrics import Unusual
from foldserve.service.protocols.answers import ARROW_TYPE, RAW_TYPE, Answers
from foldserve.service.protocols.categories import JsonValue, json_value
from foldserve.service.protocols.content import media_type, preferred
from foldserve.service.protocols.json_text import (
    MAX_ELEMENT_BYTES,
    PIECE_BYTES,
    SMALL,
    LongArray,
    Piece,
    cut,
    has_booleans,
    is_cut,
    parse_json,
    parse_piece,
)
from foldserve.service.protocols.names import ColumnNames
from foldserve.service.protocols.query import AnswerOptions, parse_query
from foldserve.service.protocols.reply import Headers
from foldserve.service.protocols.request import DecodedRequest, SlowBody
from foldserve.service.protocols.rows import Columns, RowsBuffer
from foldserve.service.protocols.simdjson_numbers import read_numbers

JSON_TYPE = b"application/json"

# The largest number of warnings in one answer.
MAX_WARNINGS = 100
_FLOAT = np.dtype("<f4")
# An answer with more than this number of values is encoded on a thread if the query asks for a form other than the
# default.
_MANY_NUMBERS = 20_000

_Counted = dict[tuple[Unusual, str], int]


class FriendlyCodec:
    """Decodes the requests of one model, and encodes its answers."""

    def __init__(self, manifest: Manifest, max_rows: int, piece_bytes: int = PIECE_BYTES) -> None:
        self._columns = Columns(manifest.features)
        self._names = ColumnNames(manifest)
        names = self._names.features
        # With only one name, `itemgetter` returns a single value instead of a tuple.
        self._picked = itemgetter(*names) if len(names) > 1 else lambda row: [row[names[0]]]
        self._max_rows = max_rows
        self._answers = Answers(manifest)
        self._encoders = {JSON_TYPE: self._answers.json, RAW_TYPE: self._answers.raw, ARROW_TYPE: self._answers.arrow}
        self._options: AnswerOptions | None = None  # None if the URL has no query
        row_bytes = max(MAX_ELEMENT_BYTES, 1024 * self._columns.width)
        self._array = LongArray(("instances",), "rows", max_rows, row_bytes, piece_bytes)

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request: JSON or raw rows.

        Raises `InvalidInput` and `UnsupportedMedia`. Raises `SlowBody` if `fast_only` is true and decoding would take
        long.
        """
        kind = media_type(headers)
        counted: _Counted = {}
        if kind in (None, JSON_TYPE):
            rows = self._json_rows(body, counted, fast_only=fast_only)
        elif kind == RAW_TYPE:
            rows = self._raw_rows(body)
        else:
            raise UnsupportedMedia("the Content-Type is neither application/json nor application/octet-stream")
        wanted = preferred(headers, b"accept", self._encoders) if b"accept" in headers else None
        if counts := self._columns.count(rows):
            counted.update(counts)
        request = DecodedRequest(rows, self._encoders[wanted or JSON_TYPE], counts=counted or None)
        if self._options is not None:
            self._apply(self._options, request, counted, wanted)
        return request

    def for_query(self, query: bytes, /) -> FriendlyCodec:
        """Return the codec for requests with this query in the URL. Raises `InvalidInput` for a wrong query."""
        options = parse_query(query)
        if (options.named or options.top) and not self._answers.has_classes:
            raise InvalidInput("the query parameters named and top need a model with classes")
        codec = copy.copy(self)
        codec._options = options
        return codec

    def _apply(self, options: AnswerOptions, request: DecodedRequest, counted: _Counted, wanted: bytes | None) -> None:
        """Change the encoder of `request` so that it writes the answer in the form that the query asks for.

        Raises `InvalidInput` if the client wants an answer that is not JSON.
        """
        if wanted not in (None, JSON_TYPE):
            raise InvalidInput("the query parameters named, top and warnings need an answer in JSON")
        warnings = self._warnings(request.rows, counted) if options.warnings else None
        request.encode = partial(self._answers.json, options=options, warnings=warnings)
        request.encodes_slowly = len(request.rows) * self._answers.width > _MANY_NUMBERS

    def _warnings(self, rows: Rows, counted: _Counted) -> list[dict[str, Any]]:
        """Describe the unusual values of a request. Entries for whole columns come before entries for single values."""
        texts = {
            "ignored": "ignored: training left this column out",
            "filled": "left out: its only training value is used",
        }
        entries: list[dict[str, Any]] = [
            {"column": column, "warning": texts[kind]} for kind, column in counted if kind in texts
        ]
        values, found = self._columns.ranges.describe(rows, max(0, MAX_WARNINGS - len(entries)))
        more = len(entries) + found - MAX_WARNINGS
        entries = (entries + values)[:MAX_WARNINGS]
        return [*entries, {"warning": f"{more} more warnings are not listed"}] if more > 0 else entries

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _json_rows(self, body: bytes | bytearray, counted: _Counted, *, fast_only: bool) -> Rows:
        if len(body) <= SMALL:
            instances = self._instances(parse_json(body))
            if len(instances) > self._max_rows:
                raise InvalidInput(f'"instances" has more rows than the {self._max_rows} that are allowed')
            by_name = type(instances[0]) is dict
            return self._checked_rows(instances, 0, counted, by_name=by_name, booleans=has_booleans(body))
        document = cut(body, self._array)
        if not is_cut(self._instances(document.around)):
            raise InvalidInput('"instances" is in the body more than once')
        if not document.pieces:
            raise InvalidInput('"instances" has no rows')
        return self._rows_of_pieces(body, document.pieces, counted, fast_only=fast_only)

    def _rows_of_pieces(
        self, body: bytes | bytearray, pieces: list[Piece], counted: _Counted, *, fast_only: bool
    ) -> Rows:
        columns = self._columns
        rows = RowsBuffer(columns.width)
        by_name = None
        # The fast path passes each JSON number unchanged to the model. If a number may be a category or a missing
        # value, the request needs the slow path.
        fast = columns.are_plain
        for piece in pieces:
            numbers = read_numbers(body, piece, columns.width) if fast and piece.brackets else None
            some = None if numbers is None else columns.from_doubles(numbers)
            if some is None:
                if fast_only:
                    raise SlowBody
                fast = False  # the next pieces probably need the slow path too
                instances = parse_piece(body, piece)
                if by_name is None:
                    by_name = not rows.count and type(instances[0]) is dict
                some = self._checked_rows(instances, rows.count, counted, by_name=by_name)
            rows.append(some)
        return rows.rows()

    def _instances(self, parsed: Any) -> list[Any]:
        instances = parsed.get("instances") if type(parsed) is dict else None
        if type(instances) is not list:
            raise InvalidInput('the body is not an object with an array "instances"')
        if not instances:
            raise InvalidInput('"instances" has no rows')
        return instances

    def _checked_rows(
        self, instances: list[Any], first_row: int, counted: _Counted, *, by_name: bool, booleans: bool = True
    ) -> Rows:
        """Read whole rows.

        first_row: the index of the first row in the request. booleans: whether a value may be true or false.
        """
        if by_name:
            instances = [self._by_name(i, row, counted) for i, row in enumerate(instances, first_row)]
        width = self._columns.width
        for i, row in enumerate(instances, first_row):
            if type(row) is not list:
                raise InvalidInput(f"row {i} is not an array of {width} values")
            if len(row) != width:
                raise InvalidInput(f"row {i} has {len(row)} values, expected {width}")
        values = instances[0] if len(instances) == 1 else list(chain.from_iterable(instances))
        return self._columns.from_json_values(values, first_row, booleans=booleans)

    def _by_name(self, i: int, row: Any, counted: _Counted) -> list[Any]:
        if type(row) is not dict:
            raise InvalidInput(f"row {i} is not an object, as the rows before it are")
        if row.keys() != self._names.set:
            ignored, filled = self._names.match(row.keys(), f"row {i}")
            _count(counted, "ignored", ignored)
            _count(counted, "filled", filled)
            row = {**self._names.constants, **row}
        return list(self._picked(row))

    def _raw_rows(self, body: bytes | bytearray) -> Rows:
        width = self._columns.width
        count, rest = divmod(len(body), 4 * width)
        if rest or not count:
            raise InvalidInput(f"the body is not rows of {width} float32 values, {4 * width} bytes each")
        if count > self._max_rows:
            raise InvalidInput(f"the body has {count} rows, at most {self._max_rows} are allowed")
        return self._columns.from_array(np.ndarray((count, width), _FLOAT, body))


def _count(counted: _Counted, kind: Unusual, names: Iterable[str]) -> None:
    for name in names:
        counted[kind, name] = counted.get((kind, name), 0) + 1


def example(manifest: Manifest) -> list[JsonValue]:
    """Return the first golden row as a client would write it.

    A golden row may contain the code of an unseen category; because no category has this code, the function returns the
    last category instead.
    """
    return [
        json_value(feature, value) for feature, value in zip(manifest.features, manifest.golden.inputs[0], strict=True)
    ]
