"""Measures foldserve when it gets more requests than it can answer: `python benchmarks/overload.py`.

The server has one core, and the program that sends the load has another core. The benchmark has four rounds. In the
first round, a closed loop gives the peak rate. In the second round, a small load gives the latency without a queue. In
the third round, an open loop overloads the server: it sends requests at a multiple of the peak rate. The last round
measures the recovery after the overload. The table compares the figures with their targets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rig.environments import ROOT
from rig.open_loop import Load, Outcome
from rig.processes import two_cores
from rig.servers import Server, free_port, running
from sklearn.datasets import load_digits

# The request rate of a round with a small load, as a share of the peak rate.
_UNLOADED = 0.2
_RECOVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Figures:
    """The results of all rounds of one measurement.

    peak_s: the processor time of the server in the round `peak`, in seconds.
    overload_s: the processor time of the server in the round `overload`, in seconds.
    driver_s: the processor time of this program in the round `overload`, in seconds.
    """

    peak: Outcome
    unloaded: Outcome
    overload: Outcome
    recovery: Outcome
    peak_s: float
    overload_s: float
    driver_s: float
    broken: int


def main() -> None:
    """Measure all rounds, and print the table."""
    chosen = _arguments()
    cores = two_cores()
    os.sched_setaffinity(0, cores[-1:])
    port = free_port()
    program = [sys.executable, "-m", "foldserve.service", "serve", "--models", chosen.models, "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with running([*program, *chosen.flags], port, "/v2/health/ready", core=cores[0], log=log) as server:
            figures = _measure(chosen, server)
        sys.stderr.write(log.read_text())
    print(_table(chosen, figures))


def _measure(chosen: argparse.Namespace, server: Server) -> Figures:
    request = _request(chosen.rows, chosen.header)
    load = Load(server.port, chosen.connections)
    load.closed_loop(request, 1.0, chosen.peak_connections)  # the server first measures the cost of a request
    before = server.processor_seconds()
    peak = load.closed_loop(request, chosen.peak_seconds, chosen.peak_connections)
    peak_s = server.processor_seconds() - before
    rate = peak.count(200) / peak.span()

    def offer(seconds: float, factor: float) -> Outcome:
        return load.open_loop(request, seconds, rate * factor, poisson=not chosen.constant, seed=chosen.seed)

    unloaded = offer(chosen.peak_seconds, _UNLOADED)
    before, driver_before = server.processor_seconds(), time.process_time()
    overload = offer(chosen.seconds, chosen.factor)
    overload_s, driver_s = server.processor_seconds() - before, time.process_time() - driver_before
    recovery = offer(_RECOVERY_SECONDS, _UNLOADED)
    broken = load.broken
    load.close()
    return Figures(peak, unloaded, overload, recovery, peak_s, overload_s, driver_s, broken)


def _request(rows: int, headers: list[str]) -> bytes:
    body = json.dumps({"instances": load_digits().data[:rows].tolist()}).encode()
    lines = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _table(chosen: argparse.Namespace, figures: Figures) -> str:
    peak = figures.peak.count(200) / figures.peak.span()
    overload = figures.overload
    unloaded_p99 = _percentile(figures.unloaded, 200, 99)
    goodput = overload.count(200) / overload.span()
    total = len(overload.status)
    offered = total / (max(overload.scheduled) - overload.started)
    late = np.percentile(np.array(overload.sent) - np.array(overload.scheduled), 99)
    lines = [
        ("closed-loop peak, requests/s", f"{peak:,.0f}", ""),
        ("unloaded p50 / p99, ms", f"{_percentile(figures.unloaded, 200, 50):.2f} / {unloaded_p99:.2f}", ""),
        ("offered, requests/s", f"{offered:,.0f}", f"{chosen.factor:g} x the peak"),
        ("the driver's own delay p99, ms", f"{late * 1e3:.2f}", ""),
        ("accepted p50 / p99, ms", _pair(overload, 200), f"p99 at most {2 * unloaded_p99:.2f} and one batch"),
        ("503, share", f"{overload.count(503) / total:.1%}", ""),
        ("time to 503, p50 / p99, ms", _pair(overload, 503), "at most 50"),
        ("the same after the request was sent, ms", _pair_after_sending(overload, 503), ""),
        ("Retry-After, least and most", _retry_after(overload), ""),
        ("goodput, requests/s", f"{goodput:,.0f} ({goodput / peak:.1%} of the peak)", "at least 85%"),
        ("the same per second of the server's processor", _per_processor_second(figures), "at least 85%"),
        ("processor of the server / of the driver, of a core", _shares(figures), "100% / less"),
        ("recovery, s", f"{_recovery(figures.recovery, 2 * unloaded_p99):.2f}", "at most 2"),
        ("other responses / broken connections", f"{_others(overload)} / {figures.broken}", "0 / 0"),
    ]
    width = max(len(name) for name, _, _ in lines)
    return "\n".join(f"{name:{width}}  {value:24} {target}" for name, value, target in lines)


def _percentile(outcome: Outcome, status: int, percent: float) -> float:
    """Return a percentile of the latencies, in milliseconds."""
    found = outcome.latencies(status)
    return float(np.percentile(found, percent)) * 1e3 if len(found) else float("nan")


def _pair(outcome: Outcome, status: int) -> str:
    return f"{_percentile(outcome, status, 50):.2f} / {_percentile(outcome, status, 99):.2f}"


def _pair_after_sending(outcome: Outcome, status: int) -> str:
    """Return percentiles of the latency, measured from the time at which the driver sent the request."""
    found = (np.array(outcome.answered) - np.array(outcome.sent))[np.array(outcome.status, int) == status] * 1e3
    return f"{np.percentile(found, 50):.2f} / {np.percentile(found, 99):.2f}" if len(found) else "-"


def _shares(figures: Figures) -> str:
    """Return the processor time of the server and of the driver, as shares of the duration of the overload.

    If the server got much less than a whole core, other programs used the rest, and the goodput per second says little
    about the server. If the driver used a whole core, it was too slow, and read responses late.
    """
    seconds = figures.overload.span()
    return f"{figures.overload_s / seconds:.0%} / {figures.driver_s / seconds:.0%}"


def _retry_after(outcome: Outcome) -> str:
    given = [seconds for seconds, status in zip(outcome.retry_after, outcome.status, strict=True) if status == 503]
    return f"{min(given)} / {max(given)}" if given else "-"


def _per_processor_second(figures: Figures) -> str:
    """Return how many good responses the server sent in the overload per second of its processor time, and this figure
    as a share of the peak.

    Other programs on the machine do not affect the processor time of the server.
    """
    peak = figures.peak.count(200) / figures.peak_s
    goodput = figures.overload.count(200) / figures.overload_s
    return f"{goodput:,.0f} ({goodput / peak:.1%} of the peak)"


def _others(outcome: Outcome) -> int:
    return len(outcome.status) - outcome.count(200) - outcome.count(503)


def _recovery(outcome: Outcome, limit_ms: float) -> float:
    """Return the seconds until the service has recovered from the overload.

    The service has recovered when 98% of the requests in half a second are answered in time.
    """
    scheduled = np.array(outcome.scheduled)
    fast = (np.array(outcome.answered) - scheduled) * 1e3 <= limit_ms
    good = (np.array(outcome.status) == 200) & fast
    arrived = scheduled - outcome.started
    for start in np.arange(0.0, _RECOVERY_SECONDS - 0.5, 0.05):
        inside = (arrived >= start) & (arrived < start + 0.5)
        if inside.any() and good[inside].mean() >= 0.98:
            return float(start)
    return float("inf")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=str(ROOT / "models"), help="folder of the models (default: models)")
    parser.add_argument("--seconds", type=float, default=60, help="length of the overload (default: %(default)s)")
    parser.add_argument("--factor", type=float, default=3, help="offered load, as a multiple of the peak (default: 3)")
    parser.add_argument("--connections", type=int, default=1000, help="kept connections (default: %(default)s)")
    parser.add_argument("--peak-connections", type=int, default=32, help="connections of the peak (default: 32)")
    parser.add_argument("--peak-seconds", type=float, default=5, help="length of the other rounds (default: 5)")
    parser.add_argument("--rows", type=int, default=1, help="rows of a request (default: 1)")
    parser.add_argument("--header", action="append", default=[], help="a header of each request, as 'Name: value'")
    parser.add_argument("--constant", action="store_true", help="constant intervals instead of random ones (Poisson)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the arrivals (default: 0)")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of the server, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
