"""Compares the Open Inference Protocol over gRPC on foldserve, MLServer and Triton: `python benchmarks/rpc.py`.

Only one server runs at a time. The server has one core, and h2load has another core. All servers have the same model
and get the same messages, with the rows in `raw_input_contents`. A response is checked before each load. Every round
measures all servers, and a ratio compares two figures of the same round. The program also measures foldserve over HTTP,
with the same rows as binary tensors. A processor time includes all processes of the server, and the work of the kernel
for these processes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import grpc
import numpy as np
from rig import environments, h2load, servers, wrk
from rig.bodies import Body, WrongResponseError, write_bodies
from rig.cases import FOLDSERVE, MODEL, OIP
from rig.environments import ROOT, StartError, pins
from rig.h2load import Call
from rig.processes import two_cores
from rig.report import NONE, Row, machine, markdown, median_and_range, number, write_section
from rig.wrk import Figures, LoadError

from foldserve.service.rpc import open_inference_pb2 as pb

OURS = "foldserve"
HTTP = "foldserve, HTTP binary"


@dataclass(frozen=True)
class Contender:
    """A server. In `command`, {port} is the port of HTTP, and {grpc} the port of gRPC."""

    command: tuple[str, ...]
    ready: str
    requirements: str | None = None


SCRIPT = ("{python}", "benchmarks/contenders/serve_{name}.py", "{port}", MODEL, "{grpc}")
CONTENDERS = {
    OURS: Contender((*FOLDSERVE, "--grpc-port", "{grpc}"), "/v2/health/ready"),
    "MLServer": Contender(SCRIPT, "/v2/models/digits/ready", "mlserver"),
    "Triton (pytriton)": Contender(SCRIPT, "/v2/models/digits/ready", "triton"),
}
# The rows of a call, the connections, and the calls in flight on each connection.
LOADS = ((1, 4, 8), (1, 1, 1), (1024, 4, 1))
TARGET = 1.0


@dataclass(frozen=True)
class Measured:
    """The figures of one load, and the processor time per request in seconds."""

    figures: Figures
    processor: float


Key = tuple[str, tuple[int, int, int]]


def main() -> None:
    """Measure and print the tables. With --write, also write the tables to benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="length of each load (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    chosen = parser.parse_args()
    programs = [h2load.version(), f"wrk {wrk.version().removeprefix('wrk ')}"]
    cores = two_cores()
    os.chdir(ROOT)
    rounds: list[dict[Key, Measured]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, cores[-1:])
        bench = Bench(Path(folder), cores[0], cores[-1], chosen.seconds)
        for count in range(chosen.repeats):
            rounds.append({})
            for name in CONTENDERS:
                print(f"round {count + 1} of {chosen.repeats}: {name}", file=sys.stderr)
                try:
                    rounds[-1] |= bench.measure(name)
                except (StartError, WrongResponseError, LoadError) as error:
                    raise SystemExit(f"{name}: {error}") from error
    packages = [f"{name} {version(name)}" for name in ("foldserve", "grpcio", "protobuf", "onnxruntime")]
    others = [f"contender {pin}" for name in ("mlserver", "triton") for pin in pins(name, name)]
    text = "\n\n".join([machine([*programs, *packages, *others]), *(table(rounds, load) for load in LOADS)])
    print(text)
    if chosen.write:
        write_section(text)


