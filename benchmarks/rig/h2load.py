"""Loads a gRPC server with h2load, which sends one message over HTTP/2 again and again.

h2load sees the status of HTTP, which is 200 even if a call fails. All correct responses have the same length, so the
load also counts the bytes of the responses to find calls that failed.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rig.wrk import Figures, LoadError

PATH = "/inference.GRPCInferenceService/ModelInfer"
# The requests of the first run, which warms the server up and finds its rate.
WARM_UP_REQUESTS = 400


@dataclass(frozen=True)
class Call:
    """One message. file: the path of a file with the message, including its gRPC prefix. response_bytes: the length of
    a response, including its gRPC prefix.

    connections: the number of connections. streams: the number of calls in flight on each connection.
    """

    file: Path
    rows: int
    response_bytes: int
    connections: int
    streams: int


def version() -> str:
    """Return the version of h2load. The program exits if h2load is not installed."""
    if not shutil.which("h2load"):
        raise SystemExit("this benchmark needs h2load: apt-get install nghttp2-client")
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607


def prefixed(message: bytes) -> bytes:
    """Return gRPC's prefix and the message. The prefix says that the message is uncompressed, and gives its length."""
    return struct.pack(">BI", 0, len(message)) + message


def load(port: int, call: Call, *, seconds: float, core: int) -> tuple[Figures, int]:
    """Send calls for about `seconds`, after a short warm-up. Return the figures and the number of calls.

    Raises `LoadError` if a call fails.
    """
    rate, _ = _run(port, call, WARM_UP_REQUESTS, core)
    count = max(WARM_UP_REQUESTS, round(rate * seconds))
    return _figures(port, call, count, core), count


def _figures(port: int, call: Call, count: int, core: int) -> Figures:
    rate, seconds = _run(port, call, count, core)
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return Figures(rate * call.rows, float(p50), float(p99))


def _run(port: int, call: Call, count: int, core: int) -> tuple[float, np.ndarray]:
    """Send `count` calls. Return the calls per second, and the seconds of each call."""
    log = call.file.with_suffix(".times")
    log.unlink(missing_ok=True)
    program = ["taskset", "--cpu-list", str(core), "h2load", "-n", str(count), "-c", str(call.connections)]
    program += ["-m", str(call.streams), "-d", str(call.file), f"--log-file={log}"]
    program += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{PATH}"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", done.stdout)
    succeeded = re.search(r"(\d+) succeeded", done.stdout)
    data = re.search(r"headers \(.*\((\d+)\) data", done.stdout)
    if not (rate and succeeded and data):
        raise LoadError(f"h2load: {(done.stderr.strip().splitlines() or ['no figures'])[-1]}")
    if int(succeeded[1]) != count or int(data[1]) != count * call.response_bytes:
        raise LoadError(f"{count} calls gave {succeeded[1]} responses with {data[1]} bytes")
    times = np.loadtxt(log, usecols=(2,), ndmin=1) / 1e6
    return float(rate[1]), times
