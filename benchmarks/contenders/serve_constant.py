"""Serves a constant response with uvicorn: `python serve_constant.py PORT BYTES...`.

The server uses the same event loop and HTTP parser as foldserve, but no framework, no JSON and no model. The server
reads the same bodies as foldserve, and its responses have as many bytes as foldserve's responses. BYTES gives the
length of each response: POST /0 returns a response of the first length, and POST /1 a response of the second length.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

RESPONSES = {f"/{i}": b"0" * int(size) for i, size in enumerate(sys.argv[2:])}


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Read the whole body, and send the constant response."""
    body = bytearray()  # foldserve also collects the pieces of a body in a bytearray
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    content = RESPONSES[scope["path"]]
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
