"""Serves a constant response with an asyncio protocol: `python serve_protocol.py PORT BYTES...`.

The server uses the same event loop and HTTP parser as foldserve, and nothing else. The server reads the same bodies as
foldserve, and its responses have as many bytes as foldserve's responses. Python servers that use uvloop and httptools
can't reach a higher rate than this server. BYTES gives the length of each response: POST /0 returns a response of the
first length, and POST /1 a response of the second length.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
RESPONSES = {b"/%d" % i: HEAD % int(size) + b"0" * int(size) for i, size in enumerate(sys.argv[2:])}


class Constant(asyncio.Protocol):
    """One connection, which stays open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""

    def data_received(self, data: bytes) -> None:
        """Parse the bytes of a request."""
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Note the URL of the request."""
        self.url = url

    def on_message_complete(self) -> None:
        """When the whole request has arrived, send the constant response."""
        self.transport.write(RESPONSES[self.url])


async def main() -> None:
    """Serve until the process is stopped."""
    server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
