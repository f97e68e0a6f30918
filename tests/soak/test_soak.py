"""Tests a server under a long mixed load: good, bad, cancelled and slow requests, and versions that replace each other.
Memory, descriptors and threads must not grow.

`make test-soak` runs the test for ten minutes, or for SOAK_SECONDS.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import random
import shutil
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.live.versions import publish
from tests.service.support import PATIENCE, Served, receive, request, serving, write_square_root

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
# Caches and pools fill during the warm-up. The test compares the use of resources after the warm-up with the use at the
# end.
WARM_UP = max(10.0, SECONDS / 10)
CONTROL_SECONDS = 20.0
CLIENTS_PER_KIND = 2
PROGRAM = "tests.service.serve_with_faults"

# The largest growth that the test allows, from the end of the warm-up to the end of the test.
MOST_BYTES = 24 * 2**20
MOST_DESCRIPTORS = 8
MOST_THREADS = 4

ROWS = json.dumps({"instances": [[number, number + 2] for number in range(400)]}).encode()
GOOD = request("POST", "/predict", body=b'{"instances": [[1, 3]]}')
MANY = request("POST", "/predict", body=ROWS)
COMPRESSED = request("POST", "/predict", "Content-Encoding: gzip", "Accept-Encoding: gzip", body=gzip.compress(ROWS))
FIXED = (GOOD, MANY, COMPRESSED, request("GET", "/v2/health/ready"), request("GET", "/metrics"))
WRONG = (
    b"not HTTP\r\n\r\n",
    request("POST", "/predict", body=b"{"),
    request("POST", "/predict", body=b'{"instances": [["text", 1]]}'),
    request("POST", "/predict", "Content-Encoding: gzip", body=b"not gzip"),
    request("POST", "/v1/models/unknown:predict", body=b"{}"),
    request("POST", "/predict", "X-Request-Timeout-Ms: soon", body=b'{"instances": [[1, 3]]}'),
    request("GET", "/" + "x" * 10_000),
    b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
)


@dataclass(frozen=True)
class Usage:
    """Resident bytes, open descriptors and threads of one process."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: int) -> Usage:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        descriptors = len(list(Path(f"/proc/{process}/fd").iterdir()))
        return cls(int(fields["VmRSS"].split()[0]) * 1024, descriptors, int(fields["Threads"]))


def excess(first: Usage, last: Usage) -> set[str]:
    """Return the names of the limits that the growth exceeds."""
    gates = {
        "memory": last.memory - first.memory > MOST_BYTES,
        "descriptors": last.descriptors - first.descriptors > MOST_DESCRIPTORS,
        "threads": last.threads - first.threads > MOST_THREADS,
    }
    return {name for name, passed in gates.items() if passed}


