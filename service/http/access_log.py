"""The access log of predictions. uvicorn logs all other requests."""

from __future__ import annotations

import asyncio
import atexit
import sys
import time

_WRITE_SECONDS = 0.05


class AccessLog:
    """Writes one line for each request, in the format of uvicorn, and many lines at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        atexit.register(self._write)  # some lines may be left when the event loop ends

    def add(self, client: tuple[str, int] | None, url: bytes, status: int) -> None:
        """Add one request. client: the address and port of its client, or None on a Unix socket."""
        if not self._lines:
            asyncio.get_running_loop().call_later(_WRITE_SECONDS, self._write)
        address = f"{client[0]}:{client[1]}" if client else ""
        self._lines.append(f'INFO uvicorn.access: {address} - "POST {url.decode()} HTTP/1.1" {status}\n')

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            now = time.time()
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now % 1 * 1000):03d} "
            sys.stderr.write(stamp + stamp.join(lines))
            sys.stderr.flush()