class Bench:
    """The folder, the cores and the duration of all measurements."""

    def __init__(self, folder: Path, server_core: int, load_core: int, seconds: float) -> None:
        self._folder = folder
        self._server_core = server_core
        self._load_core = load_core
        self._seconds = seconds
        self._bodies = write_bodies(ROOT / MODEL, folder)
        self._rows = np.load(folder / "rows.npy")

    def measure(self, name: str) -> dict[Key, Measured]:
        """Start a server and measure each load. Raises `StartError`, `WrongResponseError` and `LoadError`."""
        contender = CONTENDERS[name]
        other = contender.requirements
        places = {
            "python": str(environments.environment(other) if other else sys.executable),
            "name": other,
            "port": servers.free_port(),
            "grpc": servers.free_port(),
        }
        program = [part.format(**places) for part in contender.command]
        log = self._folder / "server.log"
        results = {}
        with servers.running(program, places["port"], contender.ready, core=self._server_core, log=log) as server:
            for load in LOADS:
                results[name, load] = self._grpc(server, places["grpc"], load)
                if name == OURS:
                    results[HTTP, load] = self._http(server, load)
        return results

    def _grpc(self, server: servers.Server, port: int, load: tuple[int, int, int]) -> Measured:
        rows, connections, streams = load
        body = self._bodies["binary", rows]
        message = request(self._rows[:rows]).SerializeToString()
        file = self._folder / f"grpc-{rows}"
        file.write_bytes(h2load.prefixed(message))
        length = len(h2load.prefixed(check(port, message, body)))
        call = Call(file, rows, length, connections, streams)
        h2load.load(port, call, seconds=0, core=self._load_core)  # warm-up
        before = server.processor_seconds()
        figures, count = h2load.load(port, call, seconds=self._seconds, core=self._load_core)
        return Measured(figures, (server.processor_seconds() - before) / (count + h2load.WARM_UP_REQUESTS))

    def _http(self, server: servers.Server, load: tuple[int, int, int]) -> Measured:
        rows, connections, streams = load
        body, url = self._bodies["binary", rows], f"http://127.0.0.1:{server.port}{OIP}"
        figures = Figures(0)
        before = count = 0.0
        for length in (1.0, self._seconds):
            before = server.processor_seconds()
            figures = wrk.load(
                url,
                body.file,
                body.headers,
                connections=connections * streams,
                seconds=length,
                rows=rows,
                core=self._load_core,
            )
            count = figures.rows_per_second / rows * max(1, round(length))
        return Measured(figures, (server.processor_seconds() - before) / count)


def request(rows: np.ndarray) -> pb.ModelInferRequest:
    """Return the message with these rows, float32 [rows, features]."""
    message = pb.ModelInferRequest(model_name="digits", raw_input_contents=[rows.astype("<f4").tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=rows.shape)
    return message


def check(port: int, message: bytes, body: Body) -> bytes:
    """Send a message once, and return the response. Raises `WrongResponseError` if the response is wrong."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            content: bytes = channel.unary_unary(h2load.PATH)(message, timeout=30, wait_for_ready=True)
        except grpc.RpcError as error:
            raise WrongResponseError(f"no response: {error.code().name}") from error
    response = pb.ModelInferResponse.FromString(content)
    if response.raw_output_contents:
        found = np.frombuffer(response.raw_output_contents[0], "<f4")
    else:
        found = np.array(response.outputs[0].contents.fp32_contents, "<f4")
    expected = body.expected.ravel()
    if found.shape != expected.shape or (np.abs(found - expected) > 1e-5 + 1e-4 * np.abs(expected)).any():
        raise WrongResponseError("the response does not have the probabilities of the model")
    return content


def table(rounds: list[dict[Key, Measured]], load: tuple[int, int, int]) -> str:
    """Write the table for one load."""
    rows, connections, streams = load
    names = [name for name, each in rounds[0] if each == load]
    lines: list[tuple[float, Row]] = []
    for name in names:
        measured = [one[name, load] for one in rounds]
        rates = [one.figures.rows_per_second for one in measured]
        ours = [one[OURS, load] for one in rounds]
        ratios = [a.figures.rows_per_second / b for a, b in zip(ours, rates, strict=True)]
        times = [b.processor / a.processor for a, b in zip(ours, measured, strict=True)]
        cells = (
            number(median(rates)),
            NONE if name == OURS else median_and_range(ratios),
            number(median(one.processor for one in measured) * 1e6),
            NONE if name == OURS else median_and_range(times),
            number(median(one.figures.p50_ms for one in measured)),
            number(median(one.figures.p99_ms for one in measured)),
        )
        lines.append((median(rates), (name, *cells)))
    lines.sort(key=lambda line: -line[0])
    head = ("", "rows/s", "foldserve ÷ this", "processor µs/call", "this ÷ foldserve", "p50, ms", "p99, ms")
    in_flight = connections * streams
    title = f"{rows:,} row{'s' if rows > 1 else ''} per call, {in_flight} call{'s' if in_flight > 1 else ''} in flight"
    return f"{title}:\n\n{markdown([head, *(row for _, row in lines)])}"


if __name__ == "__main__":
    main()
