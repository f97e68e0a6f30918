"""Starts a server, waits until it is ready, measures its memory, and stops it."""

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
    """A running server. process: the process id. ready_s: the seconds from the start until the server was ready."""

    process: int
    port: int
    ready_s: float

    def resident_mb(self) -> float:
        """Return the resident memory of all processes of the server, in 10^6 bytes.

        A shared page counts once for each process.
        """
        total = 0
        for member in _process_tree(self.process):
            with suppress(OSError):  # the process has just ended
                status = Path(f"/proc/{member}/status").read_text()
                total += sum(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
        return total * 1024 / 1e6

    def processor_seconds(self) -> float:
        """Return the processor time of all processes of the server so far, in seconds. The time in the kernel is
        included.
        """
        ticks = 0
        for member in _process_tree(self.process):
            with suppress(OSError):  # the process has just ended
                fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(
    program: Sequence[str], port: int, ready: str, *, core: int | None, log: Path, timeout: float = READY_TIMEOUT
) -> Iterator[Server]:
    """Run a server until the `with` block ends.

    ready: the path that answers 200 once the server is ready. core: the only core that the server may use; None for all
    cores. Raises `StartError` if the server is not ready in `timeout` seconds, or ends before it is ready.
    """
    command = program if core is None else pinned(core, program)
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        while not _is_ready(port, ready):
            if process.poll() is not None or time.perf_counter() - start > timeout:
                raise StartError(f"did not start: {_last_line(log)}")
            time.sleep(0.005)
        yield Server(process.pid, port, time.perf_counter() - start)
    finally:
        _stop(process)


def free_port() -> int:
    """Return a port on which no program listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(port: int, path: str) -> bool:
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
    return (lines or ["no output"])[-1][:200]


def _stop(process: subprocess.Popen[bytes]) -> None:
    members = _process_tree(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    deadline = time.perf_counter() + 5
    while any(_is_alive(member) for member in members[1:]) and time.perf_counter() < deadline:
        time.sleep(0.05)
    for member in members:
        if _is_alive(member):
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
    process.wait()


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _process_tree(process: int) -> list[int]:
    """List a process and then all of its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    members = [process]
    for member in members:
        members += children.get(member, [])
    return members
