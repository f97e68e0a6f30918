"""Counts the instructions of a request, and compares the counts with gate.json: `python benchmarks/gate.py [--write]`.

Times vary with the machine and its load, but the number of instructions is almost constant. Callgrind, a tool of
valgrind, counts every instruction of a real server. One client sends the requests, one after the other. A count fails
if it is more than 3% above the count in gate.json. The counts depend on the versions of Python and of the libraries. If
one of these versions differs from the version in gate.json, the program does not compare the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rig.arguments import count

ROOT = Path(__file__).parent.parent
COMMITTED = Path(__file__).with_name("gate.json")
LIBRARIES = ("httptools", "numpy", "onnxruntime", "orjson", "pysimdjson", "uvloop")
TOLERANCE = 0.03
# Valgrind makes runs so slow that the batcher would move some runs to its thread. The number of runs on the thread
# would depend on the machine. The measured server allows runs of up to 60 seconds on the event loop, so that no run
# moves to the batcher's thread. The server also does no periodic work, because the number of periods depends on the
# machine: its main loop only waits for the signal to stop. benchmarks/drift.py measures the cost of drift.
SERVER = """
import asyncio
import sys
from foldserve.service.cli import main
from foldserve.service.engine import batcher
from foldserve.service.http import server

async def wait_for_signal(self):
    while not self.should_exit:
        await asyncio.sleep(1)

batcher._MAX_INLINE_SECONDS = 60.0
server._Server.main_loop = wait_for_signal
flags = ["--threads", "1", "--device", "cpu", "--no-drift", "--no-watch", "--self-check", "0"]
sys.exit(main(["serve", "--models", "models", "--port", "0", *flags]))
"""
# The number of warm-up requests, which are not counted. The warm-up requests fill the caches of the server.
WARM_UP = 300


def main() -> None:
    """Count the instructions, print a table, and fail if a count has grown."""
    chosen = _arguments()
    if shutil.which("valgrind") is None:
        raise SystemExit("gate.py needs valgrind: apt-get install valgrind")
    counts = {name: _count(request, chosen.requests) for name, request in _requests().items()}
    found = {"versions": _versions(), "instructions per request": counts}
    if chosen.write:
        COMMITTED.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if committed["versions"] != found["versions"]:
        _print(counts, {})
        print(f"not compared: {COMMITTED.name} has the counts of {committed['versions']}, here are {found['versions']}")
        return
    before = committed["instructions per request"]
    _print(counts, before)
    grown = [name for name in counts if counts[name] > before[name] * (1 + TOLERANCE)]
    if grown:
        raise SystemExit(f"more instructions than committed, by more than {TOLERANCE:.0%}: {', '.join(grown)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=count, default=10_000, help="requests to count (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"write the counts to {COMMITTED.name}")
    return parser.parse_args()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "machine": platform.machine()} | {x: version(x) for x in LIBRARIES}


def _print(counts: dict[str, int], committed: dict[str, int]) -> None:
    print(f"{'request':<22}{'instructions':>14}{'committed':>14}{'change':>9}")
    for name, instructions in counts.items():
        before = committed.get(name)
        change = f"{before:>14,}{instructions / before - 1:>+9.1%}" if before else ""
        print(f"{name:<22}{instructions:>14,}{change}")


def _requests() -> dict[str, bytes]:
    """Return requests that predict the first golden row of digits."""
    manifest = json.loads((ROOT / "models/digits/1/manifest.json").read_text(encoding="utf-8"))
    row = manifest["golden"]["inputs"][0]
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    as_json, as_bytes = b"application/json", b"application/octet-stream"
    raw = np.asarray(row, "<f4").tobytes()
    described = {**tensor, "parameters": {"binary_data_size": len(raw)}}
    del described["data"]
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    length = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    return {
        "JSON": _request(b"/v1/models/digits:predict", as_json, json.dumps({"instances": [row]}).encode()),
        "Open Inference JSON": _request(b"/v2/models/digits/infer", as_json, json.dumps({"inputs": [tensor]}).encode()),
        "Open Inference binary": _request(b"/v2/models/digits/infer", as_bytes, head + raw, length),
        "raw float32": _request(b"/v1/models/digits:predict", as_bytes, raw),
    }


def _request(path: bytes, media_type: bytes, body: bytes, headers: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, media_type, headers, len(body)) + body


def _count(request: bytes, requests: int) -> int:
    """Return the number of instructions that the server needs for one request."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        with subprocess.Popen(
            [*command, sys.executable, "-c", SERVER],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            try:
                with socket.create_connection(("127.0.0.1", _port(server))) as talk:
                    send = _sender(talk, request)
                    send(WARM_UP)
                    _control(server, "--instr=on")
                    send(WARM_UP)  # valgrind now translates the code again, to add counters
                    _control(server, "--zero")
                    send(requests)
                    _control(server, "--instr=off")
            finally:
                server.send_signal(signal.SIGTERM)
                output, _ = server.communicate()
        found = re.search(r"Collected : (\d+)", output)
        if found is None:
            raise SystemExit(f"callgrind printed no count:\n{output}")
        return round(int(found.group(1)) / requests)


def _port(server: subprocess.Popen[str]) -> int:
    """Wait until the server announces its port, and return the port."""
    output = ""
    for line in server.stdout or ():
        output += line
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return int(found.group(1))
    raise SystemExit(f"the server did not start:\n{output}")


def _sender(talk: socket.socket, request: bytes) -> Callable[[int], None]:
    """Return a function that sends a request n times and reads each response."""
    talk.sendall(request)
    response = talk.recv(65536)
    length = re.search(rb"content-length: (\d+)", response)
    if not response.startswith(b"HTTP/1.1 200") or length is None:
        raise SystemExit(f"unexpected response: {response[:200]!r}")
    size = response.index(b"\r\n\r\n") + 4 + int(length.group(1))

    def send(n: int) -> None:
        for _ in range(n):
            talk.sendall(request)
            left = size
            while left > 0:
                left -= len(talk.recv(65536))

    return send


def _control(server: subprocess.Popen[str], action: str) -> None:
    program = shutil.which("callgrind_control") or "callgrind_control"
    subprocess.run([program, action, str(server.pid)], check=True, capture_output=True)


if __name__ == "__main__":
    main()
