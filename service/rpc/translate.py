"""Translates gRPC messages of the Open Inference Protocol to HTTP bodies of the same protocol, and back.

Because gRPC messages are translated, gRPC and HTTP use the same codec, the same batcher and the same limits. Every
tensor becomes binary data, as in `raw_input_contents`. This module does not depend on models or servers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
import orjson

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.oip_answers import HEAD_LENGTH
from foldserve.service.protocols.reply import Headers, Reply
from foldserve.service.rpc import open_inference_pb2 as pb

# For each datatype, the member of `InferTensorContents` that contains the values, and their NumPy dtype. For FP16 and
# BF16, `InferTensorContents` has no member, so a message must have raw values.
_CONTENTS = {
    "BOOL": ("bool_contents", "u1"),
    **{name: ("int_contents", dtype) for name, dtype in (("INT8", "<i1"), ("INT16", "<i2"), ("INT32", "<i4"))},
    **{name: ("uint_contents", dtype) for name, dtype in (("UINT8", "<u1"), ("UINT16", "<u2"), ("UINT32", "<u4"))},
    **{"INT64": ("int64_contents", "<i8"), "UINT64": ("uint64_contents", "<u8")},
    **{"FP32": ("fp32_contents", "<f4"), "FP64": ("fp64_contents", "<f8")},
}
_TEXT = "BYTES"
_HEADERS = (b"x-request-priority", b"x-request-timeout-ms", b"x-request-id", b"traceparent", b"tracestate")

# https://grpc.io/docs/guides/status-codes/
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def metadata_headers(metadata: Iterable[tuple[str, str | bytes]]) -> dict[bytes, bytes]:
    """Return the metadata of a call as headers. Binary metadata is left out."""
    return {key.encode(): value.encode() for key, value in metadata if isinstance(value, str)}


def to_body(
    request: pb.ModelInferRequest, metadata: Headers, seconds_left: float | None
) -> tuple[dict[bytes, bytes], bytes]:
    """Return the headers and the body of the equivalent HTTP request. Raises `InvalidInput`.

    seconds_left: the time until the deadline of the call; None if the call has no deadline.
    """
    contents = _contents(request)
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {**_parameters(tensor.parameters), "binary_data_size": len(content)},
        }
        for tensor, content in zip(request.inputs, contents, strict=True)
    ]
    head: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
    }
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [
            {"name": output.name, "parameters": {**_parameters(output.parameters), "binary_data": True}}
            for output in request.outputs
        ]
    text = orjson.dumps(head)
    headers = {name: metadata[name] for name in _HEADERS if name in metadata}
    headers[HEAD_LENGTH] = b"%d" % len(text)
    if seconds_left is not None and b"x-request-timeout-ms" not in headers:
        headers[b"x-request-timeout-ms"] = b"%d" % min(max(0, int(seconds_left * 1e3)), 999_999_999)
    return headers, b"".join((text, *contents))


def to_response(reply: Reply) -> pb.ModelInferResponse:
    """Return the message for a reply that has the status 200 and binary tensors."""
    length = int(dict(reply.headers)[HEAD_LENGTH])
    head = orjson.loads(reply.body[:length])
    response = pb.ModelInferResponse(
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", "")
    )
    start = length
    for tensor in head["outputs"]:
        response.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        end = start + tensor["parameters"]["binary_data_size"]
        response.raw_output_contents.append(reply.body[start:end])
        start = end
    return response


def to_error(reply: Reply) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Return the code, the text and the trailing metadata for a reply whose status is an error."""
    code = _CODES.get(reply.status, grpc.StatusCode.INVALID_ARGUMENT)
    retry_after = dict(reply.headers).get(b"retry-after")
    trailing = () if retry_after is None else (("grpc-retry-pushback-ms", f"{int(retry_after) * 1000}"),)
    return code, orjson.loads(reply.body)["error"], trailing


def _contents(request: pb.ModelInferRequest) -> list[bytes]:
    """Return the bytes of each tensor. Raises `InvalidInput`."""
    raw = list(request.raw_input_contents)
    if raw:
        if len(raw) != len(request.inputs):
            raise InvalidInput("raw_input_contents does not have one entry for each tensor")
        if any(tensor.HasField("contents") for tensor in request.inputs):
            raise InvalidInput("a tensor has contents although the request has raw_input_contents")
        return raw
    return [_typed(tensor, place) for place, tensor in enumerate(request.inputs, 1)]


def _typed(tensor: Any, place: int) -> bytes:
    """Return the bytes of the typed contents of a tensor."""
    if tensor.datatype == _TEXT:
        return b"".join(struct.pack("<I", len(text)) + text for text in tensor.contents.bytes_contents)
    if tensor.datatype not in _CONTENTS:
        raise InvalidInput(f"tensor number {place} needs raw_input_contents for its datatype")
    member, dtype = _CONTENTS[tensor.datatype]
    values = np.array(getattr(tensor.contents, member), "O" if not getattr(tensor.contents, member) else None)
    if values.dtype == object:
        return b""
    target = np.dtype(dtype)
    if target.kind in "iu" and target.itemsize < values.dtype.itemsize:
        bounds = np.iinfo(target)
        if (values < bounds.min).any() or (values > bounds.max).any():
            raise InvalidInput(f"tensor number {place} holds a value that is out of the range of its datatype")
    return values.astype(target).tobytes()


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    found = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(parameter, kind)
    return found
