"""Measures the service over HTTP.

`foldserve serve` runs in its own process. Clients send binary tensors on several connections.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from foldserve.service.runtime.session import Precision
from rig import servers
from rig.bodies import HEAD_LENGTH, Body, WrongResponseError, ask, binary, read
from rig.environments import CONTENDERS, ROOT
from rig.gpu.networks import TOLERANCES, Network, distance
from rig.gpu.timing import percentile
from rig.servers import Server

NEEDS = (
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
    "prometheus_client",
    "simdjson",
    "nanoarrow",
    "pydantic",
    "annotated_doc",
    "annotated_types",
    "opentelemetry",
)
_CLIENTS = 4  # the clients are processes that share the connections, because one process could not load the server


@dataclass(frozen=True)
class Load:
    """A load: the rows of each request, and the number of connections."""

    rows: int
    connections: int


LOADS = (
    Load(1, 1),
    Load(1, 32),
    Load(64, 1),
    Load(64, 16),
    Load(1024, 1),
    Load(1024, 8),
    Load(65536, 1),
    Load(65536, 2),
)


@dataclass
class Served:
    """The results of each round for one network in one precision under one load.

    Latencies are in seconds, and rates in rows per second.
    """

    network: str
    precision: Precision
    rows: int
    connections: int
    rates: list[float] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    error: float = 0.0

    @property
    def medians(self) -> list[float]:
        """The median latency of each round, in seconds."""
        return [median(one) for one in self.latencies]

    def percentile(self, share: float) -> float:
        """Return the percentile `share` of all latencies, in seconds."""
        return percentile([x for one in self.latencies for x in one], share)


def missing() -> list[str]:
    """List the packages that the service needs but that are not installed."""
    return [name for name in NEEDS if find_spec(name) is None]


@dataclass
class Service:
    """The settings that all loads share."""

    folder: Path
    models: Path
    device: str
    largest: int  # the largest number of rows of a request
    rounds: int
    seconds: float
    note: Callable[[str, str], None]
    generator: np.random.Generator

    def measure(self, network: Network, precision: Precision, loads: Sequence[Load]) -> list[Served]:
        """Start the service with one network.

        Check the responses, load the service in rounds, and check again. Raises `StartError`.
        """
        found = [Served(network.title, precision, load.rows, load.connections) for load in loads]
        failed: set[int] = set()
        with self._serving(network, precision) as server:
            self._check(server, network, found, failed)
            for number in range(self.rounds):
                for one in found:
                    if one.rows not in failed:
                        print(
                            f"round {number + 1}: {network.title} {precision} over HTTP: {one.rows:,}", file=sys.stderr
                        )
                        self._load(server, network, one, failed)
            self._check(server, network, found, failed)
        return [one for one in found if one.rows not in failed and one.rates]

    @contextmanager
    def _serving(self, network: Network, precision: Precision) -> Iterator[Server]:
        port = servers.free_port()
        body = self.largest * network.widths[0] * 4 + 2**20
        settings: dict[str, object] = {
            "device": self.device,
            "max_rows": self.largest,
            "max_batch": self.largest,
            "max_queue": 8 * self.largest,
            "max_body": body,
            "timeout": 60,
        }
        if precision != "fp32":  # fp32 is the default of the service
            settings["precision"] = precision
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        program = [
            sys.executable,
            "-m",
            "foldserve.service",
            "serve",
            "--models",
            str(self.models),
            "--port",
            str(port),
            *flags,
        ]
        log = self.folder / f"{network.name}-{precision}.log"
        with servers.running(program, port, "/v2/health/ready", core=None, log=log) as server:
            yield server

    def _check(self, server: Server, network: Network, found: Sequence[Served], failed: set[int]) -> None:
        """For each number of rows in the loads, send new random rows, and compare the responses with the reference."""
        for count in dict.fromkeys(one.rows for one in found):
            same_rows = [one for one in found if one.rows == count]
            try:
                error = self._error(server, network, same_rows[0].precision, count)
            except Exception as failure:  # noqa: BLE001
                self.note("foldserve serve", f"{network.title} {same_rows[0].precision}, {count:,} rows: {failure}")
                failed.add(count)
                continue
            for one in same_rows:
                one.error = max(one.error, error)

    def _error(self, server: Server, network: Network, precision: Precision, count: int) -> float:
        rows = self.generator.standard_normal((count, network.widths[0]), np.float32)
        content, headers = binary(rows)
        expected = network.oracle(rows)
        body = Body(Path(), content, headers, expected.astype(np.float32))
        outputs = read("binary", *ask(server.port, _path(network), body))
        if TOLERANCES[precision].measure(expected, outputs).worst > 1:
            raise WrongResponseError("the response is outside the tolerance")
        return distance(outputs.astype(np.float32), expected)

    def _load(self, server: Server, network: Network, one: Served, failed: set[int]) -> None:
        rows = self.generator.standard_normal((one.rows, network.widths[0]), np.float32)
        content, headers = binary(rows)
        file = self.folder / "body"
        file.write_bytes(content)
        shares = [len(range(i, one.connections, _CLIENTS)) for i in range(min(_CLIENTS, one.connections))]

        def client(connections: int) -> dict[str, Any]:
            script = str(CONTENDERS / "post_binary.py")
            arguments = (server.port, _path(network), file, headers[HEAD_LENGTH], self.seconds, connections)
            program = [sys.executable, script, *map(str, arguments)]
            done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
            result: dict[str, Any] = json.loads(done.stdout)
            return result

        with ThreadPoolExecutor(len(shares)) as pool:
            results = list(pool.map(client, shares))
        if sum(result["errors"] for result in results):
            self.note("foldserve serve", f"{network.title} {one.precision}, {one.rows:,} rows: a response was not 200")
            failed.add(one.rows)
            return
        one.rates.append(sum(one.rows * len(result["latencies"]) / result["seconds"] for result in results))
        one.latencies.append([x for result in results for x in result["latencies"]])


def _path(network: Network) -> str:
    return f"/v2/models/{network.name}/infer"
