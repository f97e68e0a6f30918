"""Measures the times of an explanation and of a prediction for the same rows, in one server.

    python benchmarks/explain.py [--models DIR] [--model NAME]

The two kinds of requests alternate, so that other work of the machine affects both kinds alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

_ROUNDS = 400


def main() -> None:
    """Print the median time of a prediction and of an explanation, and the ratio of both medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="digits")
    parsed = parser.parse_args()
    command = [sys.executable, "-m", "foldserve.service", "serve", "--models", str(parsed.models), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            url = next(word for word in line.replace(",", " ").split() if word.startswith("http"))
            measure(f"{url}/v1/models/{parsed.model}")
        finally:
            server.terminate()


def measure(url: str) -> None:
    """Send requests for predictions and for explanations in turn, for several numbers of rows."""
    manifest = httpx.get(f"{url}/metadata").json()
    golden = np.array([[np.nan if v is None else v for v in row] for row in manifest["golden"]["inputs"]], "<f4")
    print(f"{'rows':>5} {'predict':>10} {'explain':>10} {'ratio':>6}   medians of {_ROUNDS} requests each")
    with httpx.Client(headers={"Content-Type": "application/octet-stream", "Accept-Encoding": "identity"}) as client:
        for rows in (1, 16, 256):
            body = np.resize(golden, (rows, golden.shape[1])).tobytes()
            seconds: dict[str, list[float]] = {"predict": [], "explain": []}
            for _ in range(_ROUNDS):
                for kind, taken in seconds.items():
                    started = time.perf_counter()
                    client.post(f"{url}:{kind}", content=body).raise_for_status()
                    taken.append(time.perf_counter() - started)
            predict, explain = (statistics.median(taken) * 1e6 for taken in seconds.values())
            print(f"{rows:>5} {predict:>7.0f} us {explain:>7.0f} us {explain / predict:>6.2f}")


if __name__ == "__main__":
    main()
