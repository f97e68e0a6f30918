"""Measures how many new connections per second foldserve answers while keep-alive connections are busy: `python
benchmarks/new_connections.py`.

The program starts foldserve with one worker and the models of the repository.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import IO, cast

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def prediction() -> bytes:
    """Return the bytes of a request that predicts one row of digits."""
    manifest = json.loads((ROOT / "models/digits/1/manifest.json").read_text())
    body = json.dumps({"instances": manifest["golden"]["inputs"][:1]}).encode()
    return b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Busy(asyncio.Protocol):
    """A client with one keep-alive connection. The client sends the next request as soon as it receives a response."""

    answers = 0

    def __init__(self, request: bytes) -> None:
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, _: bytes) -> None:
        """Count a response, and send the next request."""
        Busy.answers += 1  # a response arrives in one packet
        self._transport.write(self._request)


async def knock(port: int, deadline: float) -> list[float]:
    """Open one connection after the other until the deadline. For each connection, return the seconds from the start of
    the connection attempt to the response.
    """
    took = []
    while (start := time.perf_counter()) < deadline:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(LIVE)
        if (await reader.read()).startswith(b"HTTP/1.1 200"):
            took.append(time.perf_counter() - start)
        writer.close()
    return took


async def measure(port: int, busy: int, clients: int, seconds: float) -> None:
    """Print the rate of new connections under load."""
    loop = asyncio.get_running_loop()
    request = prediction()
    for _ in range(busy):
        await loop.create_connection(lambda: Busy(request), HOST, port)
    before, start = Busy.answers, time.perf_counter()
    took = sorted(chain(*await asyncio.gather(*(knock(port, start + seconds) for _ in range(clients)))))
    wall = time.perf_counter() - start
    print(
        f"{busy} busy connections: {(Busy.answers - before) / wall:,.0f} predictions/s; "
        f"{len(took) / wall:,.0f} new connections/s, "
        f"p50 {took[len(took) // 2] * 1e3:.0f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--busy", type=int, default=300, help="kept connections under load")
    parser.add_argument("--clients", type=int, default=64, help="clients that open new connections")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "foldserve.service", "serve", "--models", str(ROOT / "models"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(cast(IO[str], server.stdout).readline().split("http://")[1].split(",")[0].rsplit(":", 1)[1])
            asyncio.run(measure(port, options.busy, options.clients, options.seconds))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
