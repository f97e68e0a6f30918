"""Tests a server on a Unix socket with real clients: httpx, and `foldserve health`."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.support import (
    PATIENCE,
    assert_refused_in_one_line,
    command_line,
    environment,
    foldserve,
    stop,
    write_square_root,
)

BODY = {"instances": [[1, 3]]}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield an empty folder with a short name, because the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_square_root(models)
    return models


@contextmanager
def serving_on(path: Path, models: Path, *flags: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server on a Unix socket. Yields the server's process and its announcement."""
    command = command_line("serve", "--models", models, "--uds", path, *flags)
    variables = environment()
    del variables["FOLDSERVE_ALLOWED_HOSTS"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, "".join(process.stdout.readline() for _ in range(3))
        finally:
            stop(process)


def client(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.example", timeout=PATIENCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_use_the_socket_until_the_server_stops(workers: int, folder: Path, models: Path) -> None:
    path = folder / "socket"
    with serving_on(path, models, "--workers", workers) as (_, announcement), client(path) as talk:
        assert f"on the Unix socket {path}\n" in announcement
        assert talk.post("/predict", json=BODY).json()["predictions"] == [2.0]
        assert talk.get("/v2/health/ready").status_code == 200
        ready = foldserve("health", env={"FOLDSERVE_UDS": str(path)})
        assert (ready.returncode, ready.stdout) == (0, f"ready: {path}\n")
    assert not path.exists()


def test_the_printed_command_works(folder: Path, models: Path) -> None:
    with serving_on(folder / "a socket", models) as (_, announcement):
        command = announcement.splitlines()[2]
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=True)
        assert '"predictions"' in done.stdout


def test_the_socket_of_a_killed_server_is_replaced(folder: Path, models: Path) -> None:
    path = folder / "socket"
    with serving_on(path, models) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    assert path.is_socket()
    with serving_on(path, models), client(path) as talk:
        assert talk.post("/predict", json=BODY).status_code == 200


def test_the_socket_of_another_server_is_left_alone(folder: Path, models: Path) -> None:
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        done = foldserve("serve", "--models", models, "--uds", path)
        assert_refused_in_one_line(done, f"can't listen on {path}: another server listens on it")
        assert path.is_socket()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "Address already in use"), ("missing/socket", "No such file or directory"), ("x" * 200, "path too long")],
)
def test_a_path_that_cannot_be_a_socket_is_refused(name: str, reason: str, folder: Path, models: Path) -> None:
    (folder / "file").write_text("kept")
    assert_refused_in_one_line(foldserve("serve", "--models", models, "--uds", folder / name), reason)
    assert (folder / "file").read_text() == "kept"
