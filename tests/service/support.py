"""Helpers for the tests of the service: handmade and damaged bundles, the real commands, and the real server."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from foldserve.service import bundle
from foldserve.service.bundle import seal

# A time limit in seconds that is long enough for any machine. This limit turns a hang into a failure. The limit affects
# the result of a test only if something hangs.
PATIENCE = 60

# A text that the service never writes by itself. If a response contains MARKER, the service repeated its input.
MARKER = "Zq7xMarker"


# --- bundles ---------------------------------------------------------------------------------------------------------

_PARITY = {
    **{"rows": 1, "max_absolute": 0.0, "max_relative": 0.0, "worst": 0.0},
    **{"argmax_rows": None, "argmax_agreement": None},
}
_CERTIFICATE = {
    "reference": "by hand",
    "tolerance": {"absolute": 1e-5, "relative": 1e-4},
    "measurements": ({"runtime": "by hand", "rows": "random", "batch": 1, "parity": _PARITY},),
}
_PROVENANCE = {
    **{"source": "by hand", "data_sha256": "0" * 64, "rows": {}, "seed": 0, "threads": 1, "cpu": "any"},
    **{"hyperparameters": {}, "versions": {}},
}


def manifest(
    model: bytes = b"",
    *,
    name: str = "made",
    version: int = 1,
    features: Sequence[str | Mapping[str, Any]] = ("a", "b"),
    missing: Sequence[str] = (),
    labels: Sequence[bundle.Label] = (),
    golden: bundle.Golden | None = None,
) -> bundle.Manifest:
    """Make a manifest. With labels, the model is a classification. Without labels, the model is a regression.

    features: the name or the fields of each feature. A feature with only a name is numeric.
    """
    task, output = ("classification", "probabilities") if labels else ("regression", "value")
    named = [{"name": each, "missing": each in missing} if isinstance(each, str) else each for each in features]
    return bundle.Manifest.model_validate(
        {
            "schema_version": 1,
            "name": name,
            "version": version,
            "created": datetime(2026, 1, 1, tzinfo=UTC),
            "task": task,
            "model": {"size": len(model), "sha256": sha256(model).hexdigest(), "opset": 20},
            "input": {"name": "input", "shape": (-1, len(features))},
            "output": {"name": output, "shape": (-1, len(labels) or 1)},
            "features": tuple(map(feature_fields, named)),
            "labels": tuple(labels),
            "certificate": _CERTIFICATE,
            "golden": golden or {"inputs": (), "outputs": ()},
            "folded": (),
            "metrics": {},
            "provenance": _PROVENANCE,
        }
    )


def feature_fields(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Add a suitable range and histogram to the fields of a feature in a manifest."""
    if feature.get("kind") == "categorical":
        bins = len(feature["categories"])
        edges = tuple(place - 0.5 for place in range(bins + 1))
        return {"histogram": {"edges": edges, "counts": (1,) * bins}, **feature}
    return {"range": (0.0, 1.0), "histogram": {"edges": (0.0, 1.0), "counts": (1,)}, **feature}


def constant(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def tensor(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (tensor("input", "batch", 2),),
    outputs: Sequence[onnx.ValueInfoProto] = (tensor("value", "batch", 1),),
    opset: int = 20,
    ir_version: int = 10,
    functions: Sequence[onnx.FunctionProto] = (),
) -> bytes:
    """Serialise a model without any check.

    The default interface is float32 `input` [batch, 2] -> `value` [batch, 1].
    """
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    model = helper.make_model(
        helper.make_graph(nodes, "made", inputs, outputs, initializers),
        opset_imports=opsets,
        ir_version=ir_version,
        functions=functions,
    )
    return model.SerializeToString()


def square_root() -> tuple[bytes, bundle.Golden]:
    """Make the model sqrt(a + b), and golden rows with a + b >= 0.

    For a row with a negative a + b, the model's output is NaN.
    """
    model = onnx_model(
        [
            helper.make_node("ReduceSum", ["input", "axes"], ["sum"], keepdims=1),
            helper.make_node("Sqrt", ["sum"], ["value"]),
        ],
        [constant("axes", [1], np.int64)],
    )
    return model, bundle.Golden(inputs=((1.0, 3.0), (4.0, 5.0), (0.0, 0.0)), outputs=((2.0,), (3.0,), (0.0,)))


def write_square_root(models: Path) -> bundle.Bundle:
    model, golden = square_root()
    return bundle.write(models, "roots", model, lambda n: manifest(model, name="roots", version=n, golden=golden))


def bundle_in_memory(model: bytes, golden: bundle.Golden, **changes: Any) -> bundle.Bundle:
    """Make a bundle in memory, without files. The bundle's manifest certifies `model`."""
    return bundle.Bundle(Path("made/1"), manifest(model, golden=golden, **changes), model)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object], *, keep_seal: bool = False) -> None:
    """Change the manifest of the bundle in `folder` without any check, and renew the seal.

    edit: changes the parsed JSON. keep_seal: leave the old seal, which then does not match the changed manifest.
    """
    file = folder / bundle.MANIFEST_FILE
    content = json.loads(file.read_text())
    edit(content)
    if not keep_seal:
        content[seal.FIELD] = seal.compute(content)
    file.write_text(json.dumps(content))


