"""Loads a server with wrk, from the core that the server does not have."""

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
    """The load met errors, in one line: its figures mean nothing."""


@dataclass(frozen=True)
class Figures:
    """What one load gave. A bare session has no latencies."""

    rows_per_second: float
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")


def version() -> str:
    """Name wrk's version. Exits when there is no wrk."""
    if not shutil.which("wrk") or not shutil.which("taskset"):
        raise SystemExit("serving.py needs wrk and taskset: apt-get install wrk util-linux")
    return subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split(" [")[0]  # noqa: S607


def load(
    url: str, body: Path, headers: Mapping[str, str], *, connections: int, seconds: float, rows: int, core: int
) -> Figures:
    """Post `body` for `seconds`. Raises `LoadError` when one answer was not a 2xx or one connection broke."""
    program = ["taskset", "--cpu-list", str(core), "wrk", "--threads", "1", "--connections", str(connections)]
    program += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "30s", "--latency", "--script", str(SCRIPT)]
    given = [f"{name}: {value}" for name, value in headers.items()]
    done = subprocess.run([*program, url, "--", str(body), *given], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise LoadError(f"wrk: {(done.stderr.strip().splitlines() or ['no figures'])[-1]}")
    counts: dict[str, int] = json.loads(lines[-1])
    met = [f"{counts[kind]} {kind}" for kind in ERRORS if counts[kind]]
    if met or not counts["requests"]:
        raise LoadError(f"wrk met errors: {', '.join(met) or 'no answer'}, in {counts['requests']} requests")
    rate = counts["requests"] / counts["microseconds"] * 1e6
    return Figures(rate * rows, counts["p50"] / 1e3, counts["p99"] / 1e3)
