"""Checks the size of a call's message, and then reads the message.

This module parses the bytes of protobuf, and does not depend on calls. This module limits the number of bytes that a
message may have besides the raw bytes of its tensors. There are two reasons: from two bytes of a message, protobuf can
make objects of up to a hundred bytes, and protobuf holds Python's interpreter lock until it has read the whole message.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from foldserve.service.errors import InvalidInput
from foldserve.service.rpc import open_inference_pb2 as pb

# The largest number of bytes that a message may have outside raw_input_contents.
MAX_BYTES = 2**20
# A request has either a single tensor, or one tensor for each feature of the model. Each tensor may have raw bytes.
_MAX_FIELDS = 2**16
_RAW = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
# The wire types of protobuf. protobuf has deprecated its other two wire types.
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

_Request = TypeVar("_Request", bound=Message)  # Python 3.11 has no syntax for type parameters of functions


def read(kind: type[_Request], message: bytes) -> _Request:
    """Parse a message. Raises `InvalidInput` if the message is too large or not valid."""
    raw = _raw_bytes(message) if kind is pb.ModelInferRequest else 0
    if len(message) - raw > MAX_BYTES:
        raise InvalidInput(
            f"the request has more than {MAX_BYTES} bytes besides raw_input_contents; send tensors there"
        )
    request: _Request = kind()
    try:
        request.ParseFromString(message)
    except DecodeError:
        raise _invalid() from None
    return request


def _raw_bytes(message: bytes) -> int:
    """Return the number of bytes in raw_input_contents."""
    place = fields = raw = 0
    while place < len(message):
        fields += 1
        if fields > _MAX_FIELDS:
            raise InvalidInput(f"the request has more than {_MAX_FIELDS} tensors and parameters")
        tag, place = _varint(message, place)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, place = _varint(message, place)
        elif wire_type == _LEN:
            length, place = _varint(message, place)
            place += length
            if tag >> 3 == _RAW:
                raw += length
        elif wire_type in (_I64, _I32):
            place += 8 if wire_type == _I64 else 4
        else:
            raise _invalid()
    if place > len(message):
        raise _invalid()
    return raw


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the integer at `place`, and the place after the integer."""
    value = 0
    for index, byte in enumerate(message[place : place + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise _invalid()


def _invalid() -> InvalidInput:
    return InvalidInput("the message is not valid protobuf")
