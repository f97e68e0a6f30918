"""The Open Inference Protocol, version 2. Requests and answers contain tensors, as JSON or in binary.

    {"id": ..., "parameters": {...}, "inputs": [{"name", "shape", "datatype", "data" | "parameters"}], "outputs": [...]}
    -> {"model_name", "model_version", "id", "outputs": [{"name", "datatype", "shape", "data" | "parameters"}]}

The header Inference-Header-Content-Length gives the length of the JSON. After the JSON, the body has the bytes of the
binary tensors, which are little-endian and row-major. If the header gives the length 0, the whole body consists of FP32
rows.

If a request has one tensor for all features, every value is a number. A missing value is NaN in binary and null in
JSON. A boolean is written as 0 or 1. A category is written as its index. A category that training has not seen has the
index after the last known category. Instead of one tensor for all features, a request may have one tensor for each
column (`oip_columns.py`).

This module handles the requests and the answers of inference. This module does not depend on routes, batchers or
runtimes.

https://github.com/kserve/open-inference-protocol, and the binary tensor data extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.metrics import Unusual
from foldserve.service.protocols.content import media_type
from foldserve.service.protocols.json_text import (
    MAX_AROUND,
    MAX_ELEMENT_BYTES,
    PIECE_BYTES,
    SMALL,
    CutDocument,
    LongArray,
    Piece,
    count_commas,
    cut,
    has_booleans,
    is_cut,
    parse_json,
    parse_piece,
)
from foldserve.service.protocols.oip_answers import HEAD_LENGTH, OipAnswers, parameters
from foldserve.service.protocols.oip_columns import ColumnTensors
from foldserve.service.protocols.oip_tensors import InputTensor
from foldserve.service.protocols.query import NAMES
from foldserve.service.protocols.reply import Headers, Reply
from foldserve.service.protocols.request import DecodedRequest, SlowBody
from foldserve.service.protocols.rows import Columns

_MEDIA_TYPES = (None, b"application/json", b"application/octet-stream")
# The largest JSON text of one column, in bytes. Parsing a text of this size blocks the interpreter for about 30 ms.
_MAX_COLUMN_BYTES = 4 * 2**20
# The largest number of JSON values that one tensor may have besides its data, such as the name and the shape.
_MAX_MEMBERS = 32

# The largest number of digits in Inference-Header-Content-Length. A limit is needed because Python takes long to
# convert thousands of digits to an int.
_MAX_DIGITS = 18
# A codec remembers at most `_MAX_KNOWN` JSON texts that come before binary rows. Only texts of at most
# `_MAX_KNOWN_BYTES` bytes are remembered.
_MAX_KNOWN, _MAX_KNOWN_BYTES = 256, 2048

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Known(NamedTuple):
    """The parsed content of a JSON text that comes before binary rows.

    Most clients send the same JSON text in each request.

    size: the number of bytes of the rows. rows: the number of rows. timeout: the timeout of the request, in seconds.
    """

    size: int
    datatype: str
    rows: int
    encode: Callable[[Outputs], Reply]
    timeout: float | None


class OipCodec:
    """Decodes the requests of one model, and encodes its answers."""

    def __init__(self, manifest: Manifest, max_rows: int, piece_bytes: int = PIECE_BYTES) -> None:
        self._columns = Columns(manifest.features)
        self._input = manifest.input.name
        self._answers = OipAnswers(manifest)
        self._column_tensors = ColumnTensors(manifest, max_rows)
        self._tensor = InputTensor(self._input, self._columns, max_rows)
        width = self._columns.width
        row_bytes = max(MAX_ELEMENT_BYTES, 1024 * width)
        self._array = LongArray(("inputs", 0, "data"), "values", max_rows * width, row_bytes, piece_bytes)
        # A request with one tensor for each column has a tensor for each feature. A request with one tensor for each
        # column may also have tensors for columns that training left out.
        columns = width + len(manifest.ignored)
        self._tensors = LongArray(("inputs",), "tensors", columns, _MAX_COLUMN_BYTES, piece_bytes)
        self._known: dict[bytes, _Known] = {}  # the keys are JSON texts without an id
        self._one_tensor = re.compile(rb'"name"\s*:\s*' + re.escape(orjson.dumps(self._input)))

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request: JSON, JSON and binary tensors, or raw rows.

        Raises `InvalidInput` and `UnsupportedMedia`. Raises `SlowBody` if `fast_only` is true and decoding would take
        long.
        """
        if media_type(headers) not in _MEDIA_TYPES:
            raise UnsupportedMedia("the Content-Type is neither application/json nor application/octet-stream")
        head, tail = body, None
        if (length := headers.get(HEAD_LENGTH)) is not None:
            digits = length.strip()
            if not digits.isdigit() or len(digits) > _MAX_DIGITS or (size := int(digits)) > len(body):
                raise InvalidInput("Inference-Header-Content-Length is not a length within the body")
            tail = memoryview(body)[size:]
            if tail:
                head = body[:size]
                if (known := self._known.get(bytes(head) if size <= _MAX_KNOWN_BYTES else b"")) is not None:
                    return self._with_known(known, tail)
            if not head:
                return self._with_answer({"parameters": {"binary_data_output": True}}, self._tensor.from_raw(tail))
        if len(head) <= SMALL:
            return self._with_rows(parse_json(head), tail, head, None, fast_only=False)
        document = self._cut_tensor(head)
        if document is None:
            return self._by_column(head, tail, fast_only=fast_only)
        return self._with_rows(document.around, tail, head, document, fast_only=fast_only)

    def _cut_tensor(self, head: bytes | bytearray) -> CutDocument | None:
        """Cut the data of the only tensor out of a large JSON text. Return None if the text has other tensors."""
        try:
            document = cut(head, self._array)
        except InvalidInput:
            near_end = max(0, len(head) - MAX_AROUND)
            if self._one_tensor.search(head, 0, MAX_AROUND) or self._one_tensor.search(head, near_end):
                raise
            return None
        return document if _has_one_tensor(document.around, self._input) else None

    def _by_column(self, head: bytes | bytearray, tail: memoryview | None, *, fast_only: bool) -> DecodedRequest:
        """Decode a large request with a tensor for each column."""
        if fast_only:
            raise SlowBody
        document = cut(head, self._tensors)
        request = document.around
        if type(request) is not dict or not is_cut(request.get("inputs")):
            raise InvalidInput('the body is not an object with an array "inputs"')
        tensors = (tensor for piece in document.pieces for tensor in self._parse_tensors(head, piece))
        return self._with_answer(request, *self._column_tensors.read(tensors, tail))

    def _parse_tensors(self, head: bytes | bytearray, piece: Piece) -> list[Any]:
        """Parse the tensors in a piece. Raises `InvalidInput` if a column may have more rows than allowed."""
        most = piece.elements * (self._column_tensors.max_rows + _MAX_MEMBERS)
        if piece.brackets > 2 * most or count_commas(head, piece) > most:
            raise InvalidInput(f'"inputs" has more rows than the {self._column_tensors.max_rows} that are allowed')
        return parse_piece(head, piece)

    def for_query(self, query: bytes, /) -> OipCodec:
        """Return the codec for requests with this query in the URL.

        This protocol defines no query parameters. The parameters of the friendly protocol raise `InvalidInput`, because
        they would have no effect here. Unknown parameters are ignored, because a client may send them for a proxy.
        """
        if any(part.partition(b"=")[0] in NAMES for part in query.split(b"&")):
            raise InvalidInput("named, top and warnings are query parameters of /v1/models/...:predict only")
        return self

    # --- requests -----------------------------------------------------------------------------------------------------

    def _with_rows(
        self,
        request: Any,
        tail: memoryview | None,
        head: bytes | bytearray,
        document: CutDocument | None,
        *,
        fast_only: bool,
    ) -> DecodedRequest:
        """Decode a parsed request.

        tail: the bytes after the JSON; None if no header gives the length of the JSON. head: the JSON. document: the
        JSON without its long array; None if the JSON is small.
        """
        if not _has_one_tensor(request, self._input):
            if type(request) is not dict or type(request.get("inputs")) is not list:
                raise InvalidInput('the body is not an object with an array "inputs"')
            return self._with_answer(request, *self._column_tensors.read(request["inputs"], tail))
        (tensor,) = request["inputs"]
        count = self._tensor.rows_in(tensor.get("shape"))
        datatype = self._tensor.check_datatype(tensor.get("datatype"))
        size = parameters(tensor).get("binary_data_size")
        data = tensor.get("data")
        if size is not None:
            if "data" in tensor:
                raise InvalidInput(f'{self._input!r} has both "data" and a binary_data_size')
            rows = self._tensor.from_binary(tail, size, datatype, count)
        elif tail:
            raise InvalidInput("there are more bytes after the JSON than the tensors' binary_data_size")
        elif type(data) is not list:
            raise InvalidInput(f'{self._input!r} has neither an array "data" nor a binary_data_size')
        elif document is None:
            rows = self._tensor.from_json(data, datatype, count, booleans=has_booleans(head))
        elif is_cut(data):
            rows = self._tensor.from_pieces(head, document, datatype, count, fast_only=fast_only)
        else:
            raise InvalidInput(f'{self._input!r} has "data" more than once')
        decoded = self._with_answer(request, rows)
        if size is not None and decoded.identity is None and len(head) <= _MAX_KNOWN_BYTES:
            self._remember(bytes(head), _Known(size, datatype, count, decoded.encode, decoded.timeout))
        return decoded

    def _remember(self, head: bytes, known: _Known) -> None:
        """Remember the content of a JSON text that came before binary rows."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[head] = known

    def _with_known(self, known: _Known, tail: memoryview) -> DecodedRequest:
        """Decode the binary rows that come after a known JSON text. Raises `InvalidInput`."""
        rows = self._tensor.from_binary(tail, known.size, known.datatype, known.rows)
        return DecodedRequest(rows, known.encode, known.timeout, self._columns.count(rows))

    def _with_answer(
        self, request: dict[str, Any], rows: Rows, counted: Counter[tuple[Unusual, str]] | None = None
    ) -> DecodedRequest:
        """Return the decoded request. The options for the answer are checked before the model runs.

        Raises `InvalidInput`.
        """
        counts = self._columns.count(rows)
        if counted:
            counted.update(counts or {})
            counts = counted
        if len(request) == 1 and "inputs" in request:  # most requests have no options
            return DecodedRequest(rows, self._answers.json, None, counts)
        identity = request.get("id")
        if identity is not None and (type(identity) is not str or _CONTROL.search(identity)):
            raise InvalidInput('"id" is not a string, or holds a control character')
        timeout = parameters(request).get("timeout", 0)
        if type(timeout) is not int or timeout < 0:
            raise InvalidInput('the parameter "timeout" is not a number of microseconds')
        encode = self._answers.encoder(request, identity)
        deadline = timeout / 1e6 if timeout else None
        return DecodedRequest(rows, encode, deadline, counts, identity=identity)


def _has_one_tensor(request: Any, name: str) -> bool:
    """Return whether a parsed request has exactly one tensor, and this tensor is named `name`."""
    tensors = request.get("inputs") if type(request) is dict else None
    return type(tensors) is list and len(tensors) == 1 and type(tensors[0]) is dict and tensors[0].get("name") == name
