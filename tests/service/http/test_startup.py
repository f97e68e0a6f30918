"""While the models are loaded for the first time, the server is alive, and all other requests get a 503."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from foldserve.service.http.listeners import Listeners
from foldserve.service.http.startup import StartupResponder
from tests.service.support import (
    GATED,
    PATIENCE,
    Answer,
    receive,
    request,
    serving,
    through,
    while_loading,
    write_square_root,
)

BODY = b'{"instances": [[1, 3]]}'


@contextmanager
def reserved_port() -> Iterator[int]:
    """Bind a port without listening.

    The test then has the number of a free port, and the server can still bind this port.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_loads_is_alive_and_refuses_all_else(workers: int, tmp_path: Path) -> None:
    models = tmp_path / "models"
    gated = write_square_root(models).path
    (tmp_path / "empty").write_bytes(b"")

    def send(method: str, path: str, body: bytes = b"") -> Answer:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(request(method, path, body=body))
            answer = receive(connection)
            # The server has closed the connection, so the client's next request opens a new connection.
            assert connection.recv(1) == b""
            return answer

    def ask() -> None:
        try:
            live = send("GET", "/v2/health/live")
            assert (live.status, live.json()) == (200, {"live": True})
            for name in ("started", "ready"):
                answer = send("GET", f"/v2/health/{name}")
                assert (answer.status, answer.json()) == (503, {name: False})
            large = b'{"instances": [' + b"[1, 3]," * 100_000 + b"[1, 3]]}"
            for path, body in (
                ("/predict", BODY),
                ("/v1/models/roots:predict", large),
                ("/v2/models/roots/infer", BODY),
            ):
                answer = send("POST", path, body)
                assert answer.status == 503
                assert answer.json() == {"error": "the server is loading its models for the first time"}
                assert int(answer.headers["retry-after"]) >= 1
            with socket.socket() as other:  # another server can't take the port
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
        finally:
            (tmp_path / "empty").replace(gated / "gate")  # a worker that opens the gate later finds an empty file

    with (
        reserved_port() as port,
        while_loading(gated, ask) as asked,
        serving(models, tmp_path / "log", "--workers", workers, env=through(gated), port=port, program=GATED) as server,
    ):
        asked.result()
        for name in ("started", "ready", "live"):
            answer = server.send("GET", f"/v2/health/{name}")
            assert (answer.status, answer.json()) == (200, {name: True})
        assert {server.send("POST", "/predict", "Connection: close", body=BODY).status for _ in range(20)} == {200}
    assert "ERROR" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_without_an_early_port_a_server_that_loads_refuses_connections(workers: int, tmp_path: Path) -> None:
    models = tmp_path / "models"
    gated = write_square_root(models).path

    def connect() -> None:
        try:
            with socket.socket() as client:
                client.settimeout(PATIENCE)
                client.connect(("127.0.0.1", port))
        finally:
            (tmp_path / "empty").replace(gated / "gate")

    (tmp_path / "empty").write_bytes(b"")
    flags = ("--no-early-port", "--workers", workers)
    with (
        reserved_port() as port,
        while_loading(gated, connect) as connected,
        serving(models, tmp_path / "log", *flags, env=through(gated), port=port, program=GATED) as server,
    ):
        with pytest.raises(ConnectionRefusedError):
            connected.result()
        assert server.send("POST", "/predict", body=BODY).status == 200
    assert "ERROR" not in (tmp_path / "log").read_text()


def test_a_connection_that_the_responder_has_accepted_gets_its_answer_although_the_responder_stops() -> None:
    """Each connection is either answered, or still in the kernel's queue for the real server."""
    for _ in range(20):
        with ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            responder = StartupResponder(Listeners(listener, None), [None])
            responder.start()
            address = listener.getsockname()
            clients = [stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(30)]
            for client in clients:
                client.sendall(request("GET", "/v2/health/live"))
            responder.stop()
            listener.setblocking(False)
            queued = set()
            with suppress(BlockingIOError):
                while True:
                    connection, name = listener.accept()
                    stack.enter_context(connection)
                    queued.add(name)
            for client in clients:
                if client.getsockname() not in queued:
                    assert receive(client).status == 200
                client.close()
            responder.join()
