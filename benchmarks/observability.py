"""Measures the cost of access log, prediction log and traces: `python benchmarks/observability.py`; needs wrk.

The benchmark compares the processor time per request, because other programs disturb the rate more than this time. In
each round, the servers get the same load, one server after the other. `--baseline DIR` also measures the code of
another checkout.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import statistics
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from rig import servers, wrk
from rig.environments import ROOT

LOG = ("--access-log", "--log-format", "json")
TRACES = ("--otel",)
PREDICTIONS = ("--prediction-log", "FOLDER", "--prediction-log-interval", "5", "--prediction-log-share")
VARIANTS = {
    "off": (),
    "off again": (),
    "access log": LOG,
    "traces": TRACES,
    "both": (*LOG, *TRACES),
    "predictions, 1%": (*PREDICTIONS, "0.01"),
    "predictions, all": (*PREDICTIONS, "1"),
}
TRACEPARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Request-Id": "order-7"}


class Sink(http.server.BaseHTTPRequestHandler):
    """A collector that discards each message."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one message."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def start(
    stack: ExitStack, folder: Path, name: str, flags: tuple[str, ...], code: Path = ROOT, *, core: int | None = 0
) -> servers.Server:
    """Start one server. code: the checkout whose code the server runs. core: the server's only core; None for all."""
    port = servers.free_port()
    program = [sys.executable, "-m", "foldserve.service", "serve", "--models", str(ROOT / "models"), "--port"]
    program = ["env", f"PYTHONPATH={code}", *program, str(port), "--max-wait", "10", *flags]
    log = folder / f"{name}.log"
    return stack.enter_context(servers.running(program, port, "/v2/health/ready", core=core, log=log))


def measure(
    server: servers.Server, body: Path, headers: dict[str, str], seconds: float, *, rows: int = 1, connections: int = 32
) -> tuple[float, float]:
    """Return the processor time for each request, in microseconds, and the number of requests per second."""
    before = server.processor_seconds()
    url = f"http://127.0.0.1:{server.port}/predict"
    figures = wrk.load(url, body, headers, connections=connections, seconds=seconds, rows=rows, core=1)
    used = server.processor_seconds() - before
    requests = figures.rows_per_second / rows
    return used / (requests * round(seconds)) * 1e6, requests


def report(title: str, rounds: dict[str, list[tuple[float, float]]]) -> None:
    """Print the median of each figure, and the median of its ratio to the figure of `off` in the same round."""
    print(
        f"\n| {title} | processor time, µs per request | ÷ off | requests/s | ÷ off |\n| --- | --- | --- | --- | --- |"
    )
    for name, figures in rounds.items():
        cells = []
        for column, form in ((0, "{:.1f}"), (1, "{:,.0f}")):
            values = [each[column] for each in figures]
            ratios = sorted(own / off[column] for own, off in zip(values, rounds["off"], strict=True))
            cells.append(form.format(statistics.median(values)))
            cells.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="besides off")
    parser.add_argument("--baseline", type=Path, help="another checkout, measured without log and traces")
    options = parser.parse_args()
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{sink.server_address[1]}"
    row = json.loads((ROOT / "models/digits/1/manifest.json").read_text())["golden"]["inputs"][:1]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "body").write_text(json.dumps({"instances": row}))
        running = {
            name: start(stack, folder, name, tuple(x.replace("FOLDER", str(folder / name)) for x in flags), ROOT)
            for name, flags in VARIANTS.items()
            if name == "off" or name in options.only
        }
        if options.baseline:
            running["baseline"] = start(stack, folder, "baseline", (), options.baseline)
        loads = {"1 row, 32 connections": {}, "the same with traceparent and X-Request-Id": TRACEPARENT}
        for title, headers in loads.items():
            rounds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in running}
            for number in range(-1, options.rounds):
                for variant, server in running.items():
                    figures = measure(server, folder / "body", headers, 1.0 if number < 0 else options.seconds)
                    if number >= 0:  # the first round only warms up the servers
                        rounds[variant].append(figures)
            report(title, rounds)


if __name__ == "__main__":
    main()
