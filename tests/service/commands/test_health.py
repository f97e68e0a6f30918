"""Tests `foldserve health` against a real service, other programs, and no program at all."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from foldserve.service.commands import health
from foldserve.service.commands.http_client import Address
from foldserve.service.errors import NotReady
from tests.service.support import assert_refused_in_one_line, foldserve, serving
from tests.service.test_imports import loaded_by


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Run a server that answers every request with `status`, and yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


EVERYWHERE = "0.0.0.0"  # noqa: S104 (as in an image)


def ask(port: int, host: str = EVERYWHERE) -> subprocess.CompletedProcess[str]:
    return foldserve("health", env={"FOLDSERVE_HOST": host, "FOLDSERVE_PORT": str(port)})


@pytest.mark.parametrize("host", [EVERYWHERE, "127.0.0.1", "localhost"])
def test_a_running_service_is_ready(models: Path, tmp_path: Path, host: str) -> None:
    with serving(models, tmp_path / "log", "--host", host) as server:
        done = ask(server.port, host)
    shown = "127.0.0.1" if host == EVERYWHERE else host
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ready: {shown}:{server.port}\n", "")


def test_a_port_without_a_listener_is_not_ready() -> None:
    with socket.socket() as bound:
        # The test holds this port without listening, so that no other program listens there.
        bound.bind(("127.0.0.1", 0))
        done = ask(bound.getsockname()[1])
    assert_refused_in_one_line(done, "does not answer: Connection refused")


def test_a_draining_service_is_not_ready() -> None:
    with answering(503) as port:
        assert_refused_in_one_line(ask(port), f"127.0.0.1:{port} is not ready: it answers 503")


def test_a_server_of_another_protocol_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1024)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert_refused_in_one_line(ask(server.getsockname()[1]), "does not answer in HTTP")
        thread.join()


def test_a_silent_server_is_not_ready() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,  # the kernel accepts connections, but no program reads them
        pytest.raises(NotReady, match=r"has not answered within 0\.05 s"),
    ):
        health.ask(Address("127.0.0.1", server.getsockname()[1], timeout=0.05))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"FOLDSERVE_PORT": "0"}, "port 0 means any free port"),
        ({"FOLDSERVE_PORT": "many"}, "setting 'port' (environment)"),
        ({"FOLDSERVE_HOST": "no.such.host.invalid"}, "no.such.host.invalid:8000 does not answer"),
        ({"FOLDSERVE_HOST": "a" * 64}, "does not answer"),
    ],
)
def test_an_invalid_address_is_refused_in_one_line(changes: dict[str, str], expected: str) -> None:
    assert_refused_in_one_line(foldserve("health", env=changes), expected)


def test_the_command_imports_neither_a_server_nor_a_runtime() -> None:
    assert not loaded_by("foldserve.service.cli", "foldserve.service.commands.health", "foldserve.service.settings") & {
        *("fastapi", "starlette", "uvicorn", "onnxruntime", "onnx", "numpy"),
    }
