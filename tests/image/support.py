"""Helpers for the checks of the images: a function that reports a check, and classes for running images."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image import docker

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BASE = re.search(r"^ARG PYTHON_IMAGE=([^@\s]+)", DOCKERFILE, re.M)[1]
TAGS = {"cpu": "foldserve:cpu", "gpu": "foldserve:gpu", "trainer": "foldserve:trainer"}
UID = 10001
DRAIN = 20  # seconds: the default of the setting drain_timeout
PATIENCE = 300  # a limit in seconds, which turns a hang into a failure


class CheckFailedError(Exception):
    """A check failed."""


def held(condition: object, what: str, found: object = "") -> None:
    """Print that the check `what` passed, or raise `CheckFailedError` with `found`."""
    if not condition:
        raise CheckFailedError(f"{what}: {found}" if found != "" else what)
    print(f"  ok  {what}", flush=True)


def until(condition: Callable[[], object], what: str) -> float:
    """Call `condition` repeatedly until it returns true. Return the seconds until the condition was true."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + PATIENCE:
            raise CheckFailedError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.1)  # each call of `condition` starts a process
    return time.monotonic() - began


@dataclass(frozen=True)
class Ended:
    """The exit status and the output of an ended command or container."""

    status: int
    stdout: str
    stderr: str


def one_line(done: Ended, *expected: str) -> bool:
    """Return true if a program exited with 1, and wrote only one line, with every expected text, to standard error."""
    lines = done.stderr.splitlines()
    return done.status == 1 and len(lines) == 1 and all(text in lines[0] for text in expected)


def folder(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def ask(port: int, path: str, body: object = None) -> tuple[int, Any]:
    """Send one request to this machine. Return the status and the parsed JSON of the response."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@dataclass(frozen=True)
class Image:
    """One image."""

    tag: str

    def config(self) -> dict[str, Any]:
        return dict(docker.inspect(self.tag)["Config"])

    def ran(self, *arguments: str, **how: Any) -> Ended:
        """Run the container until it exits. A container that hangs is a failure."""
        with docker.start(self.tag, *arguments, **how) as process:
            try:
                stdout, stderr = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.terminate()
                raise CheckFailedError(f"{self.tag} {' '.join(arguments)} has not ended within {PATIENCE} s") from None
        return Ended(process.returncode, stdout, stderr)

    def healthy(self, service: Service) -> Ended:
        """Run the HEALTHCHECK of the image in the network of a service."""
        kind, program, *arguments = self.config()["Healthcheck"]["Test"]
        held(kind == "CMD", "the health check needs no shell", kind)
        return self.ran(*arguments, program=program, env={"FOLDSERVE_PORT": str(service.port)}, beside=service.process)

    @contextmanager
    def serving(self, *arguments: str, **how: Any) -> Iterator[Service]:
        """Start the service, wait until it serves, and stop it at the end."""
        port = free_port()
        env = {"FOLDSERVE_PORT": str(port), **how.pop("env", {})}
        with docker.start(self.tag, *arguments, env=env, port=port, **how) as process:
            hung = threading.Timer(PATIENCE, process.terminate)
            hung.start()
            try:
                assert process.stdout
                line = process.stdout.readline()
                hung.cancel()
                if " serves " not in line:
                    raise CheckFailedError(f"{self.tag} does not serve: {line}{process.communicate()[1]}")
                yield Service(process, port)
            finally:
                hung.cancel()
                if process.poll() is None:
                    process.terminate()


@dataclass(frozen=True)
class Service:
    """A container that runs the service."""

    process: subprocess.Popen[str]
    port: int

    def stopped(self) -> tuple[int, float, str]:
        """Send SIGTERM; return the exit status, the seconds until the exit, and the log."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        _, stderr = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, time.monotonic() - began, stderr


def stop_under_load(port: int, stop: Callable[[], object]) -> None:
    """Call `stop` while four threads send requests.

    The server must answer every request that it accepted before the signal.
    """
    rows = {"instances": [[float(place % 17) for place in range(64)]] * 2_000}
    body = json.dumps(rows).encode()
    accepted = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    accepted.putrequest("POST", "/predict")
    accepted.putheader("Content-Type", "application/json")
    accepted.putheader("Content-Length", str(len(body)))
    accepted.endheaders(body[: len(body) // 2])
    others: set[int] = set()
    sent = threading.Event()

    def send() -> None:
        try:
            while True:
                others.add(ask(port, "/predict", rows)[0])
                sent.set()
        except (OSError, http.client.HTTPException, ValueError):  # the server accepts no more connections
            sent.set()

    threads = [threading.Thread(target=send, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    sent.wait(PATIENCE)
    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    for thread in threads:  # each thread ends when the server accepts no more connections
        thread.join(PATIENCE)
    accepted.send(body[len(body) // 2 :])
    answer = accepted.getresponse()
    whole = len(json.loads(answer.read()).get("predictions", ()))
    stopping.join(PATIENCE)
    held(
        (answer.status, whole) == (200, 2_000),
        "a request that was accepted before SIGTERM gets its whole response",
        answer.status,
    )
    held(200 in others and others <= {200, 503}, "under load, other requests get a response or a 503", others)