class Load:
    """Clients of each kind, which load a server. The clients can pause, so that the test can measure the server's
    resources without requests.
    """

    def __init__(self, server: Served, models: Path) -> None:
        self._server = server
        self._models, self._version = models, 1
        self._go, self._stop = threading.Event(), threading.Event()
        self._paused = threading.Semaphore(0)
        self.statuses: dict[str, Counter[int]] = {}
        kinds = [self._swap, *(self._good, self._bad, self._cancelled, self._slow) * CLIENTS_PER_KIND]
        self._clients = len(kinds)
        self._pool = ThreadPoolExecutor(self._clients)
        self._futures = [self._pool.submit(self._repeat, kind, seed) for seed, kind in enumerate(kinds)]

    def run(self, seconds: float) -> Usage:
        """Load the server for `seconds`, then pause. Return the resources that the server uses after all connections
        are closed.
        """
        self._go.set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._server.process.poll() is None, "the server has ended"
            for future in self._futures:
                assert not future.done(), future.exception()
            time.sleep(0.2)
        self._go.clear()
        for _ in range(self._clients):
            assert self._paused.acquire(timeout=PATIENCE)
        usage = self._settled()
        for _ in range(self._clients):
            self._paused.release()
        return usage

    def close(self) -> None:
        self._stop.set()
        self._go.set()
        for future in self._futures:
            future.result(PATIENCE)
        self._pool.shutdown()

    def _settled(self) -> Usage:
        """Wait until the server has closed its last connections and its descriptors no longer decrease. Return its use
        of resources.
        """
        end = time.monotonic() + PATIENCE
        while self._connections():
            assert time.monotonic() < end, "the server keeps connections whose clients have disconnected"
            time.sleep(0.1)
        for _ in range(40):
            usage = Usage.of(self._server.process.pid)
            time.sleep(0.1)
            if Usage.of(self._server.process.pid).descriptors >= usage.descriptors:
                break
        return usage

    def _connections(self) -> int:
        """Return the number of connections that the server has not closed."""
        lines = Path(f"/proc/{self._server.process.pid}/net/tcp").read_text().splitlines()[1:]
        fields = [line.split() for line in lines]
        # In /proc/PID/net/tcp, the second field is the local address, and the fourth field is the state: 01 is
        # ESTABLISHED, 08 is CLOSE_WAIT.
        return sum(f[3] in ("01", "08") and int(f[1].rpartition(":")[2], 16) == self._server.port for f in fields)

    def _repeat(self, kind: Callable[[random.Random, Counter[int]], None], seed: int) -> None:
        draw = random.Random(seed)  # noqa: S311
        statuses = self.statuses.setdefault(kind.__name__, Counter())
        while not self._stop.is_set():
            if not self._go.is_set():
                self._paused.release()
                self._go.wait()
                self._paused.acquire()
            kind(draw, statuses)

    def _good(self, draw: random.Random, statuses: Counter[int]) -> None:
        with self._server.connect() as connection:
            for _ in range(draw.randint(1, 50)):
                connection.sendall(draw.choice(FIXED))
                statuses[receive(connection).status] += 1

    def _bad(self, draw: random.Random, statuses: Counter[int]) -> None:
        with self._server.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(draw.choice(WRONG))
            statuses[receive(connection).status] += 1

    def _cancelled(self, draw: random.Random, statuses: Counter[int]) -> None:
        """Disconnect in the middle of a request or of its response. Half of the disconnections are TCP resets."""
        whole = draw.choice((MANY, COMPRESSED, GOOD))
        with self._server.connect() as connection:
            if draw.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(whole[: draw.randint(1, len(whole))])
        statuses[0] += 1

    def _slow(self, draw: random.Random, statuses: Counter[int]) -> None:
        """Send a request in small pieces with pauses."""
        whole = draw.choice((MANY, COMPRESSED))
        with self._server.connect() as connection, contextlib.suppress(ConnectionError, http.client.HTTPException):
            for start in range(0, len(whole), max(1, len(whole) // 20)):
                connection.sendall(whole[start : start + max(1, len(whole) // 20)])
                time.sleep(0.005)
            statuses[receive(connection).status] += 1

    def _swap(self, _: random.Random, statuses: Counter[int]) -> None:
        """Publish the next version, and wait until the server has decided whether it may serve."""
        self._version += 1
        publish(self._models, self._version)
        path = f"/v2/models/roots/versions/{self._version}/ready"
        while (status := self._server.send("GET", path).status) == 404:
            time.sleep(0.02)
        statuses[status] += 1  # the status is 503 if a fault has made the check of the version fail
        if self._version > 2:
            shutil.rmtree(self._models / "roots" / str(self._version - 2))


def soak(
    tmp_path: Path, seconds: float, warm_up: float, **faults: float
) -> tuple[Usage, Usage, dict[str, Counter[int]]]:
    models, file = tmp_path / "models", tmp_path / "faults"
    models.mkdir()
    write_square_root(models)
    flags = ("--faults", file, "--rescan", 0.5)
    with serving(models, tmp_path / "log", *flags, program=PROGRAM) as server:
        file.write_text(json.dumps(faults))
        load = Load(server, models)
        try:
            first = load.run(warm_up)
            last = load.run(seconds)
        finally:
            load.close()
        assert server.send("GET", "/v2/health/ready").status == 200
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0
    return first, last, load.statuses


def test_nothing_grows_under_a_mixed_load(tmp_path: Path) -> None:
    first, last, statuses = soak(tmp_path, SECONDS - WARM_UP, WARM_UP, slow=0.01, fail=0.001)
    print(first, last, statuses)  # noqa: T201 (pytest -rP shows the figures)
    assert excess(first, last) == set()
    assert set(statuses["_good"]) <= {200, 500, 503}
    assert statuses["_good"][200] > 0.98 * sum(statuses["_good"].values())
    assert all(400 <= status < 500 or status == 503 for status in statuses["_bad"])
    assert statuses["_swap"][200] > 0.9 * sum(statuses["_swap"].values())
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log.replace("a fault that the test asked for", "")


def test_a_leak_of_memory_descriptors_and_threads_passes_every_gate(tmp_path: Path) -> None:
    """A positive control: a server that leaks must exceed the gates."""
    first, last, _ = soak(tmp_path, CONTROL_SECONDS, 5.0, leak=0.05)
    assert excess(first, last) == {"memory", "descriptors", "threads"}
