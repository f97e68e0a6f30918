"""Handles media types and content encodings: gzip and deflate for requests, gzip for answers.

The functions of this module are pure: their results depend only on the given headers and bytes. This module does not
depend on JSON or rows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Container

from foldserve.service.errors import InvalidInput, TooLarge, UnsupportedMedia
from foldserve.service.protocols.body import Body, BodyMemory
from foldserve.service.protocols.reply import Headers, Reply

# zlib selects the format by the argument `wbits`. If `wbits` is the window size plus 16, zlib uses the gzip format. If
# `wbits` is the window size, zlib uses its own format, which HTTP calls "deflate" (RFC 9110, section 8.4.1.2).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
# An answer below this size, in bytes, fits into one packet without compression.
_MIN_COMPRESSED = 1400
_FASTEST = 1
# The largest number of encodings that one body may have. The server must decode the body once for each encoding, and
# decoding a large body takes long.
_MAX_ENCODINGS = 2
# A body may be at most this many times larger after decompression than before. Gzip makes a table of numbers 3 to 20
# times smaller, and a table of zeros 1,000 times smaller.
_MAX_RATIO = 200
# A body that has at most this number of bytes after decompression may have any compression ratio.
_ANY_RATIO = 2**23
# The number of bytes that one call of zlib decompresses. zlib does not hold the interpreter's lock while it
# decompresses.
_STEP = 2**18
# The most frequent values of Content-Type, in their usual spelling.
_USUAL_TYPES = (b"application/json", b"application/octet-stream")
_QUALITY = re.compile(rb"[qQ] *= *([01](?:\.[0-9]{0,3})?)")


def media_type(headers: Headers) -> bytes | None:
    """Return the body's media type in lower case, without parameters; None without a Content-Type."""
    value = headers.get(b"content-type")
    if value is None or value in _USUAL_TYPES:
        return value
    return value.partition(b";")[0].strip().lower()


def preferred(headers: Headers, name: bytes, offered: Container[bytes]) -> bytes | None:
    """Return the value of `offered` with the largest q in the header `name`; None if the header has no such value.

    If several values have the same q, the function returns the first of these values.
    """
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
    """Decode a body that has a Content-Encoding.

    Raises `UnsupportedMedia` for an encoding other than gzip, deflate and identity. Raises `InvalidInput` if the body
    does not have the encoding that its header names. Raises `TooLarge` if the decoded body has more than `max_body`
    bytes, or is many times larger than the encoded body. Raises `MemoryFull` if the memory has no room for the decoded
    body.
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
    """Decompress `body`, and append the content to `inflated` in steps, so that a limit stops the work early."""
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
    """Compress a large answer with gzip if the client accepts gzip.

    Answers are never compressed with deflate. Deflate compresses in the same way as gzip, and is not faster. The output
    of deflate is only 12 bytes shorter than the output of gzip.
    """
    if len(reply.body) < _MIN_COMPRESSED:
        return reply
    if preferred(headers, b"accept-encoding", (b"gzip",)) is None:
        return reply
    stream = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW[b"gzip"])
    body = stream.compress(reply.body) + stream.flush()
    return Reply(reply.status, (*reply.headers, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")), body)
