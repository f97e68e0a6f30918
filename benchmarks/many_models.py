"""Measures one foldserve process with many models: `python benchmarks/many_models.py [--models 1,100,1000]`.

Each model is a copy of digits under another name. The program measures the start: the time until the server is ready,
and its memory. The program measures predictions of one row, which it sends to all models in turn, and requests for the
documents that list the models. The program also measures the processor time of an idle minute, the time to add a model,
and the time to stop.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig import servers
from rig.environments import ROOT
from rig.report import Row, machine, markdown, number
from rig.servers import Server

from foldserve.service import bundle

SOURCE = ROOT / "models/digits/1"
REQUESTS = 4000
PAGES = ("/v1/models", "/v2/health/ready", "/metrics", "/openapi.json", "/")
READY_SECONDS = 600


@dataclass
class Figures:
    """The figures of a server with a given number of models. Times are in seconds, and sizes in bytes, unless the name
    has a unit.
    """

    ready: float
    ready_processor: float
    resident_mb: float
    threads: int
    request_us: float
    one_model_us: float
    added: float
    idle_share: float
    stopped: float
    pages: dict[str, tuple[float, int]]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="1,100,1000", help="numbers of models (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=20, help="seconds without requests (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the models in DIR for the next run")
    chosen = parser.parse_args()
    counts = sorted(map(int, chosen.models.split(",")))
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        for count in counts:
            write_models(folder / "models", count)
            found[count] = measure(folder, count, chosen.idle)
    print(f"{machine([])}\n\n{table(found)}")


def name(index: int) -> str:
    """Return the name of a model."""
    return f"model-{index:05}"


def write_models(folder: Path, count: int) -> None:
    """Copy digits until the folder has `count` models."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        if not (folder / name(index)).exists():
            write_model(folder, name(index))
    if len(list(folder.iterdir())) != count:
        raise SystemExit(f"{folder} has other models too")


def write_model(folder: Path, model: str) -> None:
    """Copy digits to the folder under another name, without its report."""
    source = bundle.find_bundle(SOURCE)
    bundle.write(
        folder,
        model,
        source.model,
        lambda version: source.manifest.model_copy(update={"name": model, "version": version}),
    )


@contextmanager
def running(folder: Path, count: int) -> Iterator[Server]:
    """Run foldserve with the models of a folder."""
    port = servers.free_port()
    program = [sys.executable, "-m", "foldserve.service", "serve", "--models", str(folder / "models")]
    program += ["--port", str(port), "--no-access-log", "--rescan", "5"]
    log = folder / f"{count}.log"
    with servers.running(program, port, "/v2/health/ready", core=None, log=log, timeout=READY_SECONDS) as server:
        yield server


def measure(folder: Path, count: int, idle: float) -> Figures:
    """Start a server and measure it."""
    with running(folder, count) as server:
        processor = server.processor_seconds()
        resident = server.resident_mb()
        threads = len(list(Path(f"/proc/{server.process}/task").iterdir()))
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        names = [name(index) for index in range(count)]
        for warm in (names, names):  # the first requests to a model create its parts
            predictions(server, connection, warm, max(count, 500))
        all_models = predictions(server, connection, names, REQUESTS)
        one_model = predictions(server, connection, names[:1], REQUESTS)
        pages = {path: read(connection, path) for path in PAGES}
        before, start = server.processor_seconds(), time.perf_counter()
        time.sleep(idle)
        share = (server.processor_seconds() - before) / (time.perf_counter() - start)
        added = add_model(folder / "models", connection)
        start = time.perf_counter()
        os.kill(server.process, signal.SIGTERM)
        os.waitid(os.P_PID, server.process, os.WEXITED | os.WNOWAIT)
        stopped = time.perf_counter() - start
    return Figures(server.ready_s, processor, resident, threads, all_models, one_model, added, share, stopped, pages)


def predictions(server: Server, connection: http.client.HTTPConnection, names: list[str], count: int) -> float:
    """Send requests to the models in turn. Return the microseconds of processor time that the server needs for one
    request.
    """
    rows = json.loads((SOURCE / "manifest.json").read_text())["golden"]["inputs"][:1]
    body = json.dumps({"instances": rows})
    before = server.processor_seconds()
    for index in range(count):
        connection.request("POST", f"/v1/models/{names[index % len(names)]}:predict", body)
        response = connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise SystemExit(f"{names[index % len(names)]}: {content.decode()}")
    return (server.processor_seconds() - before) / count * 1e6


def read(connection: http.client.HTTPConnection, path: str) -> tuple[float, int]:
    """Return the seconds of the first response, and its length in bytes."""
    start = time.perf_counter()
    connection.request("GET", path)
    length = len(connection.getresponse().read())
    return time.perf_counter() - start, length


def add_model(folder: Path, connection: http.client.HTTPConnection) -> float:
    """Add a model to the folder, and return the seconds until it is ready. Then remove it."""
    write_model(folder, "added")
    start = time.perf_counter()
    while True:
        connection.request("GET", "/v2/models/added/ready")
        response = connection.getresponse()
        response.read()
        if response.status == http.client.OK:
            break
        time.sleep(0.02)
    took = time.perf_counter() - start
    for file in sorted((folder / "added").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (folder / "added").rmdir()
    return took


def table(found: dict[int, Figures]) -> str:
    """Write one column for each number of models."""
    rows: list[Row] = [("models in one process", *(f"{count:,}" for count in found))]
    each = list(found.items())
    rows += [
        ("start to ready, s", *(number(x.ready) for _, x in each)),
        ("processor time until ready, ms for each model", *(number(x.ready_processor * 1e3 / n) for n, x in each)),
        ("resident memory, MB", *(number(x.resident_mb) for _, x in each)),
        ("threads", *(str(x.threads) for _, x in each)),
        ("request over all models in turn, processor µs", *(number(x.request_us) for _, x in each)),
        ("request to one model, processor µs", *(number(x.one_model_us) for _, x in each)),
        ("a new model in the folder to ready, s", *(number(x.added) for _, x in each)),
        ("share of a core without requests", *(f"{x.idle_share:.1%}" for _, x in each)),
        ("stop, s", *(number(x.stopped) for _, x in each)),
    ]
    for path in PAGES:
        cells = (f"{number(x.pages[path][0] * 1e3)} ms, {number(x.pages[path][1] / 1e3)} kB" for _, x in each)
        rows.append((f"first `GET {path}`", *cells))
    least, most = each[0], each[-1]
    if most[0] > least[0]:
        slope = (most[1].resident_mb - least[1].resident_mb) / (most[0] - least[0]) * 1e3
        rows.append(("memory of each further model, kB", *("" for _ in each[:-1]), number(slope)))
    return markdown(rows)


if __name__ == "__main__":
    main()
