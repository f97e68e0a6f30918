"""The Open Inference Protocol, version 2: tensors in, tensors out, as JSON or binary.

    {"id": ..., "parameters": {...}, "inputs": [{"name", "shape", "datatype", "data" | "parameters"}], "outputs": [...]}
    -> {"model_name", "model_version", "id", "outputs": [{"name", "datatype", "shape", "data" | "parameters"}]}

The header Inference-Header-Content-Length gives the length of the JSON. The bytes of the tensors follow it,
little-endian and row-major. A length of 0 means that the whole body is rows of FP32.

Every value is a number. A missing value is NaN in binary and null in JSON, and a boolean is 0 or 1. A category is its
index; a category that training has not seen is the index after the last.

This module owns the request and the answer of one inference. It knows no route, no batcher and no runtime.

https://github.com/kserve/open-inference-protocol, and the binary tensor data extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.protocols.categories import NUMBERS
from foldserve.service.protocols.content import media_type
from foldserve.service.protocols.reply import JSON, Headers, Reply
from foldserve.service.protocols.rows import (
    SIMDJSON_ERRORS,
    SMALL_BODY,
    Columns,
    DecodedRequest,
    SlowBody,
    count_byte,
    has_more_brackets,
    members,
    parse_json,
    proxies,
    small_value,
)

HEAD_LENGTH = b"inference-header-content-length"
_MEDIA_TYPES = (None, b"application/json", b"application/octet-stream")
_BINARY = (b"content-type", b"application/octet-stream")

# https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md#tensor-data-types
# NumPy has no BF16, the upper half of a float32: its bits are read as an integer and shifted.
_DTYPES: dict[str, npt.DTypeLike] = {
    "BOOL": "u1",
    **{"UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8"},
    **{"INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"},
    **{"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2"},
}
_INTEGERS = {name for name in _DTYPES if "INT" in name}
_LARGEST = {"FP16": float(np.finfo(np.float16).max), "BF16": 2.0**128 - 2.0**120}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class OipCodec:
    """Decodes the requests of one model, and encodes its answers."""

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self._model = {"model_name": manifest.name, "model_version": str(manifest.version)}
        self._columns = Columns(manifest.features)
        self._input = manifest.input.name
        self._output = manifest.output.name
        self._max_rows = max_rows

    def decode(self, headers: Headers, body: bytes, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request: JSON, JSON and binary tensors, or raw rows.

        Raises `InvalidInput` and `UnsupportedMedia`; with `fast_only`, `SlowBody` where decoding would take long.
        """
        if media_type(headers) not in _MEDIA_TYPES:
            raise UnsupportedMedia("the Content-Type is neither application/json nor application/octet-stream")
        head, tail = body, None
        if (length := headers.get(HEAD_LENGTH)) is not None:
            # 18 digits are enough for any length. Python takes long to convert thousands of them.
            if not re.fullmatch(rb"[0-9]{1,18}", length.strip()) or int(length) > len(body):
                raise InvalidInput("Inference-Header-Content-Length is not a length within the body")
            head, tail = body[: int(length)], memoryview(body)[int(length) :]
            if not head:
                return self._raw(tail)
        # A right body has one bracket for each row, and a few more. The rest leaves room for small mistakes, which get
        # a clearer message below.
        if has_more_brackets(head, 2 * self._max_rows + 200_000):
            raise InvalidInput(f"there are too many arrays and objects; at most {self._max_rows} rows are allowed")
        if len(head) > SMALL_BODY:
            if not tail and (plain := self._plain(head)) is not None:
                return plain
            if fast_only:
                raise SlowBody
        return self._thorough(parse_json(head), tail)

    # --- requests ----------------------------------------------------------------------------------------------

    def _plain(self, body: bytes) -> DecodedRequest | None:
        """Decode the usual large body, one tensor of floats. Returns None for a body that `_thorough` must judge."""
        try:
            request = proxies(body)
            (tensor,) = map(members, request["inputs"])
            data = tensor.pop("data")
            head = {name: small_value(value) for name, value in tensor.items()}
            if head["datatype"] not in ("FP32", "FP64") or "parameters" in head:
                return None
            rest = {name: small_value(value) for name, value in request.items() if name != "inputs"}
            # "inputs", "shape", "data" and, if it is given, "outputs" open one array each. All others belong to rows.
            rows = self._columns.from_simdjson(data, count_byte(body, b"[") - 3 - ("outputs" in rest))
            if rows is None or len(rows) != self._count(head) or head["name"] != self._input:
                return None
        except (*SIMDJSON_ERRORS, InvalidInput):
            return None
        return self._decoded(rest, rows)

    def _thorough(self, request: Any, tail: memoryview | None) -> DecodedRequest:
        """Decode a parsed request. tail: the bytes after the JSON, or None without a length of the JSON."""
        if type(request) is not dict or type(request.get("inputs")) is not list:
            raise InvalidInput('the body is not an object with an array "inputs"')
        tensors = request["inputs"]
        names = [tensor.get("name") if type(tensor) is dict else None for tensor in tensors]
        if names != [self._input]:
            raise InvalidInput(f'"inputs" is not exactly the one tensor {self._input!r}')
        (tensor,) = tensors
        count = self._count(tensor)
        datatype = tensor.get("datatype")
        if type(datatype) is not str or datatype not in _DTYPES:
            raise InvalidInput(f"the datatype of {self._input!r} is not numeric")
        size = _parameters(tensor).get("binary_data_size")
        if size is None:
            if tail:
                raise InvalidInput("there are more bytes after the JSON than the tensors' binary_data_size")
            rows = self._from_json(tensor.get("data"), datatype, count)
        elif "data" in tensor:
            raise InvalidInput(f'{self._input!r} has both "data" and a binary_data_size')
        else:
            rows = self._from_binary(tail, size, datatype, count)
        return self._decoded(request, rows)

    def _count(self, tensor: dict[str, Any]) -> int:
        """Return the number of rows in the tensor's shape. Raises `InvalidInput` for a wrong shape."""
        shape, width = tensor.get("shape"), self._columns.width
        if type(shape) is not list or any(type(size) is not int for size in shape):
            raise InvalidInput(f"the shape of {self._input!r} is not an array of integers")
        if len(shape) != 2 or shape[1] != width or shape[0] < 1:
            raise InvalidInput(f"the shape of {self._input!r} is not [rows, {width}] with at least one row")
        if shape[0] > self._max_rows:
            raise InvalidInput(f"{self._input!r} has more rows than the {self._max_rows} that are allowed")
        return int(shape[0])

    def _from_json(self, data: Any, datatype: str, count: int) -> Rows:
        width = self._columns.width
        if type(data) is not list:
            raise InvalidInput(f'{self._input!r} has neither an array "data" nor a binary_data_size')
        if data and type(data[0]) is list:
            if len(data) != count or any(type(row) is not list or len(row) != width for row in data):
                raise InvalidInput(f'the "data" of {self._input!r} is not {count} rows of {width} values')
            data = list(chain.from_iterable(data))
        if len(data) != count * width:
            raise InvalidInput(f'the "data" of {self._input!r} has {len(data)} values, its shape {count * width}')
        if datatype == "BOOL":
            if not all(type(value) is bool or (type(value) is int and value in (0, 1)) for value in data):
                raise InvalidInput(f"{self._input!r} is BOOL, and holds a value that is neither true, false, 0 nor 1")
            data = list(map(int, data))
        elif datatype in _INTEGERS:
            self._check_integers(data, datatype)
        rows = self._columns.from_json_numbers(data)
        if datatype in _LARGEST and (np.abs(rows) > _LARGEST[datatype]).any():
            raise InvalidInput(f"{self._input!r} holds a value that is too large for {datatype}")
        return rows

    def _check_integers(self, data: list[Any], datatype: str) -> None:
        if not set(map(type, data)) <= NUMBERS:
            raise InvalidInput(f"{self._input!r} is {datatype}, and holds a value that is not a number")
        bounds = np.iinfo(np.dtype(_DTYPES[datatype]))
        if not (int(bounds.min) <= min(data) and max(data) <= int(bounds.max)):
            raise InvalidInput(f"{self._input!r} holds a value that is out of the range of {datatype}")
        if not all(type(value) is int or value.is_integer() for value in data):
            raise InvalidInput(f"{self._input!r} is {datatype}, and holds a fraction")

    def _from_binary(self, tail: memoryview | None, size: Any, datatype: str, count: int) -> Rows:
        dtype, width = np.dtype(_DTYPES[datatype]), self._columns.width
        if tail is None:
            raise InvalidInput("there is a binary_data_size, and no header Inference-Header-Content-Length")
        if type(size) is not int or size != math.prod((count, width, dtype.itemsize)):
            raise InvalidInput(f"the binary_data_size of {self._input!r} is not that of its shape and datatype")
        if size != len(tail):
            raise InvalidInput(f"the bytes after the JSON are not the {size} of the tensors' binary_data_size")
        values: npt.NDArray[Any] = np.frombuffer(tail, dtype).reshape(count, width)
        if datatype == "BOOL" and (values > 1).any():
            raise InvalidInput(f"{self._input!r} is BOOL, and holds a byte that is neither 0 nor 1")
        if datatype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return self._columns.from_array(values)

    def _raw(self, tail: memoryview) -> DecodedRequest:
        count, rest = divmod(len(tail), 4 * self._columns.width)
        if rest:
            raise InvalidInput(f"the body is not rows of {self._columns.width} FP32 values")
        self._count({"shape": [count, self._columns.width]})
        return self._decoded(
            {"parameters": {"binary_data_output": True}}, self._from_binary(tail, len(tail), "FP32", count)
        )

    # --- answers -----------------------------------------------------------------------------------------------

    def _decoded(self, request: dict[str, Any], rows: Rows) -> DecodedRequest:
        """Check all that shapes the answer, before the rows are computed. Raises `InvalidInput`."""
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
        return DecodedRequest(rows, encode, timeout / 1e6 if timeout else None, self._columns.unseen(rows))

    def _tensor(self, outputs: Outputs) -> dict[str, Any]:
        return {"name": self._output, "datatype": "FP32", "shape": outputs.shape}

    def _json(self, named: dict[str, Any], outputs: Outputs) -> Reply:
        tensor = {**self._tensor(outputs), "data": np.ascontiguousarray(outputs).ravel()}
        answer = {**named, "outputs": [tensor]}
        return Reply(200, (JSON,), orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def _binary(self, named: dict[str, Any], outputs: Outputs) -> Reply:
        content = outputs.astype("<f4", copy=False).tobytes()
        tensor = {**self._tensor(outputs), "parameters": {"binary_data_size": len(content)}}
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
