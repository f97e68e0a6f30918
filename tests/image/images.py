"""Checks each image separately and from outside: configuration, files, HTTP, health, signals, exit statuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.image import docker
from tests.image.support import (
    BASE,
    DRAIN,
    ROOT,
    TAGS,
    UID,
    Ended,
    Image,
    ask,
    folder,
    free_port,
    held,
    one_line,
    stop_under_load,
    until,
)

MOST = {"cpu": 300 * 10**6, "gpu": 2 * 10**9}  # the most bytes that an image may add to its base image

# The Python in an image runs this code, as the image's user. The code looks for every writable folder, and prints JSON.
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

# This code binds the service's port, then starts the service in the same container. The service must fail, because its
# port is taken.
TAKEN = """
import os, socket, subprocess, sys
taken = socket.create_server(("0.0.0.0", int(os.environ["FOLDSERVE_PORT"])))
sys.exit(subprocess.call(["foldserve", "serve"]))
"""


def check_configuration(image: Image) -> None:
    config = image.config()
    held(config["User"] == f"{UID}:{UID}", f"its user is {UID}", config["User"])
    held(config["StopSignal"] == "SIGTERM", "it is stopped by SIGTERM", config.get("StopSignal"))
    held(config["Entrypoint"][0].endswith("tini"), "its entrypoint is tini", config["Entrypoint"])
    labels = config["Labels"]
    for name in ("version", "revision", "created", "licenses", "title", "base.name"):
        held(labels.get(f"org.opencontainers.image.{name}"), f"its label {name} is set", labels)


def check_files(image: Image, *, torch: bool) -> None:
    done = image.ran("-c", PROBE, program="python")
    held(done.status == 0, "its own Python runs in it", done.stderr)
    found: Mapping[str, Any] = json.loads(done.stdout)
    held((found["uid"], found["gid"]) == (UID, UID), f"it runs as {UID}:{UID}", found)
    held(found["tmp"] and not found["writable"], "with a read-only root only /tmp can be written to", found["writable"])
    held(found["sources"] and not found["stale"], f"{found['sources']} modules are compiled", found["stale"][:5])
    held(not found["compilers"], "it has no compiler", found["compilers"])
    held(not found["caches"], "it has no cache", found["caches"][:5])
    held(not found["cudnn"], "it has no file of cuDNN", found["cudnn"])
    held(found["torch"] == torch, f"it has {'' if torch else 'no '}torch")


def check_size(image: Image, most: int | None) -> None:
    whole, base = docker.size(image.tag), docker.size(BASE)
    above = whole - base
    held(most is None or above <= most, f"{above / 1e6:,.0f} MB of files above the base of {base / 1e6:,.0f} MB", above)


def check_serves(image: Image, *arguments: str, **how: Any) -> None:
    """The image serves the included model of digits, is healthy, and ends at SIGTERM."""
    with image.serving(*arguments, **how) as service:
        zeros = {"instances": [[0.0] * 64]}
        status, answer = ask(service.port, "/v1/models/digits:predict", zeros)
        held(status == 200 and len(answer["predictions"]) == 1, "it predicts over HTTP", (status, answer))
        done = image.healthy(service)
        held(done.status == 0, f"it is healthy: {done.stdout.strip()}", done)
        status, seconds, log = service.stopped()
        held(status == 0 and seconds < DRAIN, f"SIGTERM ends it with 0 after {seconds:.1f} s", (status, seconds, log))
        held("Traceback" not in log, "its log has no traceback", log)
        done = image.healthy(service)
        held(one_line(done), f"then it is unhealthy: {done.stderr.strip()}", done)


def check_drains(image: Image) -> None:
    """Under load, the server answers every request that it accepted before SIGTERM."""
    with image.serving() as service:
        ended: list[tuple[int, float, str]] = []
        stop_under_load(service.port, lambda: ended.append(service.stopped()))
    ((status, seconds, log),) = ended
    held(status == 0 and seconds < DRAIN, f"SIGTERM under load ends it with 0 after {seconds:.1f} s", (status, log))


def check_health(image: Image) -> None:
    """Docker finds the container healthy soon after the server is ready, long before the regular interval ends."""
    interval = image.config()["Healthcheck"]["Interval"] / 1e9
    with image.serving() as service:
        name = docker.container(service.process)
        seconds = until(lambda: docker.inspect(name)["State"]["Health"]["Status"] == "healthy", "it becomes healthy")
    held(seconds < interval / 2, f"Docker finds it healthy {seconds:.1f} s after it is ready", seconds)


def check_bad_input(image: Image, scratch: Path) -> None:
    def refused(what: str, done: Ended, *expected: str) -> None:
        held(one_line(done, *expected), f"{what}: {done.stderr.strip()}", done)

    empty, unwatched = folder(scratch / "empty"), {"FOLDSERVE_WATCH": "false"}
    refused("an empty volume", image.ran(volumes={empty: "/models"}, env=unwatched), "/models")
    with image.serving(volumes={empty: "/models"}) as service:
        status, answer = ask(service.port, "/v2/health/ready")
        held(status == 503, "by default, an empty volume is watched, and the server is unready", answer)
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
        status, answer = ask(service.port, "/v2/health/ready")
        held(status == 200, "a read-only volume is served", answer)


def check_cpu(scratch: Path) -> None:
    image = Image(TAGS["cpu"])
    check_configuration(image)
    config = image.config()
    held(list(config["ExposedPorts"]) == ["8000/tcp"], "it exposes port 8000", config["ExposedPorts"])
    check_files(image, torch=False)
    check_serves(image)
    check_serves(image, "serve", "--workers", "2")
    check_health(image)
    check_drains(image)
    done = image.ran("doctor")
    held(done.status == 0, "the doctor finds nothing wrong", done.stdout)
    check_bad_input(image, scratch)
    check_size(image, MOST["cpu"])


def check_gpu(_: Path) -> None:
    """Check the image for CUDA in a container without a GPU."""
    image = Image(TAGS["gpu"])
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
    held("not installed" in checks["cudnn"]["found"], f"doctor: cudnn: {checks['cudnn']['found']}", checks["cudnn"])
    check_serves(image)
    check_size(image, MOST["gpu"])


def check_trainer(scratch: Path) -> None:
    """The trainer makes a bundle from a mounted table, and the image of the service serves it."""
    image = Image(TAGS["trainer"])
    check_configuration(image)
    check_files(image, torch=True)
    tables, models = folder(scratch / "tables"), folder(scratch / "models", mode=0o777)
    rows = [f"{a},{b},{'big' if a * b > 20 else 'small'}" for a in range(20) for b in range(20)]
    (tables / "areas.csv").write_text("\n".join(["width,height,size", *rows]) + "\n", encoding="utf-8")
    volumes = {tables: "/work", models: "/models"}
    fit = ("fit", "areas.csv", "--models", "/models")
    done = image.ran(*fit, volumes=volumes)
    held(done.status == 0, f"it trains on a table: {''.join(done.stdout.splitlines()[-1:])}", done)
    service_image = Image(TAGS["cpu"])
    with service_image.serving(volumes={models: "/models"}) as service:
        _, answer = ask(
            service.port, "/predict", {"instances": [{"width": 15, "height": 15}, {"width": 1, "height": 2}]}
        )
        held(answer.get("predictions") == ["big", "small"], "the image of the service serves the new bundle", answer)
    readonly = folder(scratch / "shut")
    done = image.ran(*fit, volumes={tables: "/work", readonly: "/models"})
    held(one_line(done, "/models"), f"a read-only models folder: {done.stderr.strip()}", done)
    done = image.ran("fit", "absent.csv", "--models", "/models", volumes=volumes)
    held(one_line(done, "absent.csv"), f"no such table: {done.stderr.strip()}", done)
    check_size(image, None)
