"""Computes the replicas for a load from measurements on one core: `python benchmarks/scaling.py [--write]`.

First, one server on one core answers each protocol in a closed loop. The closed loop gives the processor time of a
request. The program computes the table of replicas from the processor times. For a second measurement, servers get
requests at random times. The measured latencies are compared with the latencies of a simulation (`rig/queue_check.py`),
which uses only processor times.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
from rig import h2load, servers, wrk
from rig.bodies import binary
from rig.cases import OIP
from rig.environments import ROOT
from rig.h2load import Call
from rig.processes import two_cores
from rig.queue_check import Plan, compare, turn
from rig.queueing import Replica, latencies
from rig.report import Row, machine, markdown, number, write_section
from sklearn.datasets import load_digits

from foldserve.service.rpc import open_inference_pb2 as pb

DOCUMENT = ROOT / "docs" / "scaling.md"
TARGET_ROWS = 1_000_000
UTILISATION = 0.6
RESIDENT_MB = 120
CHECK_ROWS = 64


@dataclass(frozen=True)
class Protocol:
    """One kind of request: its protocol and its number of rows.

    in_flight: the number of requests in flight in the closed loop.
    """

    title: str
    rows: int
    kind: str
    in_flight: int


PROTOCOLS = (
    Protocol("JSON, 1 row", 1, "json", 32),
    Protocol("gRPC, 1 row", 1, "grpc", 32),
    Protocol("JSON, 64 rows", 64, "json", 16),
    Protocol("gRPC, 1,024 rows", 1024, "grpc", 4),
    Protocol("binary tensor, 1,024 rows", 1024, "binary", 4),
    Protocol("raw float32, 1,024 rows", 1024, "raw", 4),
)


@dataclass(frozen=True)
class Cost:
    """The cost of one request: the server's processor time in seconds, and the sizes of the request and the response.

    sent: the bytes of the request body. received: the bytes of the response body.
    """

    seconds: float
    sent: int
    received: int


def main() -> None:
    """Measure, and print the tables. With --write, also write the tables to docs/scaling.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="length of each load (default: %(default)s)")
    parser.add_argument("--price", type=float, default=0.04, help="price of a core for an hour (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    chosen = parser.parse_args()
    programs = [h2load.version(), f"wrk {wrk.version().removeprefix('wrk ')}"]
    cores = two_cores()
    rows = load_digits().data[:1024].astype("<f4")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), rows, chosen.seconds, cores)
        costs = {protocol: bench.cost(protocol) for protocol in PROTOCOLS}
        replica, comparison = bench.check()
    versions = [f"{name} {version(name)}" for name in ("foldserve", "onnxruntime", "numpy", "grpcio")]
    text = "\n\n".join(
        [
            machine([*programs, *versions]),
            replicas(costs, chosen.price),
            comparison,
            utilisation(replica),
            balancing(replica),
        ]
    )
    print(text)
    if chosen.write:
        write_section(text, DOCUMENT)


