"""How a body is encoded: media types, and gzip and deflate in both directions. Pure functions of headers and bytes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Container

from foldserve.service.errors import InvalidInput, TooLarge, UnsupportedMedia
from foldserve.service.protocols.reply import Headers, Reply

# zlib's own names for the two: 16 + the window for gzip, the window alone for deflate (RFC 9110 8.4.1: zlib's format).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
# A smaller answer fits one packet as it is.
_WORTH_COMPRESSING = 1400
_FASTEST = 1
# Each of them may take as long as the largest body.
_MOST_ENCODINGS = 2
_QUALITY = re.compile(rb"[qQ] *= *([01](?:\.[0-9]{0,3})?)")


def media_type(headers: Headers) -> bytes | None:
    """Give the body's media type without its parameters, in lower case; None when there is none."""
    value = headers.get(b"content-type")
    if value is None or value == b"application/json":  # what nearly all send
        return value
    return value.partition(b";")[0].strip().lower()


def preferred(headers: Headers, name: bytes, offered: Container[bytes]) -> bytes | None:
    """Give what the client likes best, in the header `name`, of what is offered here: by q, and then by order."""
    best, liked = None, 0.0
    for choice in headers.get(name, b"").split(b","):
        value, _, parameters = choice.partition(b";")
        if (value := value.strip().lower()) in offered:
            quality = _QUALITY.fullmatch(parameters.strip())
            weight = float(quality[1]) if quality else 1.0
            if weight > liked:
                best, liked = value, weight
    return best


def inflated(headers: Headers, body: bytes, cap: int) -> bytes:
    """Undo the body's Content-Encoding.

    Raises `UnsupportedMedia` for another one than gzip, deflate and identity, `InvalidInput` when the body is not in
    it, `TooLarge` before more than `cap` bytes have come out.
    """
    encodings = headers.get(b"content-encoding", b"identity").split(b",")
    if len(encodings) > _MOST_ENCODINGS:
        raise UnsupportedMedia(f"the body is encoded more than {_MOST_ENCODINGS} times")
    for encoding in reversed(encodings):
        name = encoding.strip().lower()
        if name != b"identity":
            body = _inflated(name, body, cap)
    return body


def _inflated(encoding: bytes, body: bytes, cap: int) -> bytes:
    if encoding not in _WINDOW:
        raise UnsupportedMedia("the Content-Encoding is none of gzip, deflate and identity")
    stream = zlib.decompressobj(_WINDOW[encoding])
    try:
        plain = stream.decompress(body, cap + 1)
    except zlib.error:
        raise InvalidInput("the body is not in its Content-Encoding") from None
    if len(plain) > cap:
        raise TooLarge(f"the body is larger than {cap} bytes once it is decompressed")
    if not stream.eof or stream.unused_data:
        raise InvalidInput("the body is not in its Content-Encoding")
    return plain


def compressed(headers: Headers, reply: Reply) -> Reply:
    """Compress an answer that is worth it, in the first way that the client names and that is known here."""
    if len(reply.body) < _WORTH_COMPRESSING:
        return reply
    encoding = preferred(headers, b"accept-encoding", (b"gzip", b"deflate"))
    if encoding is None:
        return reply
    stream = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW[encoding])
    body = stream.compress(reply.body) + stream.flush()
    return Reply(reply.status, (*reply.headers, (b"content-encoding", encoding), (b"vary", b"accept-encoding")), body)
