"""The ceiling: uvicorn's constant answer. `python serve_constant.py PORT BYTES...`.

It reads the same body and answers as many bytes as foldserve does, with foldserve's loop and parser: what is left for
a framework, JSON and a model to spend. POST /0 answers the first of BYTES, /1 the second.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

ANSWERS = {f"/{i}": b"0" * int(size) for i, size in enumerate(sys.argv[2:])}


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Read the whole body, answer the constant."""
    body = bytearray()  # as foldserve gathers it
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = ANSWERS[scope["path"]]
    headers = [(b"content-length", b"%d" % len(answer)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


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
