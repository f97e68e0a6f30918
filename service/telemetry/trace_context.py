"""Reads the identifiers of a request: X-Request-Id, and the trace context of W3C Trace Context, level 2.

https://www.w3.org/TR/trace-context-2/. This module does not depend on logs or OpenTelemetry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Headers = Mapping[bytes, bytes]

# These characters need no escape in a header, in a line of a log, in a URL or in a shell.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_INVALID_VERSION, _FIRST_VERSION = b"ff", b"00"


def safe_id(value: bytes) -> bytes:
    """Return the identifier from a client.

    Return empty bytes if the identifier has more than 128 characters or an unsafe character.
    """
    return value if _REQUEST_ID.fullmatch(value) else b""


@dataclass(frozen=True, slots=True)
class Parent:
    """The client's span: the span in which the client sent the request.

    flags: the flags in traceparent; the lowest bit is 1 if the client records the trace. state: the values of the
    header tracestate.
    """

    trace_id: int
    span_id: int
    flags: int
    state: tuple[str, ...]


def read_parent(headers: Headers, raw: bytes) -> Parent | None:
    """Return the span of the client, or None if the header traceparent is missing or invalid.

    headers: the headers of the request; a repeated header has only its last value here. raw: the bytes of the head,
    which contain all values of a repeated header.
    """
    value = headers.get(b"traceparent")
    if value is None:
        return None
    match = _TRACEPARENT.fullmatch(value.strip())
    if match is None or len(_values(raw, b"traceparent")) > 1:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == _INVALID_VERSION or (version == _FIRST_VERSION and rest):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), int(flags, 16), _state(headers, raw))
    return parent if parent.trace_id and parent.span_id else None


def _state(headers: Headers, raw: bytes) -> tuple[str, ...]:
    if b"tracestate" not in headers:
        return ()
    return tuple(value.decode("latin-1") for value in _values(raw, b"tracestate"))


def _values(raw: bytes, name: bytes) -> list[bytes]:
    """Return all values of one header in the head of a request. name: the name of the header in lower case."""
    return re.findall(rb"(?i)\r\n%b[ \t]*:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)" % re.escape(name), raw)
