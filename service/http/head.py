"""Parses the heads of HTTP/1.1 requests, checks their limits, and caches the parsed heads.

This module does not depend on bodies or sockets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import httptools

from foldserve.service.errors import HeadTooLarge, InvalidHttp, UrlTooLong
from foldserve.service.protocols.reply import Headers
from foldserve.service.telemetry.trace_context import safe_id

BLANK_LINE = b"\r\n\r\n"
_MAX_URL = 8192
# This pattern is only for heads that httptools has accepted, because in these heads each line after the first line is
# one header.
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)
# A host, as RFC 3986, section 3.2.2 defines it, and an optional port. The host may be empty.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::[0-9]*)?")
_MAX_CACHED = 256
_MAX_CACHED_BYTES = 2048


@dataclass(slots=True)  # not frozen, because `__init__` of a frozen class takes three times as long
class Head:
    """The request line and the headers of a request. Requests share this object, so the object must not be changed.

    raw: the bytes of the head, without an Upgrade header. headers: a mapping from the name of each header, in lower
    case, to its value. If several headers have the same name, the last value counts. content_length: the number of
    bytes of the body; None if the body is chunked. request_id: the value of X-Request-Id; empty if the header is
    missing or its value is not safe.
    """

    raw: bytes
    method: bytes
    url: bytes
    headers: Headers
    content_length: int | None
    keep_alive: bool
    request_id: bytes

    def check_path(self) -> None:
        """Raise `InvalidHttp` if the URL has no path."""
        if not self.url.startswith(b"/"):
            try:
                path = httptools.parse_url(self.url).path
            except httptools.HttpParserInvalidURLError:
                path = None
            if path is None:
                raise InvalidHttp("the URL has no path")


class Heads(dict[bytes, Head | None]):
    """A cache of parsed heads. Most clients send the same head with each request.

    Each key is the bytes of a head, including the blank line at its end.

    check: a function that is called with the headers of each parsed head. `check` raises an error to refuse a request.
    If a head is not in the cache, the cache parses the head. The value is None if the bytes are not a complete head. A
    look-up may raise `InvalidHttp`, `UrlTooLong`, `HeadTooLarge`, or an error that `check` raises.
    """

    def __init__(self, max_head: int, check: Callable[[Headers], object] = lambda _: None) -> None:
        super().__init__()
        self.max_head = max_head
        self._check = check

    def __missing__(self, raw: bytes) -> Head | None:
        if not raw.endswith(BLANK_LINE) or raw.isspace():
            return None
        head = _Collector(raw).head(self.max_head)
        self._check(head.headers)
        if len(raw) <= _MAX_CACHED_BYTES:
            if len(self) >= _MAX_CACHED:
                self.clear()
            self[raw] = head
        return head


class _Collector:
    """Receives the callbacks of httptools for one complete head."""

    __slots__ = ("_headers", "_keep_alive", "_parser", "_raw", "_url")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._keep_alive = False

    def head(self, max_head: int) -> Head:
        parser = httptools.HttpRequestParser(self)
        self._parser = parser
        upgrades = False
        try:
            parser.feed_data(self._raw)
        except httptools.HttpParserUpgrade:
            upgrades = True
        except httptools.HttpParserError:
            raise InvalidHttp("the bytes are not an HTTP request") from None
        finally:
            del self._parser  # breaks the reference cycle between the collector and its parser
        _check_size(self._url, self._raw, max_head)
        method = parser.get_method()
        if method == b"CONNECT":
            raise InvalidHttp("this server is not a proxy")
        headers = dict(self._headers)
        self._check_host(headers)
        version = parser.get_http_version()
        if version == "1.1":
            if b"host" not in headers:
                raise InvalidHttp("the Host header is missing")
        elif version != "1.0":
            raise InvalidHttp("the version of HTTP is neither 1.1 nor 1.0")
        return Head(
            # Java's HTTP client offers HTTP/2 with an Upgrade header. If a request had an Upgrade header, httptools and
            # uvicorn would skip its body.
            _UPGRADE.sub(b"", self._raw) if upgrades else self._raw,
            method,
            self._url,
            headers,
            # The parser httptools refuses a Content-Length that is not only digits, and a Content-Length together with
            # a Transfer-Encoding.
            None if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0)),
            self._keep_alive and version == "1.1",
            safe_id(headers.get(b"x-request-id", b"")),
        )

    def _check_host(self, headers: Headers) -> None:
        repeated = len(headers) < len(self._headers) and [name for name, _ in self._headers].count(b"host") > 1
        if repeated or not _is_host(headers.get(b"host", b"")):
            raise InvalidHttp("the Host header must be there once, and be a host")

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        # `should_keep_alive` is read here, because httptools resets its value later if no body follows
        self._keep_alive = self._parser.should_keep_alive()


class HeadReader:
    """Reads the heads of one connection from packets of any size."""

    __slots__ = ("_heads", "_parser", "_raw", "_url")

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._raw = b""
        # This parser checks an incomplete head, so that an invalid head is refused before its end arrives.
        self._parser: httptools.HttpRequestParser | None = None
        self._url = b""

    @property
    def begun(self) -> bool:
        """Whether the first byte of a head has arrived. Empty lines before a head do not belong to the head."""
        return bool(self._raw) and not self._raw.isspace()

    def read(self, data: bytes, start: int) -> tuple[Head | None, int]:
        """Read from `data[start:]`. Return the head if it is complete, and the offset of the first unread byte.

        Raises `InvalidHttp`, `UrlTooLong`, `HeadTooLarge`.
        """
        end = end_of_block(self._raw[-3:], data, start)
        piece = data[start:end]
        self._raw += piece
        head = self._heads[self._raw] if self._raw.endswith(BLANK_LINE) else None
        if head is None:
            self._check(piece)
        else:
            self._raw = self._url = b""
            self._parser = None
        return head, end

    def _check(self, piece: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserError:
            raise InvalidHttp("the bytes are not an HTTP request") from None
        _check_size(self._url, self._raw, self._heads.max_head)

    def on_url(self, url: bytes) -> None:
        self._url += url


@lru_cache(_MAX_CACHED)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def _check_size(url: bytes, raw: bytes, max_head: int) -> None:
    if len(url) > _MAX_URL:
        raise UrlTooLong(f"the URL is longer than {_MAX_URL} bytes")
    if len(raw) > max_head:
        raise HeadTooLarge(f"the headers are larger than {max_head} bytes")


def end_of_block(before: bytes, data: bytes, start: int) -> int:
    """Return the offset after the first blank line in `data[start:]`; the length of `data` if there is no blank line.

    before: at most three bytes, which come directly before `data[start:]`; the blank line may begin in these bytes.
    """
    if before:
        found = (before + data[start : start + 3]).find(BLANK_LINE)
        if found >= 0:
            return start + found + len(BLANK_LINE) - len(before)
    found = data.find(BLANK_LINE, start)
    return len(data) if found < 0 else found + len(BLANK_LINE)
