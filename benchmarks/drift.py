"""Measures the cost of counting rows for drift and of storing predictions for labels: `python benchmarks/drift.py`;
needs wrk.

The program compares processor times and rates as observability.py does. In each round, the servers get the same load,
one server after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from observability import processor_seconds, report, start
from rig import servers, wrk
from rig.environments import ROOT

OFF = ("--no-drift", "--feedback-rows", "0")
VARIANTS = {"off": OFF, "off again": OFF, "on": ()}
RAW = {"Content-Type": "application/octet-stream"}
ID = {"X-Request-Id": "order-7"}


def measure(
    server: servers.Server, body: Path, headers: dict[str, str], seconds: float, rows: int
) -> tuple[float, float]:
    """Return the processor time per request in microseconds, and the number of requests per second."""
    before = processor_seconds(server.process)
    url = f"http://127.0.0.1:{server.port}/predict"
    figures = wrk.load(url, body, headers, connections=32 if rows == 1 else 4, seconds=seconds, rows=rows, core=1)
    used = processor_seconds(server.process) - before
    requests = figures.rows_per_second / rows
    return used / (requests * round(seconds)) * 1e6, requests


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    options = parser.parse_args()
    golden = json.loads((ROOT / "models/digits/1/manifest.json").read_text())["golden"]["inputs"]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "row").write_text(json.dumps({"instances": golden[:1]}))
        (folder / "raw").write_bytes(np.resize(np.array(golden, "<f4"), (1024, len(golden[0]))).tobytes())
        running = {name: start(stack, folder, name, flags, ROOT) for name, flags in VARIANTS.items()}
        loads = {
            "1 row, 32 connections": ("row", {}, 1),
            "1 row with X-Request-Id": ("row", ID, 1),
            "1,024 raw rows, 4 connections": ("raw", RAW, 1024),
            "1,024 raw rows with X-Request-Id": ("raw", RAW | ID, 1024),
        }
        for title, (body, headers, rows) in loads.items():
            rounds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in running}
            for number in range(-1, options.rounds):
                for variant, server in running.items():
                    seconds = 1.0 if number < 0 else options.seconds
                    figures = measure(server, folder / body, headers, seconds, rows)
                    if number >= 0:  # the first round is only a warm-up
                        rounds[variant].append(figures)
            report(title, rounds)


if __name__ == "__main__":
    main()