def flip_byte(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x01
    file.write_bytes(content)


def write_damaged_second(models: Path, name: str) -> None:
    """Write version 2 of a model, a copy of version 1 with one flipped byte."""
    whole = bundle.read(models / name / "1")
    second = bundle.write(models, name, whole.model, lambda n: whole.manifest.model_copy(update={"version": n}))
    flip_byte(second.path / bundle.MODEL_FILE, 20_000)


def oracle(model: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs `model` in ONNX Runtime on the CPU, without code of this project."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {session.get_inputs()[0].name: np.asarray(rows, np.float32)})[0]


# The program that runs `foldserve`, and that waits at the pipe `gate` before it reads a certain manifest.
GATED = "tests.service.serve_at_gate"


def _gate(folder: Path) -> Path:
    """Return the path of the pipe that delays the loading of the bundle in `folder`."""
    return folder / "gate"


def through(folder: Path) -> dict[str, str]:
    """Return the environment in which `GATED` waits before it reads the bundle in `folder`."""
    return {"MANIFEST": str(folder / bundle.MANIFEST_FILE), "GATE": str(_gate(folder))}


@contextmanager
def while_loading(folder: Path, act: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run `act` while `GATED` loads the bundle in `folder`. The environment of `GATED` must contain the variables of
    `through(folder)`.

    `GATED` opens the pipe for reading. A writer that opens the pipe waits until `GATED` opens the pipe too. With the
    pipe open, `GATED` waits until the writer closes the pipe.
    """
    pipe = _gate(folder)
    os.mkfifo(pipe)

    def feed() -> Any:
        with pipe.open("wb"):
            return act()

    with ThreadPoolExecutor(1) as pool:
        acted = pool.submit(feed)
        try:
            yield acted
        finally:
            if not acted.done():  # if no reader has opened the pipe, release the writer
                os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))


# --- the real commands -----------------------------------------------------------------------------------------------


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Copy this process's environment, remove foldserve's settings, and apply `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOLDSERVE_")}
    return kept | {"COLUMNS": "240", "FOLDSERVE_ALLOWED_HOSTS": "test"} | dict(changes or {})


def command_line(*arguments: object, program: str = "foldserve.service") -> list[str]:
    """Return the command line of `foldserve`, with warnings as errors. program: the module that Python runs."""
    return [sys.executable, "-W", "error", "-m", program, *map(str, arguments)]


def foldserve(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `foldserve` with warnings as errors."""
    return subprocess.run(
        command_line(*arguments),
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_until_first_line(
    *arguments: object, env: Mapping[str, str] | None = None, program: str = "foldserve.service"
) -> subprocess.CompletedProcess[str]:
    """Run `foldserve` until it writes a line to standard output, or ends. program: the module that Python runs."""
    command = command_line(*arguments, program=program)
    with subprocess.Popen(
        command, env=environment(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        hung = threading.Timer(PATIENCE, process.kill)
        hung.start()
        line = process.stdout.readline()
        if line:
            process.terminate()
        stdout, stderr = process.communicate()
        hung.cancel()
    return subprocess.CompletedProcess(command, process.returncode, line + stdout, stderr)


def assert_refused_in_one_line(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("foldserve: error: ")
    for text in expected:
        assert text in lines[0]


@dataclass(frozen=True)
class Served:
    """A `foldserve serve` in a separate process. The server has announced that it is ready."""

    process: subprocess.Popen[str]
    host: str
    port: int
    announcement: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)

    def send(self, method: str, path: str, *headers: str, body: bytes = b"") -> Answer:
        """Send exactly these bytes as one request. A client library would normalise the path."""
        with self.connect() as connection:
            connection.sendall(request(method, path, *headers, body=body))
            return receive(connection)


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a program. If the program does not stop, kill it."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()


@contextmanager
def serving(
    models: Path,
    log: Path,
    *flags: object,
    env: Mapping[str, str] | None = None,
    port: int = 0,
    program: str = "foldserve.service",
) -> Iterator[Served]:
    """Start `foldserve serve`, wait until it announces that it is ready, and stop it at the end.

    program: the module that Python runs.
    """
    command = command_line("serve", "--models", models, "--port", port, *flags, program=program)
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, env=environment(env), stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout
        hung = threading.Timer(PATIENCE, process.kill)
        hung.start()
        try:
            announcement = process.stdout.readline()
            hung.cancel()
            found = re.search(r" on https?://([\d.]+):(\d+),", announcement)
            assert found, f"not ready: {announcement!r}\n{log.read_text()}"
            yield Served(process, found[1], int(found[2]), announcement, log)
        finally:
            hung.cancel()
            stop(process)


# --- HTTP, byte for byte ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if body and not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def receive(connection: socket.socket) -> Answer:
    """Read one response. Raises `http.client.RemoteDisconnected` if the server has closed the connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    try:
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        response.close()
