"""uvicorn with a constant response: `python serve_constant.py PORT BYTES...`.

It reads the same bodies and sends as many bytes as foldserve, with the same event loop and HTTP parser, but without a
framework, JSON or a model. POST /0 gets a response of the first of BYTES, /1 of the second.
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
    """Read the whole body, and send the constant."""
    body = bytearray()  # the garbage is collected as in foldserve
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
