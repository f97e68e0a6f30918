"""The Open Inference Protocol, version 2: tensors in, tensors out, as JSON or binary.

    {"id": ..., "parameters": {...}, "inputs": [{"name", "shape", "datatype", "data" | "parameters"}], "outputs": [...]}
    -> {"model_name", "model_version", "id", "outputs": [{"name", "datatype", "shape", "data" | "parameters"}]}

The header Inference-Header-Content-Length gives the length of the JSON. The bytes of the tensors follow it,
little-endian and row-major. A length of 0 means that the whole body is rows of FP32.

Every value is a number. A missing value is NaN in binary and null in JSON. A boolean is 0 or 1. A category is its
index. A category that training has not seen has the index after the last known category.

This module owns the request and the answer of one inference. It knows no route, no batcher and no runtime.

https://github.com/kserve/open-inference-protocol, and the binary tensor data extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NoReturn

import numpy as np
import orjson

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.protocols.content import media_type
from foldserve.service.protocols.json_text import (
    MAX_ELEMENT_BYTES,
    PIECE_BYTES,
    SMALL,
    CutDocument,
    LongArray,
    cut,
    is_cut,
    parse_json,
)
from foldserve.service.protocols.oip_tensors import InputTensor
from foldserve.service.protocols.reply import JSON, Headers, Reply
from foldserve.service.protocols.request import DecodedRequest
from foldserve.service.protocols.rows import Columns

HEAD_LENGTH = b"inference-header-content-length"
_MEDIA_TYPES = (None, b"application/json", b"application/octet-stream")
_BINARY = (b"content-type", b"application/octet-stream")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class OipCodec:
    """Decodes the requests of one model, and encodes its answers."""

    def __init__(self, manifest: Manifest, max_rows: int, piece_bytes: int = PIECE_BYTES) -> None:
        self._model = {"model_name": manifest.name, "model_version": str(manifest.version)}
        self._columns = Columns(manifest.features)
        self._input = manifest.input.name
        self._output = manifest.output.name
        self._tensor = InputTensor(self._input, self._columns, max_rows)
        width = self._columns.width
        row_bytes = max(MAX_ELEMENT_BYTES, 1024 * width)
        self._array = LongArray(("inputs", 0, "data"), "values", max_rows * width, row_bytes, piece_bytes)

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request: JSON, JSON and binary tensors, or raw rows.

        Raises `InvalidInput` and `UnsupportedMedia`. With `fast_only`, raises `SlowBody` if decoding would take long.
        """
        if media_type(headers) not in _MEDIA_TYPES:
            raise UnsupportedMedia("the Content-Type is neither application/json nor application/octet-stream")
        head, tail = body, None
        if (length := headers.get(HEAD_LENGTH)) is not None:
            # 18 digits are enough for any length. More digits are refused, because Python is slow to convert thousands
            # of digits.
            if not re.fullmatch(rb"[0-9]{1,18}", length.strip()) or int(length) > len(body):
                raise InvalidInput("Inference-Header-Content-Length is not a length within the body")
            tail = memoryview(body)[int(length) :]
            if tail:
                head = body[: int(length)]
            if not head:
                return self._with_answer({"parameters": {"binary_data_output": True}}, self._tensor.from_raw(tail))
        if len(head) <= SMALL:
            return self._with_rows(parse_json(head), tail, head, None, fast_only=False)
        document = cut(head, self._array)
        return self._with_rows(document.around, tail, head, document, fast_only=fast_only)

    def for_query(self, _: bytes, /) -> NoReturn:
        """Raise `InvalidInput`, because this protocol has no query parameters."""
        raise InvalidInput("the Open Inference Protocol has no query parameters")

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
        JSON without its long array, if the JSON is large.
        """
        if type(request) is not dict or type(request.get("inputs")) is not list:
            raise InvalidInput('the body is not an object with an array "inputs"')
        tensors = request["inputs"]
        names = [tensor.get("name") if type(tensor) is dict else None for tensor in tensors]
        if names != [self._input]:
            raise InvalidInput(f'"inputs" is not exactly the one tensor {self._input!r}')
        (tensor,) = tensors
        count = self._tensor.rows_in(tensor.get("shape"))
        datatype = self._tensor.check_datatype(tensor.get("datatype"))
        size = _parameters(tensor).get("binary_data_size")
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
            rows = self._tensor.from_json(data, datatype, count)
        elif is_cut(data):
            rows = self._tensor.from_pieces(head, document, datatype, count, fast_only=fast_only)
        else:
            raise InvalidInput(f'{self._input!r} has "data" more than once')
        return self._with_answer(request, rows)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _with_answer(self, request: dict[str, Any], rows: Rows) -> DecodedRequest:
        """Check the request's options for the answer, before the rows are run. Raises `InvalidInput`."""
        identity = request.get("id")
        if identity is not None and (type(identity) is not str or _CONTROL.search(identity)):
            raise InvalidInput('"id" is not a string, or holds a control character')
        parameters = _parameters(request)
        timeout = parameters.get("timeout", 0)
        if type(timeout) is not int or timeout < 0:
            raise InvalidInput('the parameter "timeout" is not a number of microseconds')
        binary = _flag(parameters, "binary_data_output", default=False)
        wanted = request.get("outputs", [])
        if type(wanted) is not list or any(type(output) is not dict for output in wanted):
            raise InvalidInput('"outputs" is not an array of objects')
        if wanted:
            if [output.get("name") for output in wanted] != [self._output]:
                raise InvalidInput(f'"outputs" is not exactly the one tensor {self._output!r}')
            of_output = _parameters(wanted[0])
            if of_output.get("classification"):
                raise InvalidInput("the classification extension is not offered: ask for the tensor itself")
            binary = _flag(of_output, "binary_data", default=binary)
        named = self._model if identity is None else {**self._model, "id": identity}
        encode = partial(self._binary if binary else self._json, named)
        deadline = timeout / 1e6 if timeout else None
        return DecodedRequest(rows, encode, deadline, self._columns.count(rows), identity=identity)

    def _output_tensor(self, outputs: Outputs) -> dict[str, Any]:
        return {"name": self._output, "datatype": "FP32", "shape": outputs.shape}

    def _json(self, named: dict[str, Any], outputs: Outputs) -> Reply:
        tensor = {**self._output_tensor(outputs), "data": np.ascontiguousarray(outputs).ravel()}
        answer = {**named, "outputs": [tensor]}
        return Reply(200, (JSON,), orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def _binary(self, named: dict[str, Any], outputs: Outputs) -> Reply:
        content = outputs.astype("<f4", copy=False).tobytes()
        tensor = {**self._output_tensor(outputs), "parameters": {"binary_data_size": len(content)}}
        head = orjson.dumps({**named, "outputs": [tensor]})
        return Reply(200, (_BINARY, (HEAD_LENGTH, b"%d" % len(head))), head + content)


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if type(parameters) is not dict:
        raise InvalidInput('"parameters" is not an object')
    for name in parameters:
        if name.startswith("shared_memory"):
            raise InvalidInput("the shared memory extensions are not offered: send the tensor itself")
    return parameters


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidInput(f'the parameter "{name}" is neither true nor false')
    return value