class Bench:
    """Runs all measurements under the same conditions. rows: the rows to send, float32 [1024, features]."""

    def __init__(self, folder: Path, rows: np.ndarray, seconds: float, cores: list[int]) -> None:
        self._folder = folder
        self._rows = rows
        self._seconds = seconds
        self._cores = cores

    @contextmanager
    def _serving(self, core: int, *flags: str) -> Iterator[servers.Server]:
        port = servers.free_port()
        program = [sys.executable, "-m", "foldserve.service", "serve", "--models", "models", "--port", str(port)]
        program += flags
        log = self._folder / "log"
        with servers.running(program, port, "/v2/health/ready", core=core, log=log) as server:
            yield server

    def cost(self, protocol: Protocol) -> Cost:
        """Measure the processor time of a request in a closed loop on one core."""
        print(protocol.title, file=sys.stderr)
        rows, file = self._rows[: protocol.rows], self._folder / "body"
        grpc_port = servers.free_port()
        with self._serving(self._cores[0], "--grpc-port", str(grpc_port)) as server:
            if protocol.kind == "grpc":
                return self._grpc_cost(server, grpc_port, protocol, rows)
            headers, path = {"Content-Type": "application/octet-stream"}, OIP
            if protocol.kind == "json":
                headers, path = {"Content-Type": "application/json"}, "/predict"
                body = json.dumps({"instances": rows.tolist()}).encode()
            elif protocol.kind == "binary":
                body, headers = binary(rows)
            else:
                body, headers = rows.tobytes(), headers | {"Inference-Header-Content-Length": "0"}
            file.write_bytes(body)
            received = _response_bytes(server.port, path, body, headers)
            seconds = count = 0.0
            for length in (1.0, self._seconds):
                before = server.processor_seconds()
                rate = wrk.load(
                    f"http://127.0.0.1:{server.port}{path}",
                    file,
                    headers,
                    connections=protocol.in_flight,
                    seconds=length,
                    rows=1,
                    core=self._cores[-1],
                ).rows_per_second
                seconds, count = server.processor_seconds() - before, rate * max(1, round(length))
        return Cost(seconds / count, len(body), received)

    def _grpc_cost(self, server: servers.Server, port: int, protocol: Protocol, rows: np.ndarray) -> Cost:
        message = pb.ModelInferRequest(model_name="digits", raw_input_contents=[rows.tobytes()])
        message.inputs.add(name="input", datatype="FP32", shape=rows.shape)
        content = message.SerializeToString()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            response = channel.unary_unary(h2load.PATH)(content, timeout=30, wait_for_ready=True)
        file = self._folder / "message"
        file.write_bytes(h2load.prefixed(content))
        call = Call(file, protocol.rows, len(h2load.prefixed(response)), 4, protocol.in_flight // 4)
        h2load.load(port, call, seconds=0, core=self._cores[-1])
        before = server.processor_seconds()
        _, count = h2load.load(port, call, seconds=self._seconds, core=self._cores[-1])
        seconds = (server.processor_seconds() - before) / (count + h2load.WARM_UP_REQUESTS)
        return Cost(seconds, len(content), len(response))

    def check(self) -> tuple[Replica, str]:
        """Measure the times of a turn, then compare the latencies of servers with the simulation.

        Return the measured times, and the table of the comparison.
        """
        body = json.dumps({"instances": self._rows[:CHECK_ROWS].tolist()}).encode()
        lines = ("POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
        request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        print("times of a turn", file=sys.stderr)
        plan = Plan(self._serving, request, 65_536 // CHECK_ROWS, self._seconds, (self._cores[0], self._cores[-1]))
        replica = turn(plan)
        title = (
            f"{CHECK_ROWS} rows of JSON, Poisson arrivals. A turn takes {replica.fixed * 1e6:.0f} µs, "
            f"plus {replica.each * 1e6:.0f} µs for each request:"
        )
        return replica, f"{title}\n\n{compare(plan, replica)}"


def _response_bytes(port: int, path: str, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != http.client.OK:
        raise SystemExit(f"{path}: {content[:200].decode()}")
    return len(content)


def replicas(costs: dict[Protocol, Cost], price: float) -> str:
    """Write the table of cores, memory, network and price for a million rows a second."""
    table: list[Row] = [
        (
            "",
            "processor µs/request",
            "rows/s of a core",
            "requests/s",
            "cores",
            "memory, GB",
            "bodies, Gbit/s",
            "price/h",
        )
    ]
    for protocol, cost in costs.items():
        requests = TARGET_ROWS / protocol.rows
        cores = int(np.ceil(requests * cost.seconds / UTILISATION))
        network = requests * (cost.sent + cost.received) * 8 / 1e9
        cells = (number(cost.seconds * 1e6), number(protocol.rows / cost.seconds), f"{requests:,.0f}", f"{cores:,}")
        cells += (number(cores * RESIDENT_MB / 1e3), number(network), number(cores * price))
        table.append((protocol.title, *cells))
    title = f"{TARGET_ROWS:,} rows a second, each core used for {UTILISATION:.0%}, {price:g} for a core-hour"
    return f"{title}:\n\n{markdown(table)}"


def utilisation(replica: Replica) -> str:
    """Write the table of the simulated p99 for several utilisations, with and without the batcher."""
    single = Replica(replica.fixed, replica.each, 1)
    loads = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    table: list[Row] = [("simulated p99, ms", *(f"{load:.0%}" for load in loads))]
    for title, one in (("batches, 1 replica", replica), ("one request at a time, 1 replica", single)):
        times = [latencies(one, load / (one.fixed + one.each), 100_000) for load in loads]
        table.append((title, *(number(float(np.percentile(t, 99)) * 1e3) for t in times)))
    return f"At a utilisation of 100%, one request would follow the other without a pause:\n\n{markdown(table)}"


def balancing(replica: Replica) -> str:
    """Write the table of the simulated p99 of several replicas, with equal and unequal shares of the requests."""
    table: list[Row] = [("simulated p99, ms, at 70%", "equal shares", "one replica gets 30% more than its share")]
    for count in (2, 4, 16):
        rate = 0.7 * count / (replica.fixed + replica.each)
        shares = ([1.0] * count, [1.3] + [(count - 1.3) / (count - 1)] * (count - 1))
        found = [latencies(replica, rate, 400_000, shares=x) for x in shares]
        table.append((f"{count} replicas", *(number(float(np.percentile(x, 99)) * 1e3) for x in found)))
    return markdown(table)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
