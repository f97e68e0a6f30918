"""Compares a replica of Ray Serve with `foldserve serve`: `python benchmarks/ray_serve.py`; needs Ray and wrk.

Run this program with the Python of `make test-ray`. All processes of a server share one core, and wrk has another core.
In each round, both servers get the same load, one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from rig import servers, wrk
from rig.environments import ROOT

# Ray takes much longer to start than a model server.
servers.READY_TIMEOUT = 300


class Load(NamedTuple):
    """A load. headers: the headers of each request."""

    title: str
    body: bytes
    headers: dict[str, str]
    rows: int
    connections: int


def loads() -> list[Load]:
    """Return the loads: single rows, and large bodies of raw float32 rows."""
    rows = json.loads((ROOT / "models/digits/1/manifest.json").read_text())["golden"]["inputs"]
    one = json.dumps({"instances": rows[:1]}).encode()
    many = np.resize(np.array(rows, np.float32), (1024, len(rows[0]))).tobytes()
    return [
        Load("1 row, JSON, 32 connections", one, {"Content-Type": "application/json"}, 1, 32),
        Load("1,024 rows, float32, 4 connections", many, {"Content-Type": "application/octet-stream"}, 1024, 4),
    ]


def configuration(folder: Path, port: int) -> Path:
    """Write deploy/ray/serve.yaml with one replica."""
    content = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    content["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = content["applications"]
    application["args"] = {"models": str(ROOT / "models"), "max_wait": 10}
    application["deployments"][0]["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    application["deployments"][0]["ray_actor_options"] = {"num_cpus": 0.1}
    file = folder / f"serve-{port}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument(
        "--haproxy", action="store_true", help="let Ray route with HAProxy: RAY_SERVE_ENABLE_HA_PROXY=1"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, ports = Path(name), (servers.free_port(), servers.free_port())
        plain = [sys.executable, "-m", "foldserve.service", "serve", "--models", str(ROOT / "models")]
        plain += ["--port", str(ports[0]), "--max-wait", "10"]
        ray = ["env", "RAY_ADDRESS=local", f"RAY_SERVE_ENABLE_HA_PROXY={int(options.haproxy)}"]
        ray += [str(Path(sys.executable).with_name("serve")), "run", str(configuration(folder, ports[1]))]
        for program, port in zip((plain, ray), ports, strict=True):
            log = folder / f"{port}.log"
            stack.enter_context(servers.running(program, port, "/v2/health/ready", core=0, log=log))
        for load in loads():
            (folder / "body").write_bytes(load.body)
            figures: list[list[wrk.Figures]] = []
            for number in range(-1, options.rounds):
                pair = [
                    wrk.load(
                        f"http://127.0.0.1:{port}/predict",
                        folder / "body",
                        load.headers,
                        connections=load.connections,
                        seconds=options.seconds,
                        rows=load.rows,
                        core=1,
                    )
                    for port in ports
                ]
                if number >= 0:  # the first round is only a warm-up
                    figures.append(pair)
            ratio = statistics.median(other.rows_per_second / own.rows_per_second for own, other in figures)
            for title, column in (("foldserve serve", 0), ("Ray Serve", 1)):
                rate = statistics.median(pair[column].rows_per_second for pair in figures)
                p50 = statistics.median(pair[column].p50_ms for pair in figures)
                p99 = statistics.median(pair[column].p99_ms for pair in figures)
                print(f"| {load.title} | {title} | {rate:,.0f} | {p50:.2f} | {p99:.2f} |", flush=True)
            print(f"{load.title}: Ray Serve has {ratio:.3f} of the rows/s of foldserve serve", flush=True)


if __name__ == "__main__":
    main()
