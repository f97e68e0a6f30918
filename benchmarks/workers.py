"""Measures whether two workers do twice the work of one worker: `python benchmarks/workers.py`; needs wrk and two
cores.

The load program needs a core, so two cores can't show the rate of two workers directly. The benchmark compares the
processor time of a request. If two workers need no more time for each request than one worker, then they answer twice
as many requests on two cores of their own. In each round, both servers get the same number of connections per worker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from observability import measure, start
from rig.environments import ROOT
from rig.processes import two_cores

CONNECTIONS = 32  # for each worker


def main() -> None:
    """Print the medians of the rounds."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    options = parser.parse_args()
    two_cores()
    row = json.loads((ROOT / "models/digits/1/manifest.json").read_text())["golden"]["inputs"][:1]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        body = folder / "body"
        body.write_text(json.dumps({"instances": row}))
        running = {
            workers: start(stack, folder, f"workers-{workers}", ("--workers", str(workers)), core=core)
            for workers, core in ((1, 0), (2, None))
        }
        rounds: dict[int, list[tuple[float, float]]] = {workers: [] for workers in running}
        for number in range(-1, options.rounds):
            for workers, server in running.items():
                figures = measure(server, body, {}, options.seconds, connections=CONNECTIONS * workers)
                if number >= 0:  # the first round warms the servers up
                    rounds[workers].append(figures)
    print("| workers | processor time, µs per request | requests/s | cores of the load |\n| --- | --- | --- | --- |")
    for workers, cores in ((1, "another core"), (2, "one of the two cores of the server")):
        time, rate = (statistics.median(x[column] for x in rounds[workers]) for column in (0, 1))
        print(f"| {workers} | {time:.1f} | {rate:,.0f} | {cores} |")
    ratios = sorted(2 * one[0] / two[0] for one, two in zip(rounds[1], rounds[2], strict=True))
    print(
        f"\nOn two cores of their own, two workers answer {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) times the requests of one worker."
    )


if __name__ == "__main__":
    main()
