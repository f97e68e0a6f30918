"""Media types and content encodings: gzip and deflate for requests, gzip for answers.

Pure functions of headers and bytes. They know neither JSON nor rows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Container

from foldserve.service.errors import InvalidInput, TooLarge, UnsupportedMedia
from foldserve.service.protocols.body import Body, BodyMemory
from foldserve.service.protocols.reply import Headers, Reply

# zlib selects the format by its window argument: 16 + the window size selects gzip, and the window size alone selects
# zlib's format. HTTP calls the latter "deflate" (RFC 9110, section 8.4.1.2).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
# A smaller answer fits one packet uncompressed.
_MIN_COMPRESSED = 1400
_FASTEST = 1
# Decoding may take as long for each encoding as for the largest body, so their number is limited.
_MAX_ENCODINGS = 2
# A body may inflate to so many times its size. Tables of numbers shrink 3 to 20 times, tables of zeros 1,000 times.
_MAX_RATIO = 200
# A body may inflate to so many bytes at any ratio.
_ANY_RATIO = 2**23
# Bytes that are decompressed at once, without the interpreter's lock.
_STEP = 2**18
_QUALITY = re.compile(rb"[qQ] *= *([01](?:\.[0-9]{0,3})?)")


def media_type(headers: Headers) -> bytes | None:
    """Return the body's media type in lower case, without parameters; None without a Content-Type."""
    value = headers.get(b"content-type")
    if value is None or value == b"application/json":  # the usual request
        return value
    return value.partition(b";")[0].strip().lower()


def preferred(headers: Headers, name: bytes, offered: Container[bytes]) -> bytes | None:
    """Return the offered value with the largest q in the header `name`, the first of equal ones; None without any."""
    best, largest = None, 0.0
    for choice in headers.get(name, b"").split(b","):
        value, _, parameters = choice.partition(b";")
        if (value := value.strip().lower()) in offered:
            quality = _QUALITY.fullmatch(parameters.strip())
            weight = float(quality[1]) if quality else 1.0
            if weight > largest:
                best, largest = value, weight
    return best


def inflated(headers: Headers, body: bytes | bytearray, max_body: int, memory: BodyMemory) -> bytes | bytearray:
    """Undo the body's Content-Encoding.

    Raises `UnsupportedMedia` for an encoding other than gzip, deflate and identity, `InvalidInput` for a body that is
    not in it, `TooLarge` before more than `max_body` bytes are inflated or many times those that were sent, and
    `MemoryFull`.
    """
    encodings = headers.get(b"content-encoding", b"identity").split(b",")
    if len(encodings) > _MAX_ENCODINGS:
        raise UnsupportedMedia(f"the body is encoded more than {_MAX_ENCODINGS} times")
    ratio_limit = max(_ANY_RATIO, _MAX_RATIO * len(body))
    for encoding in reversed(encodings):
        name = encoding.strip().lower()
        if name != b"identity":
            if name not in _WINDOW:
                raise UnsupportedMedia("the Content-Encoding is not gzip, deflate or identity")
            try:
                body = _inflate(body, _WINDOW[name], max_body, ratio_limit, memory.new_body())
            except zlib.error:
                raise InvalidInput("the body is not in its Content-Encoding") from None
    return body


def _inflate(body: bytes | bytearray, window: int, max_body: int, ratio_limit: int, inflated: Body) -> Body:
    """Append the content of `body` to `inflated`, a step at a time, so that a limit stops it early."""
    stream = zlib.decompressobj(window)
    view = memoryview(body)
    for start in range(0, len(body), _STEP):
        rest: bytes | memoryview = view[start : start + _STEP]
        while True:
            content = stream.decompress(rest, _STEP)
            inflated.add(content)
            if len(inflated) > max_body:
                raise TooLarge(f"the body is larger than {max_body} bytes once it is decompressed")
            if len(inflated) > ratio_limit:
                raise TooLarge(f"the decompressed body is more than {_MAX_RATIO} times larger; send it uncompressed")
            rest = stream.unconsumed_tail
            if not rest and len(content) < _STEP:
                break
        if stream.eof:
            if stream.unused_data or start + _STEP < len(body):
                break
            return inflated
    raise zlib.error


def compressed(headers: Headers, reply: Reply) -> Reply:
    """Compress a large answer by gzip, if the client accepts it.

    Answers never use deflate. It is gzip's compression in another wrapper, which is 12 bytes shorter and not faster.
    """
    if len(reply.body) < _MIN_COMPRESSED:
        return reply
    if preferred(headers, b"accept-encoding", (b"gzip",)) is None:
        return reply
    stream = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW[b"gzip"])
    body = stream.compress(reply.body) + stream.flush()
    return Reply(reply.status, (*reply.headers, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")), body)
