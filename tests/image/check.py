"""Builds, runs and tests the images: `make image-check IMAGE_TOOL=docker`.

It sees the images from outside: configuration, files, HTTP, signals, exit statuses. It prints a line for each check
that passed. The first check that fails ends it with status 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image.tool import Tool, named

ROOT = Path(__file__).parents[2]
TAGS = {"cpu": "foldserve:cpu", "gpu": "foldserve:gpu", "trainer": "foldserve:trainer"}
UID = 10001
MOST = {"cpu": 300 * 10**6, "gpu": 2 * 10**9}  # bytes of files above the base
DRAIN = 20  # seconds: the default of the setting drain_timeout
PATIENCE = 300  # turns a hang into a failure

# The Python of an image runs this as the user of the image. It prints JSON. It looks for every writable folder.
PROBE = """
import importlib.util, json, os, shutil, sys
from pathlib import Path
real = {"proc", "sys", "dev", "tmp"}
writable, cudnn, sources, stale = [], [], 0, []
for top in sorted(set(os.listdir("/")) - real):
    for folder, folders, files in os.walk("/" + top):
        writable += [folder] if os.access(folder, os.W_OK) else []
        cudnn += [os.path.join(folder, file) for file in files if file.startswith("libcudnn")]
for source in Path(sys.prefix).rglob("*.py"):
    if "site-packages" not in source.parts or "-" in source.stem or not source.stat().st_size:
        continue
    sources += 1
    try:
        head = Path(importlib.util.cache_from_source(str(source))).read_bytes()[:16]
        # Bytecode is checked by the content of its source, not by its time (PEP 552).
        fresh = head[4] == 1 and head[8:] == importlib.util.source_hash(source.read_bytes())
    except OSError:
        fresh = False
    stale += [] if fresh or "/torch/testing/_internal/" in str(source) else [str(source)]
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "writable": writable, "cudnn": cudnn, "sources": sources, "stale": stale,
    "compilers": [name for name in ("cc", "gcc", "g++", "clang", "nvcc", "ld", "make") if shutil.which(name)],
    "caches": [os.path.join(folder, file)
               for place in ("/root/.cache", "/var/lib/apt/lists", "/var/cache", "/opt/build")
               for folder, _, files in os.walk(place) for file in files],
    "torch": importlib.util.find_spec("torch") is not None,
    "tmp": os.access("/tmp", os.W_OK),
}))
"""

# Binds the port, then starts the service in the same container, which works with every tool.
TAKEN = """
import os, socket, subprocess, sys
taken = socket.create_server(("0.0.0.0", int(os.environ["FOLDSERVE_PORT"])))
sys.exit(subprocess.call(["foldserve", "serve"]))
"""


class CheckFailedError(Exception):
    """A check failed."""


def held(condition: object, what: str, found: object = "") -> None:
    """Print that the check `what` passed, or raise `CheckFailedError` with `found`."""
    if not condition:
        raise CheckFailedError(f"{what}: {found}" if found != "" else what)
    print(f"  ok  {what}", flush=True)


@dataclass(frozen=True)
class Ended:
    """The exit status and the output of a container that has ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Image:
    """One image, and the tool that runs it."""

    tool: Tool
    tag: str

    def ran(self, *arguments: str, **how: Any) -> Ended:
        """Run it until it exits; a hang is a failure."""
        with self.tool.start(self.tag, *arguments, **how) as process:
            try:
                stdout, stderr = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                self.tool.stop(process)
                raise CheckFailedError(f"{self.tag} {' '.join(arguments)} has not ended within {PATIENCE} s") from None
        return Ended(process.returncode, stdout, stderr)

    def probed(self) -> dict[str, Any]:
        """Run `PROBE` in it and return its JSON."""
        done = self.ran("-c", PROBE, program="python")
        held(done.status == 0, "its own Python runs in it", done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def healthy(self, service: Service) -> Ended:
        """Run the HEALTHCHECK of the image in the network of a service."""
        kind, program, *arguments = self.tool.config(self.tag)["Healthcheck"]["Test"]
        held(kind == "CMD", "the health check needs no shell", kind)
        return self.ran(*arguments, program=program, env={"FOLDSERVE_PORT": str(service.port)}, beside=service.process)

    @contextmanager
    def serving(self, *arguments: str, **how: Any) -> Iterator[Service]:
        """Start it, wait until it serves, and stop it at the end."""
        port = free_port()
        env = {"FOLDSERVE_PORT": str(port), **how.pop("env", {})}
        with self.tool.start(self.tag, *arguments, env=env, port=port, **how) as process:
            hung = threading.Timer(PATIENCE, self.tool.stop, [process])
            hung.start()
            try:
                assert process.stdout
                line = process.stdout.readline()
                hung.cancel()
                if " serves " not in line:
                    raise CheckFailedError(f"{self.tag} does not serve: {line}{process.communicate()[1]}")
                yield Service(self.tool, process, port)
            finally:
                hung.cancel()
                if process.poll() is None:
                    self.tool.stop(process)


@dataclass(frozen=True)
class Service:
    """A container that serves."""

    tool: Tool
    process: subprocess.Popen[str]
    port: int

    def asked(self, path: str, body: object = None) -> tuple[int, Any]:
        """Send one request; return the status and the parsed JSON of the response."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stopped(self) -> tuple[int, float, str]:
        """Send SIGTERM; return the exit status, the seconds until the exit, and the log."""
        began = time.monotonic()
        self.tool.stop(self.process)
        _, stderr = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, time.monotonic() - began, stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def one_line(done: Ended, *expected: str) -> bool:
    """Whether it exited with 1 and one line on standard error that contains every expected text."""
    lines = done.stderr.splitlines()
    return done.status == 1 and len(lines) == 1 and all(text in lines[0] for text in expected)


# --- the checks ------------------------------------------------------------------------------------------------------


def build(tool: Tool, which: str, arguments: Mapping[str, str]) -> None:
    """Build one of the images in the same way as the Makefile."""
    runtime = {} if which == "trainer" else {"RUNTIME": which}
    tool.build(ROOT, "trainer" if which == "trainer" else "service", TAGS[which], {**arguments, **runtime})


def check_configuration(image: Image) -> None:
    config = image.tool.config(image.tag)
    held(config["User"] == f"{UID}:{UID}", f"its user is {UID}", config["User"])
    held(config["StopSignal"] == "SIGTERM", "it is stopped by SIGTERM", config.get("StopSignal"))
    held(config["Entrypoint"][0].endswith("tini"), "its entrypoint is tini", config["Entrypoint"])
    labels = config["Labels"]
    for name in ("version", "revision", "created", "licenses", "title", "base.name"):
        held(labels.get(f"org.opencontainers.image.{name}"), f"its label {name} is set", labels)


def check_files(image: Image, *, torch: bool) -> None:
    found = image.probed()
    held((found["uid"], found["gid"]) == (UID, UID), f"it runs as {UID}:{UID}", found)
    held(found["tmp"] and not found["writable"], "with a read-only root only /tmp can be written to", found["writable"])
    held(found["sources"] and not found["stale"], f"{found['sources']} modules are compiled", found["stale"][:5])
    held(not found["compilers"], "it has no compiler", found["compilers"])
    held(not found["caches"], "it has no cache", found["caches"][:5])
    held(not found["cudnn"], "it has no file of cuDNN", found["cudnn"])
    held(found["torch"] == torch, f"it has {'' if torch else 'no '}torch")


def check_size(image: Image, most: int | None) -> None:
    base = re.search(r"^ARG PYTHON_IMAGE=([^@\s]+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)[1]
    above = image.tool.size(image.tag) - image.tool.size(base)
    held(most is None or above <= most, f"{above / 1e6:,.1f} MB of files above the base", above)


def check_serves(image: Image, *arguments: str, **how: Any) -> None:
    """The image serves its digits, is healthy, and ends at SIGTERM."""
    with image.serving(*arguments, **how) as service:
        zeros = {"instances": [[0.0] * 64]}
        status, answer = service.asked("/v1/models/digits:predict", zeros)
        held(status == 200 and len(answer["predictions"]) == 1, "it predicts over HTTP", (status, answer))
        done = image.healthy(service)
        held(done.status == 0, f"it is healthy: {done.stdout.strip()}", done)
        status, seconds, log = service.stopped()
        held(status == 0 and seconds < DRAIN, f"SIGTERM ends it with 0 after {seconds:.1f} s", (status, seconds, log))
        held("Traceback" not in log, "its log has no traceback", log)
        done = image.healthy(service)
        held(one_line(done), f"then it is unhealthy: {done.stderr.strip()}", done)


def check_drains(image: Image) -> None:
    """A request that was accepted before SIGTERM is answered, under load."""
    with image.serving() as service:
        rows = {"instances": [[float(place % 17) for place in range(64)]] * 2_000}
        body = json.dumps(rows).encode()
        accepted = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        accepted.putrequest("POST", "/predict")
        accepted.putheader("Content-Type", "application/json")
        accepted.putheader("Content-Length", str(len(body)))
        accepted.endheaders(body[: len(body) // 2])
        others: set[int] = set()
        sent = threading.Event()

        def ask() -> None:
            try:
                while True:
                    others.add(service.asked("/predict", rows)[0])
                    sent.set()
            except (OSError, http.client.HTTPException, ValueError):  # the server accepts no more connections
                sent.set()

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        sent.wait(PATIENCE)
        ended: list[tuple[int, float, str]] = []
        stopping = threading.Thread(target=lambda: ended.append(service.stopped()), daemon=True)
        stopping.start()
        for thread in threads:  # each ends when the server accepts no more
            thread.join(PATIENCE)
        accepted.send(body[len(body) // 2 :])
        answer = accepted.getresponse()
        whole = len(json.loads(answer.read()).get("predictions", ()))
        stopping.join(PATIENCE)
    held(
        (answer.status, whole) == (200, 2_000),
        "a request that was accepted before SIGTERM gets its whole response",
        answer.status,
    )
    held(others <= {200, 503}, "under load, other requests get a response or a 503", others)
    ((status, seconds, log),) = ended
    held(status == 0 and seconds < DRAIN, f"SIGTERM under load ends it with 0 after {seconds:.1f} s", (status, log))


def check_bad_input(image: Image, scratch: Path) -> None:
    def refused(what: str, done: Ended, *expected: str) -> None:
        held(one_line(done, *expected), f"{what}: {done.stderr.strip()}", done)

    empty = folder(scratch / "empty")
    refused("an empty volume", image.ran(volumes={empty: "/models"}), "/models")
    refused("a missing volume", image.ran(env={"FOLDSERVE_MODELS": "/nowhere"}), "/nowhere")
    newer = folder(scratch / "newer")
    shutil.copytree(ROOT / "models" / "digits", newer / "digits")
    manifest = newer / "digits" / "1" / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(content | {"schema_version": content["schema_version"] + 1}), encoding="utf-8")
    refused("a bundle of a newer schema", image.ran(volumes={newer: "/models"}), "digits", "schema")
    port = str(free_port())
    refused("a port in use", image.ran("-c", TAKEN, program="python", env={"FOLDSERVE_PORT": port}), port, "in use")
    refused("no GPU", image.ran("serve", "--device", "cuda"), "CUDA")
    readonly = folder(scratch / "readonly")
    shutil.copytree(ROOT / "models" / "digits", readonly / "digits")
    for path in (readonly, *readonly.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with image.serving(volumes={readonly: "/models"}) as service:
        status, answer = service.asked("/v2/health/ready")
        held(status == 200, "a read-only volume is served", answer)


def check_cpu(image: Image, scratch: Path) -> None:
    check_configuration(image)
    config = image.tool.config(image.tag)
    held(list(config["ExposedPorts"]) == ["8000/tcp"], "it exposes port 8000", config["ExposedPorts"])
    check_files(image, torch=False)
    check_serves(image)
    check_serves(image, "serve", "--workers", "2")
    check_drains(image)
    done = image.ran("doctor")
    held(done.status == 0, "the doctor finds nothing wrong", done.stdout)
    check_bad_input(image, scratch)
    check_size(image, MOST["cpu"])


def check_gpu(image: Image, _: Path) -> None:
    """Check the image for CUDA in a container without a GPU."""
    check_configuration(image)
    check_files(image, torch=False)
    done = image.ran("serve", "--device", "cuda")
    held(one_line(done, "CUDA is not available", "foldserve doctor"), f"no GPU: {done.stderr.strip()}", done)
    done = image.ran("doctor", "--device", "cuda", "--json")
    checks: Mapping[str, Any] = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    held(done.status == 1, "the doctor finds something wrong", done)
    for name in ("driver", "gpu", "cuda provider"):
        held(
            checks[name]["status"] == "wrong" and "libcuda.so.1" in checks[name]["found"],
            f"doctor: {name} is wrong: {checks[name]['found']}",
            checks[name],
        )
    for name in ("cudart", "cublas", "cublasLt", "curand"):
        held(checks[name]["status"] == "ok", f"doctor: {name} is found: {checks[name]['found']}", checks[name])
    held("not there" in checks["cudnn"]["found"], f"doctor: cudnn: {checks['cudnn']['found']}", checks["cudnn"])
    check_serves(image)
    check_size(image, MOST["gpu"])


def check_trainer(image: Image, scratch: Path) -> None:
    """The trainer makes a bundle from a mounted table, and the image of the service serves it."""
    check_configuration(image)
    check_files(image, torch=True)
    tables, models = folder(scratch / "tables"), folder(scratch / "models", mode=0o777)
    rows = [f"{a},{b},{'big' if a * b > 20 else 'small'}" for a in range(20) for b in range(20)]
    (tables / "areas.csv").write_text("\n".join(["width,height,size", *rows]) + "\n", encoding="utf-8")
    volumes = {tables: "/work", models: "/models"}
    fit = ("fit", "areas.csv", "--models", "/models")
    done = image.ran(*fit, volumes=volumes)
    held(done.status == 0, f"it trains on a table: {''.join(done.stdout.splitlines()[-1:])}", done)
    service_image = Image(image.tool, TAGS["cpu"])
    with service_image.serving(volumes={models: "/models"}) as service:
        _, answer = service.asked("/predict", {"instances": [{"width": 15, "height": 15}, {"width": 1, "height": 2}]})
        held(answer.get("predictions") == ["big", "small"], "the image of the service serves the new bundle", answer)
    readonly = folder(scratch / "shut")
    done = image.ran(*fit, volumes={tables: "/work", readonly: "/models"})
    held(one_line(done, "/models"), f"a read-only models folder: {done.stderr.strip()}", done)
    done = image.ran("fit", "absent.csv", "--models", "/models", volumes=volumes)
    held(one_line(done, "absent.csv"), f"no such table: {done.stderr.strip()}", done)
    check_size(image, None)


def folder(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


CHECKS: Mapping[str, Callable[[Image, Path], None]] = {"cpu": check_cpu, "gpu": check_gpu, "trainer": check_trainer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default="docker", help="command that builds and runs images (default: docker)")
    parser.add_argument(
        "--build-arg", metavar="K=V", action="append", default=[], help="a build argument of every image"
    )
    parser.add_argument("--only", choices=CHECKS, action="append", help="check this image; repeat it for several")
    parser.add_argument("--no-build", action="store_true", help="check the existing images")
    options = parser.parse_args()
    tool = named(options.tool)
    chosen = [which for which in CHECKS if not options.only or which in options.only]
    try:
        for which in chosen if not options.no_build else ():
            build(tool, which, dict(argument.split("=", 1) for argument in options.build_arg))
        for which in chosen:
            print(TAGS[which], flush=True)
            # Only root may remove the files that a container wrote as its own user.
            with tempfile.TemporaryDirectory(prefix="foldserve-image-", ignore_cleanup_errors=True) as scratch:
                Path(scratch).chmod(0o755)
                CHECKS[which](Image(tool, TAGS[which]), Path(scratch))
    except CheckFailedError as failed:
        print(f"FAIL  {failed}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"FAIL  {options.tool} {error.cmd[1]} ended with {error.returncode}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(
            f"image-check: error: {error.filename} is not installed; set IMAGE_TOOL to a program that builds images",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
