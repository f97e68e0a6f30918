"""Measures the first use of foldserve: `python benchmarks/first_use.py`.

The program measures the time and the accuracy of a training, and the time and memory of a server's start. Each run is a
whole process, with its imports. The program prints medians over the runs, as rows of the README's table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fit(models: Path, seed: int) -> tuple[float, dict[str, float]]:
    """Train on digits. Return the seconds of the whole command, and the metrics on the test rows."""
    command = [
        sys.executable,
        "-m",
        "foldserve.training",
        "fit",
        "digits",
        "--models",
        str(models),
        "--seed",
        str(seed),
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    newest = max((models / "digits").iterdir(), key=lambda version: int(version.name))
    metrics: dict[str, float] = json.loads((newest / "manifest.json").read_text())["metrics"]["test"]
    return seconds, metrics


@contextmanager
def served(models: Path) -> Iterator[tuple[float, int]]:
    """Start a server for the folder `models`.

    Yield two values: the seconds until the server prints that it is ready, and its process id.
    """
    command = [sys.executable, "-m", "foldserve.service", "serve", "--models", str(models), "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            if not process.stdout or "serves" not in process.stdout.readline():
                raise SystemExit("foldserve serve did not start")
            yield time.perf_counter() - started, process.pid
        finally:
            process.terminate()


def resident_megabytes(process: int) -> float:
    """Return the resident memory of a process, in 10^6 bytes."""
    line = next(x for x in Path(f"/proc/{process}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Measure, and print the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="starts of the server (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings, one for each seed (default: %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        fits = [fit(models, seed) for seed in range(chosen.seeds)]
        for version in list((models / "digits").iterdir()):
            if version.name != "1":
                version.rename(models / f".{version.name}")  # keep only one version, as after the first training
        starts, memory = [], []
        for _ in range(chosen.runs):
            with served(models) as (seconds, process):
                starts.append(seconds)
                memory.append(resident_megabytes(process))
    accuracies = [metrics["accuracy"] for _, metrics in fits]
    print(f"| mean test accuracy over {chosen.seeds} seeds | {statistics.mean(accuracies):.4f} |")
    print(f"| `foldserve-train fit digits`, median | {statistics.median(seconds for seconds, _ in fits):.1f} s |")
    print(f"| `foldserve serve`, start to ready, median | {statistics.median(starts):.2f} s |")
    print(f"| resident memory when ready, median | {statistics.median(memory):.0f} MB |")


if __name__ == "__main__":
    main()
