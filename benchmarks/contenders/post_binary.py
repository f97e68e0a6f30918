"""Posts one body repeatedly: `python post_binary.py PORT PATH BODY HEAD_LENGTH SECONDS CONNECTIONS`.

The program uses keep-alive connections on plain sockets, with one request in flight on each connection. The program
needs only the standard library. Prints a JSON object: `seconds`, `latencies` (in seconds, one for each request that
began within SECONDS) and `errors`.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_PIECE = 2**20


@dataclass
class Connection:
    """One socket, and the progress of the request and the response on it.

    sent: bytes of the request. received: the head of the response, and perhaps a part of the body. missing: number of
    bytes of the body that have not arrived, or None until the head is complete.
    """

    socket: socket.socket
    sent: int = 0
    started: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    missing: int | None = None


def post(port: int, request: bytes, seconds: float, connections: int) -> dict[str, object]:
    """Send requests for `seconds`, then wait for the outstanding responses."""
    selector, latencies, errors, clock = selectors.DefaultSelector(), [], 0, time.perf_counter
    start = clock()
    for _ in range(connections):
        opened = socket.create_connection(("127.0.0.1", port))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setblocking(False)
        one = Connection(opened, started=clock())
        selector.register(opened, selectors.EVENT_WRITE, one)
    view, scratch, until = memoryview(request), bytearray(_PIECE), start + seconds
    while selector.get_map():
        for key, mask in selector.select():
            one = key.data
            if mask & selectors.EVENT_WRITE:
                one.sent += one.socket.send(view[one.sent : one.sent + _PIECE])
                if one.sent == len(request):
                    selector.modify(one.socket, selectors.EVENT_READ, one)
                continue
            status = _receive(one, scratch)
            if status is None:
                continue
            latencies.append(clock() - one.started)
            errors += status != "200"
            if status == "closed" or clock() >= until:
                selector.unregister(one.socket)
                one.socket.close()
                continue
            one.sent, one.missing, one.started = 0, None, clock()
            one.received.clear()
            one.sent = one.socket.send(view[:_PIECE])  # the send buffer is empty, so most sends do not wait
            if one.sent < len(request):
                selector.modify(one.socket, selectors.EVENT_WRITE, one)
    return {"seconds": clock() - start, "latencies": latencies, "errors": errors}


def _receive(one: Connection, scratch: bytearray) -> str | None:
    """Read the available bytes.

    Return the status when the response is complete, and `closed` when the server has closed the connection.
    """
    count = one.socket.recv_into(scratch)
    if not count:
        return "closed"
    if one.missing is None:
        one.received += memoryview(scratch)[:count]
        end = one.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(one.received[:end]).lower()
        length = next(int(x[15:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:"))
        one.missing = end + 4 + length - len(one.received)
    else:
        one.missing -= count
    return one.received[9:12].decode() if one.missing <= 0 else None


def main() -> None:
    """Post the body repeatedly, and print the result as JSON."""
    port, path, body, head_length, seconds, connections = sys.argv[1:]
    content = Path(body).read_bytes()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {head_length}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    print(json.dumps(post(int(port), head.encode() + content, float(seconds), int(connections))))


if __name__ == "__main__":
    main()
