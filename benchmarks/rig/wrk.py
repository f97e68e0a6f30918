"""Loads a server with wrk. wrk and the server run on different cores."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
ERRORS = ("not_2xx", "connect", "read", "write", "timeout")


class LoadError(Exception):
    """Raised if a load had errors, because its figures are then invalid. The error message has one line."""


@dataclass(frozen=True)
class Figures:
    """The figures of one load. A session without a server has no latencies."""

    rows_per_second: float
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")


def version() -> str:
    """Return the version of wrk. The program exits if wrk is not installed."""
    if not shutil.which("wrk") or not shutil.which("taskset"):
        raise SystemExit("serving.py needs wrk and taskset: apt-get install wrk util-linux")
    return subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split(" [")[0]  # noqa: S607


def load(
    url: str, body: Path, headers: Mapping[str, str], *, connections: int, seconds: float, rows: int, core: int
) -> Figures:
    """Post `body` again and again for `seconds`. Raises `LoadError` if a response is not 2xx or a connection breaks."""
    program = ["taskset", "--cpu-list", str(core), "wrk", "--threads", "1", "--connections", str(connections)]
    program += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "30s", "--latency", "--script", str(SCRIPT)]
    header_lines = [f"{name}: {value}" for name, value in headers.items()]
    done = subprocess.run([*program, url, "--", str(body), *header_lines], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise LoadError(f"wrk: {(done.stderr.strip().splitlines() or ['no figures'])[-1]}")
    counts: dict[str, int] = json.loads(lines[-1])
    errors = [f"{counts[kind]} {kind}" for kind in ERRORS if counts[kind]]
    if errors or not counts["requests"]:
        raise LoadError(f"wrk met errors: {', '.join(errors) or 'no response'}, in {counts['requests']} requests")
    rate = counts["requests"] / counts["microseconds"] * 1e6
    return Figures(rate * rows, counts["p50"] / 1e3, counts["p99"] / 1e3)
