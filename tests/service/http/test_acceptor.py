"""Tests new connections to the real server: under load, without free descriptors, and while the server stops."""

from __future__ import annotations

import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.support import PATIENCE, Served, receive, request, serving, write_square_root

GOOD = request("POST", "/predict", body=b'{"instances": [[1, 3]]}')
RESET = struct.pack("ii", 1, 0)  # with this value of SO_LINGER, close() resets the connection


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "models").mkdir()
    write_square_root(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log") as served:
        yield served


def test_one_turn_accepts_many_connections(server: Served) -> None:
    """The kernel queues the connections while the process is stopped.

    Every connection gets its answer once the process resumes.
    """
    server.process.send_signal(signal.SIGSTOP)
    try:
        clients = [server.connect() for _ in range(200)]
        for client in clients:
            client.sendall(GOOD)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert [receive(client).status for client in clients] == [200] * len(clients)
    for client in clients:
        client.close()


def test_clients_that_leave_before_they_are_accepted_do_no_harm(server: Served) -> None:
    server.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(50):
            with server.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert server.send("GET", "/v2/health/live").status == 200
    assert "Traceback" not in server.log.read_text()


def test_requests_in_the_backlog_are_answered_when_the_server_stops(server: Served) -> None:
    """The signal arrives before the server can accept the connections."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        clients = [server.connect() for _ in range(200)]
        for client in clients:
            client.sendall(GOOD)
        server.process.terminate()
    finally:
        server.process.send_signal(signal.SIGCONT)
    answers = [receive(client) for client in clients]
    assert {answer.status for answer in answers} <= {200, 503}
    assert server.process.wait(PATIENCE) == 0
    for client in clients:
        client.close()


def test_without_descriptors_the_server_waits_and_then_accepts(server: Served) -> None:
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    kept = server.connect()
    kept.sendall(GOOD)
    assert receive(kept).status == 200
    used = max(int(entry.name) for entry in Path(f"/proc/{server.process.pid}/fd").iterdir()) + 1
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    with server.connect() as waiting, kept:
        waiting.sendall(GOOD)
        while "can't accept connections: Too many open files" not in server.log.read_text():
            kept.sendall(GOOD)  # clients that are already connected are served
            assert receive(kept).status == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        assert receive(waiting).status == 200
    assert "Traceback" not in server.log.read_text()
