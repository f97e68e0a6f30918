"""A server that stops under load becomes unready, then refuses new work.

The server answers every request that it accepted.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service.support import PATIENCE, Served, receive, request, serving, write_square_root

BODY = b'{"instances": [[1, 3]]}'
REQUEST = request("POST", "/predict", body=BODY)
CLIENTS = 24
# After the signal, the server keeps an idle connection open for GRACE seconds. The server must answer a request that is
# sent within GRACE seconds. A later request may arrive while the server closes the connection, and HTTP/1.1 can't
# prevent its loss.
GRACE = 0.1
DIGITS = Path(__file__).parents[3] / "models"
BOTH = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_square_root(folder)
    return folder


class Load:
    """Clients that send predictions until the server refuses connections.

    Half of the clients keep their connections open.
    """

    def __init__(self, server: Served) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(CLIENTS)
        self.stopped_at = float("inf")
        self.answered = threading.Semaphore(0)
        self._clients = [self._pool.submit(self._run, number % 2 == 0) for number in range(CLIENTS)]

    def until_answered(self, count: int) -> None:
        for _ in range(count):
            assert self.answered.acquire(timeout=PATIENCE)

    def outcomes(self) -> Counter[str]:
        """Wait until the server has refused all clients. For each result, return the number of requests."""
        total: Counter[str] = Counter()
        for client in self._clients:
            total += client.result(PATIENCE)
        self._pool.shutdown()
        return total

    def _run(self, keep: bool) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while True:
            try:
                connection = self._server.connect()
            except OSError:
                return outcomes
            with connection:
                self._talk(connection, keep, outcomes)

    def _talk(self, connection: socket.socket, keep: bool, outcomes: Counter[str]) -> None:
        """Send requests on one connection until the server closes it."""
        for number in range(10**9 if keep else 1):
            sent = time.monotonic()
            try:
                connection.sendall(REQUEST)
                answer = receive(connection)
            except (OSError, http.client.HTTPException):
                crossed = number and sent > self.stopped_at + GRACE
                outcomes["crossed" if crossed else "lost"] += 1
                return
            outcomes[str(answer.status)] += 1
            self.answered.release()
            if answer.headers.get("connection") == "close":
                return


def stop_under_load(models: Path, log: Path, workers: int, *flags: object) -> Counter[str]:
    with serving(models, log, "--workers", workers, *flags) as server:
        load = Load(server)
        load.until_answered(4 * CLIENTS)
        load.stopped_at = time.monotonic()
        server.process.terminate()
        outcomes = load.outcomes()
        assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in log.read_text()
    return outcomes


@BOTH
def test_no_accepted_request_is_lost(workers: int, models: Path, tmp_path: Path) -> None:
    for number in range(3):
        outcomes = stop_under_load(models, tmp_path / f"log{number}", workers)
        assert set(outcomes) <= {"200", "crossed"}, outcomes


@pytest.mark.slow
@BOTH
def test_no_accepted_request_is_lost_in_50_rounds(workers: int, models: Path, tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    for number in range(50):
        total += stop_under_load(models, tmp_path / f"log{number}", workers)
    assert set(total) <= {"200", "crossed"}, total


@BOTH
def test_during_the_drain_delay_the_server_is_unready_and_accepts_requests(
    workers: int, models: Path, tmp_path: Path
) -> None:
    flags = ("--workers", workers, "--drain-delay", 2)
    with serving(models, tmp_path / "log", *flags) as server:
        assert server.send("GET", "/v2/health/ready").status == 200
        started = time.monotonic()
        server.process.terminate()
        while server.send("GET", "/v2/health/ready").status == 200:
            assert time.monotonic() < started + PATIENCE, "it stays ready"
        assert server.send("POST", "/predict", body=BODY).json()["predictions"] == [2]
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - started >= 2
        with pytest.raises(ConnectionError):
            server.connect()


@BOTH
def test_a_request_that_waits_in_the_backlog_is_answered(workers: int, models: Path, tmp_path: Path) -> None:
    """The stopped process can't accept, so the kernel completes the handshakes and queues the connections."""
    with serving(models, tmp_path / "log", "--workers", workers) as server:
        pids = [server.process.pid, *children(server.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        waiting = [server.connect() for _ in range(50)]
        for connection in waiting:
            connection.sendall(REQUEST)
        server.process.terminate()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for connection in waiting:
            with connection:
                assert receive(connection).status == 200
        assert server.process.wait(PATIENCE) == 0


def test_a_client_that_reads_slowly_gets_its_whole_response(tmp_path: Path) -> None:
    rows = 60_000  # the response has 8 MB, more than the kernel can buffer
    body = json.dumps({"instances": [[0] * 64] * rows}).encode()
    with serving(DIGITS, tmp_path / "log") as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(PATIENCE)
        slow.connect((server.host, server.port))
        slow.sendall(request("POST", "/predict", body=body))
        assert slow.recv(1, socket.MSG_PEEK)
        server.process.terminate()
        while True:  # the server closes its listener before it closes idle connections
            try:
                server.connect().close()
            except OSError:
                break
        assert len(receive(slow).json()["predictions"]) == rows
        assert server.process.wait(PATIENCE) == 0


@BOTH
def test_sighup_stops_the_server_like_sigterm_and_is_logged(workers: int, models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--workers", workers) as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(PATIENCE) == 0
    assert "SIGHUP: nothing is reloaded; stopping as for SIGTERM" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
