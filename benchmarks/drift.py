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
from observability import measure, report, start
from rig.environments import ROOT

OFF = ("--no-drift", "--feedback-rows", "0")
VARIANTS = {"off": OFF, "off again": OFF, "on": ()}
RAW = {"Content-Type": "application/octet-stream"}
ID = {"X-Request-Id": "order-7"}


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
        running = {name: start(stack, folder, name, flags) for name, flags in VARIANTS.items()}
        loads = {
            "1 row, 32 connections": ("row", {}, 1, 32),
            "1 row with X-Request-Id": ("row", ID, 1, 32),
            "1,024 raw rows, 4 connections": ("raw", RAW, 1024, 4),
            "1,024 raw rows with X-Request-Id": ("raw", RAW | ID, 1024, 4),
        }
        for title, (body, headers, rows, connections) in loads.items():
            rounds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in running}
            for number in range(-1, options.rounds):
                for variant, server in running.items():
                    seconds = 1.0 if number < 0 else options.seconds
                    figures = measure(server, folder / body, headers, seconds, rows=rows, connections=connections)
                    if number >= 0:  # the first round is only a warm-up
                        rounds[variant].append(figures)
            report(title, rounds)


if __name__ == "__main__":
    main()
