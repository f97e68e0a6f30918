"""Measures the latency of requests while a server swaps versions. Seconds with a swap of versions alternate with quiet
seconds, which have no swap.

    python benchmarks/swap.py [--seconds 60] [--clients 8] [--workers 1]

Seconds with and without a swap alternate in one run, so other work of the machine affects both kinds of seconds alike.
The clients are threads of this process and wait between requests, so the server is loaded but not saturated.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from foldserve.service import bundle

ROOT = Path(__file__).parents[1]
_PAUSE = 0.002  # time in seconds from an answer to the client's next request
_EDGE = 0.1  # a swap happens this long after its second has begun, in seconds


def main() -> None:
    """Print the p50 and the p99 latency during seconds with a swap and during quiet seconds, and the ratio of the two
    p99 latencies.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = [make(Path(folder) / "made") for _ in range(options.seconds // 2 + 1)]
        models = Path(folder) / "models"
        (models / "digits").mkdir(parents=True)
        shutil.move(made[0], models / "digits" / "1")
        command = ["serve", "--models", models, "--port", 0, "--workers", options.workers, "--log-level", "error"]
        with subprocess.Popen(
            [sys.executable, "-m", "foldserve.service", *map(str, command)], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                found = re.search(r":(\d+),", line)
                if found is None:
                    raise SystemExit("the server did not start")
                report(*measure(int(found[1]), made[1:], models / "digits", options.seconds, options.clients))
            finally:
                server.terminate()


def make(folder: Path) -> Path:
    """Make the next version of digits under a temporary name. A later swap only renames this folder."""
    whole = bundle.read(ROOT / "models" / "digits" / "1")
    return bundle.write(folder, "digits", whole.model, lambda n: whole.manifest.model_copy(update={"version": n})).path


def measure(
    port: int, made: list[Path], target: Path, seconds: int, clients: int
) -> tuple[dict[bool, list[float]], int]:
    """Return the latencies, and the number of versions that answered. The latencies during seconds with a swap have the
    key True, and those during quiet seconds have the key False.
    """
    samples: list[tuple[float, float, bytes]] = []
    stop = threading.Event()
    threads = [threading.Thread(target=client, args=(port, samples, stop)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    began = time.monotonic()
    for second in range(seconds):
        time.sleep(max(0.0, began + second + _EDGE - time.monotonic()))
        if second % 2:
            made[second // 2].rename(target / str(second // 2 + 2))
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    stop.set()
    for thread in threads:
        thread.join()
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for when, latency, _ in samples:
        if 0 <= when - began < seconds:
            kinds[int(when - began) % 2 == 1].append(latency)
    return kinds, len({version for _, _, version in samples})


def client(port: int, samples: list[tuple[float, float, bytes]], stop: threading.Event) -> None:
    """Send requests of one row on one connection."""
    row = ", ".join(["3"] * 64)
    body = f'{{"instances": [[{row}]]}}'.encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while not stop.is_set():
            began = time.monotonic()
            connection.sendall(head + body)
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(answer.decode())
            version = answer.partition(b'"version":')[2].partition(b",")[0]
            samples.append((began, time.monotonic() - began, version))
            time.sleep(_PAUSE)


def report(kinds: dict[bool, list[float]], versions: int) -> None:
    """Print the latencies. versions: the number of versions that answered."""
    p99 = {}
    for swaps, latencies in kinds.items():
        cuts = statistics.quantiles(latencies, n=100)
        p99[swaps] = cuts[98]
        name = "seconds with a swap" if swaps else "seconds without"
        print(f"{name:20} {len(latencies):7,} requests   p50 {cuts[49] * 1e3:6.2f} ms   p99 {cuts[98] * 1e3:6.2f} ms")
    print(f"ratio of the p99     {p99[True] / p99[False]:.2f}; {versions} versions have answered")


if __name__ == "__main__":
    main()
