"""Starts a contender, waits until it is ready, weighs it and stops it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rig.environments import ROOT, StartError, pinned, variables

READY_TIMEOUT = 60


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    process: int
    port: int
    ready_s: float

    def resident_mb(self) -> float:
        """Add up VmRSS over all its processes, in 10^6 bytes; pages that they share count in each."""
        total = 0
        for member in _family(self.process):
            with suppress(OSError):  # it has just ended
                status = Path(f"/proc/{member}/status").read_text()
                total += sum(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
        return total * 1024 / 1e6


@contextmanager
def started(program: Sequence[str], port: int, ready: str, *, core: int | None, log: Path) -> Iterator[Server]:
    """Run a server until the block ends, on one core, or with None on all.

    Raises `StartError` when it is not ready in time, or ends before.
    """
    placed = program if core is None else pinned(core, program)
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(
            placed, cwd=ROOT, env=variables(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        while not _answers(port, ready):
            if process.poll() is not None or time.perf_counter() - begun > READY_TIMEOUT:
                raise StartError(f"did not start: {_last_line(log)}")
            time.sleep(0.005)
        yield Server(process.pid, port, time.perf_counter() - begun)
    finally:
        _stop(process)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1][:200]


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = _family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    deadline = time.perf_counter() + 5
    while any(_alive(member) for member in family[1:]) and time.perf_counter() < deadline:
        time.sleep(0.05)
    for member in family:
        if _alive(member):
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
    process.wait()


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _family(process: int) -> list[int]:
    """Find a process and all that descend from it, itself first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    family = [process]
    for member in family:
        family += children.get(member, [])
    return family
