"""Reads the bodies of HTTP/1.1 requests, and checks their framing and their limits.

This module does not depend on sockets or endpoints. A reader stops after the last byte of the body. The packet with the
last byte may also contain the next request, which must wait for the response. The parser httptools does not report the
offset at which a chunked body ends. A chunked body always ends with a blank line, CR LF CR LF, because httptools
refuses lines without CR. To find the end of the body, each call of `read` passes to httptools only the bytes up to the
next blank line. For a body with a Content-Length, the reader counts the bytes itself.
"""

from __future__ import annotations

import math

import httptools

from foldserve.service.errors import HeadTooLarge, InvalidHttp, TooLarge
from foldserve.service.http.head import Head, end_of_block
from foldserve.service.protocols.body import Body, BodyMemory


class BodyReader:
    """Reads the body after one head.

    The constructor raises `TooLarge` or `MemoryFull` if the Content-Length is too large. max_head: the largest size in
    bytes of the trailers, and also of the framing between two chunks. max_body: the largest number of bytes of a body
    that is collected; None if the body is not collected. memory: counts the bytes of the collected body. complete:
    whether the last byte of the request has been read.
    """

    __slots__ = (
        "_content",
        "_framing_size",
        "_left",
        "_max_body",
        "_max_head",
        "_memory",
        "_parser",
        "_tail",
        "complete",
    )

    def __init__(self, head: Head, max_head: int, max_body: int | None, memory: BodyMemory) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._memory = memory
        self._left = head.content_length or 0
        self.complete = head.content_length == 0
        self._content: bytes | Body = b""
        self._parser: httptools.HttpRequestParser | None = None
        if head.content_length is None:
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(head.raw)
        self._framing_size = 0
        self._tail = b""  # the last bytes that were read, because a blank line may begin there
        self._check_size(self._left)
        if max_body is not None:
            memory.check_room(self._left)

    @property
    def left(self) -> float:
        """The number of bytes of the body that are not read yet; infinite for a chunked body."""
        return self._left if self._parser is None else math.inf

    def read(self, data: bytes, start: int) -> int:
        """Read from `data[start:]`. Return the offset of the first unread byte.

        Raises `InvalidHttp`, `HeadTooLarge`, `TooLarge`, `MemoryFull`.
        """
        if self._parser is not None:
            return self._read_chunks(self._parser, data, start)
        end = min(len(data), start + self._left)
        self._left -= end - start
        self.complete = not self._left
        if self._max_body is not None:
            if self.complete and not self._content:
                self._content = data[start:end]
            else:
                if not isinstance(self._content, Body):
                    self._content = self._memory.new_body()
                self._content.add(memoryview(data)[start:end])  # slicing `data` itself would copy the bytes once more
        return end

    def take(self) -> bytes | bytearray:
        """Return the collected body, and delete the reader's reference to the body."""
        content, self._content = self._content, b""
        return content

    def _read_chunks(self, parser: httptools.HttpRequestParser, data: bytes, start: int) -> int:
        end = end_of_block(self._tail, data, start)
        piece = data[start:end]
        self._tail = (self._tail + piece[-3:])[-3:]
        self._framing_size += len(piece)
        try:
            parser.feed_data(piece)
        except httptools.HttpParserError:
            raise InvalidHttp("the body is not in chunks") from None
        self._check_size(len(self._content))
        if self.complete:
            self._parser = None  # breaks the reference cycle between the reader and its parser
        elif self._framing_size > self._max_head:
            raise HeadTooLarge(f"the headers are larger than {self._max_head} bytes")
        return end

    def _check_size(self, size: int) -> None:
        if self._max_body is not None and size > self._max_body:
            raise TooLarge(f"the body is larger than {self._max_body} bytes")

    def on_body(self, body: bytes) -> None:
        self._framing_size = 0
        if self._max_body is None:
            return
        if isinstance(self._content, Body):
            self._content.add(body)
        elif not self._content:
            self._content = body
        else:
            first, self._content = self._content, self._memory.new_body()
            self._content.add(first)
            self._content.add(body)

    def on_message_complete(self) -> None:
        self.complete = True
