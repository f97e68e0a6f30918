"""Checks docker-compose.yml: starts, limits, training, restarts, stops, monitoring and secrets.

A project is a copy of docker-compose.yml and of the files that it mounts. Each project has its own name, ports and
volumes. At the end, the check removes the containers and volumes of each project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image import docker
from tests.image.support import (
    BASE,
    PATIENCE,
    ROOT,
    UID,
    Ended,
    ask,
    folder,
    free_port,
    held,
    stop_under_load,
    until,
)

PROFILES = ("gpu", "train", "monitoring")
ZEROS = {"instances": [[0.0] * 64]}
PORTS = ("PORT", "GPU_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")

# A container's Python runs this code. The code prints the rights of the process and the folders that it can write to.
RIGHTS = """
import json, os
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def writes(place):
    try:
        open(place + "/probe", "w").close()
    except OSError:
        return False
    return True
print(json.dumps({"uid": os.getuid(), "capabilities": int(status["CapEff"], 16), "no_new": status["NoNewPrivs"],
    "writable": [place for place in ("/", "/work", "/models", "/opt/foldserve", "/tmp") if writes(place)]}))
"""
# The code starts threads until the container's limit is reached, and prints the number of threads.
THREADS = """
import threading
ended, count = threading.Event(), 0
try:
    while count < 10_000:
        threading.Thread(target=ended.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count)
ended.set()
"""
ALLOCATE = "print(len(b'x' * (1 << 30)))"
# No machine has this address (RFC 5737).
CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
# tini is process 1. The server is the child of tini.
KILL = """
import os, signal
children = open("/proc/1/task/1/children").read().split()
os.kill(int(children[0]), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Project:
    """A copy of docker-compose.yml with a separate name and separate ports."""

    folder: Path
    env: Mapping[str, str]

    @property
    def port(self) -> int:
        """The port that Docker publishes for the server on the CPU."""
        return int(self.env["PORT"])

    def ran(self, *arguments: str, env: Mapping[str, str] | None = None) -> Ended:
        """Run `docker compose`."""
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def output(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run a command of compose that must succeed, and return its standard output."""
        done = self.ran(*arguments, env=env)
        if done.status:
            raise subprocess.CalledProcessError(done.status, ["docker", "compose", *arguments], stderr=done.stderr)
        return done.stdout

    def python(self, service: str, code: str, *, profile: str = "", env: Mapping[str, str] | None = None) -> Ended:
        """Run Python in a new container of a service."""
        profiles = ("--profile", profile) if profile else ()
        return self.ran(*profiles, "run", "--rm", "--no-deps", "--entrypoint", "python", service, "-c", code, env=env)

    def state(self, service: str) -> dict[str, Any]:
        """Inspect the only container of a service."""
        return docker.inspect(self.output("ps", "--all", "--quiet", service).strip())

    def healthy(self, service: str) -> bool:
        return str(self.state(service)["State"]["Health"]["Status"]) == "healthy"


@contextmanager
def project(scratch: Path) -> Iterator[Project]:
    """Copy docker-compose.yml and the files that it mounts.

    At the end, remove the containers and volumes of the copy.
    """
    shutil.copy(ROOT / "docker-compose.yml", scratch)
    shutil.copytree(ROOT / "deploy", scratch / "deploy", ignore=shutil.ignore_patterns("secrets"))
    name = f"foldserve-check-{os.getpid()}"
    made = Project(scratch, {"COMPOSE_PROJECT_NAME": name, **{port: str(free_port()) for port in PORTS}})
    try:
        yield made
    finally:
        profiles = [word for profile in PROFILES for word in ("--profile", profile)]
        made.ran(*profiles, "down", "--volumes", "--remove-orphans")


def check(scratch: Path) -> None:
    """Run every check of docker-compose.yml, with the existing images."""
    with monitoring_images(), project(folder(scratch / "project")) as compose:
        for profile in ("", *PROFILES):
            done = compose.ran("--profile", profile or "*", "config", "--quiet")
            held(
                done.status == 0 and not done.stderr, f"compose accepts the file{profile and f' with {profile}'}", done
            )
        check_up(compose)
        check_contained(compose)
        check_limits(compose)
        check_restart(compose)
        check_training(compose)
        check_stop(compose)
        check_failed_start(compose)
        check_monitoring(compose)


def check_up(compose: Project) -> None:
    (compose.folder / "foldserve.env").write_text("FOLDSERVE_MAX_ROWS=4000\n", encoding="utf-8")
    ended: list[Ended] = []
    seconds = until(lambda: ended or ended.append(compose.ran("up", "--wait", "--no-build")), "up --wait")
    held(ended[0].status == 0, f"up --wait returns after {seconds:.1f} s", ended[0])
    held(compose.healthy("foldserve"), "then the server is healthy")
    status, answer = ask(compose.port, "/predict", ZEROS)
    held(status == 200 and len(answer["predictions"]) == 1, "it predicts on its published port", (status, answer))
    status, answer = ask(compose.port, "/predict", {"instances": [[0.0] * 64] * 4_001})
    held(status in {400, 413}, "it has the settings of foldserve.env", (status, answer))
    running = compose.output("ps", "--services").split()
    held(running == ["foldserve"], "without a profile nothing else starts", running)


def check_contained(compose: Project) -> None:
    found = json.loads(compose.output("exec", "-T", "foldserve", "python", "-c", RIGHTS))
    held(found["uid"] == UID, f"the server runs as {UID}", found)
    held(found["capabilities"] == 0 and found["no_new"] == "1", "it has no capability and gets no privilege", found)
    held(found["writable"] == ["/tmp"], "it can write to /tmp alone", found["writable"])  # noqa: S108


def check_limits(compose: Project) -> None:
    host = compose.state("foldserve")["HostConfig"]
    limits = (host["NanoCpus"], host["Memory"], host["PidsLimit"])
    held(limits == (10**9, 2 << 30, 256), "it is limited to 1 core, 2 GiB and 256 processes", limits)
    done = compose.python("foldserve", ALLOCATE, env={"MEMORY": "128m"})
    held(done.status == 137, "a process beyond MEMORY is killed", done)
    done = compose.python("foldserve", THREADS)
    held(done.status == 0 and int(done.stdout) < 256, f"a container can start {done.stdout.strip()} threads", done)
    done = compose.ran("run", "--rm", "foldserve", "doctor")
    held(done.status == 0, "the doctor finds nothing wrong in a container of compose", done.stdout)


def check_restart(compose: Project) -> None:
    compose.output("restart", "foldserve")
    seconds = until(lambda: compose.healthy("foldserve"), "healthy after a restart")
    held(ask(compose.port, "/predict", ZEROS)[0] == 200, f"after a restart it serves again, {seconds:.1f} s later")
    before = compose.state("foldserve")["State"]["StartedAt"]
    compose.output("exec", "-T", "foldserve", "python", "-c", KILL)

    def again() -> bool:
        state = compose.state("foldserve")["State"]
        return state["StartedAt"] != before and state["Health"]["Status"] == "healthy"

    seconds = until(again, "healthy after a crash")
    held(
        ask(compose.port, "/predict", ZEROS)[0] == 200,
        f"a killed server is started again and serves, {seconds:.1f} s later",
    )


def check_training(compose: Project) -> None:
    """Run the commands of docs/deployment.md: train, serve the new version, and return to the old version."""

    def versions() -> list[str]:
        compose.output("restart", "foldserve")
        until(lambda: compose.healthy("foldserve"), "healthy after a restart")
        return sorted(str(version["version"]) for version in ask(compose.port, "/v1/models/digits")[1]["versions"])

    train = ("--profile", "train", "run", "--rm")
    done = compose.ran(*train, "train")
    held(done.status == 0, "--profile train run trains a new version", done)
    found = versions()
    held(found == ["1", "2"], "after a restart the server has both versions", found)
    tables = folder(compose.folder / "tables")
    shutil.copy(ROOT / "examples" / "penguins.csv", tables)
    fit = ("fit", "penguins.csv", "--target", "species", "--models", "/models")
    done = compose.ran(*train, "--volume", f"{tables}:/work:ro", "train", *fit)
    held(done.status == 0, "it trains on a mounted table", done)
    done = compose.ran(*train, "--entrypoint", "rm", "train", "-r", "/models/digits/2")
    held(done.status == 0 and versions() == ["1"], "a version can be removed again", done)
    status, _ = ask(compose.port, "/v2/models/penguins/ready")
    held(status == 200, "the model of the mounted table is ready", status)
    done = compose.python("train", CONNECT, profile="train")
    held("Network is unreachable" in done.stderr, "the trainer has no network", done)


def check_stop(compose: Project) -> None:
    compose.output("--profile", "train", "run", "--rm", "--entrypoint", "rm", "train", "-r", "/models/penguins")
    (compose.folder / "foldserve.env").unlink()
    compose.output("up", "--wait", "--no-build")
    stop_under_load(compose.port, lambda: compose.output("stop", "foldserve"))
    state = compose.state("foldserve")["State"]
    held(
        (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False), "a stop ends it with 0", state
    )
    done = compose.ran("logs", "foldserve")
    held("Traceback" not in done.stdout, "its log has no traceback", done.stdout)


def check_failed_start(compose: Project) -> None:
    """Docker creates a missing folder. The new folder is empty and belongs to root."""
    missing = compose.folder / "absent"
    (compose.folder / "foldserve.env").write_text("FOLDSERVE_WATCH=false\n", encoding="utf-8")
    done = compose.ran("up", "--wait", "--no-build", "foldserve", env={"MODELS": "./absent"})
    held(done.status == 1, "up --wait ends with 1 if the server can't start", done)
    state = until_gives_up(compose)
    held((state["State"]["ExitCode"], state["RestartCount"]) == (1, 5), "it is started five times more", state["State"])
    log = compose.output("logs", "--no-log-prefix", "foldserve")
    line = "foldserve: error: no models to serve: /models holds no <name>/<version>/"
    held(line in log, f"the log has the line: {line}", log)
    held(missing.stat().st_uid == 0 and not any(missing.iterdir()), "Docker made the missing folder, owned by root")
    compose.output("rm", "--force", "--stop", "foldserve")
    (compose.folder / "foldserve.env").unlink()


def until_gives_up(compose: Project) -> dict[str, Any]:
    """Wait until Docker stops restarting the server; return the last state of the container."""
    until(lambda: compose.state("foldserve")["RestartCount"] >= 5, "five restarts")
    until(lambda: compose.state("foldserve")["State"]["Status"] == "exited", "the last exit")
    return compose.state("foldserve")


# --- monitoring ------------------------------------------------------------------------------------------------------


@contextmanager
def monitoring_images() -> Iterator[None]:
    """Provide the images of Prometheus and Grafana.

    If an image can't be pulled, build a substitute for the image. At the end, remove the substitute images.
    """
    with ExitStack() as made:
        for service in ("prometheus", "grafana"):
            image = re.search(rf"^    image: (\S*{service}\S*)$", (ROOT / "docker-compose.yml").read_text(), re.M)[1]
            if present(image):
                continue
            file = Path(__file__).parent / "monitoring.Dockerfile"
            docker.build(file.parent, image, "--file", str(file), "--target", service, arguments={"PYTHON_IMAGE": BASE})
            made.callback(docker.output, "image", "rm", image)
            print(f"  {image} can't be pulled: a stand-in of Debian takes its place", flush=True)
        yield


def present(image: str) -> bool:
    """Return whether the engine has the image or can pull the image."""
    commands = (("image", "inspect", image), ("pull", "--quiet", image))
    return any(subprocess.run(["docker", *command], capture_output=True).returncode == 0 for command in commands)


def check_monitoring(compose: Project) -> None:
    """Prometheus finds the server by name and fires an alert when the server stops. Grafana reads the secret."""
    secrets = folder(compose.folder / "deploy" / "secrets", mode=0o700)
    file = secrets / "grafana-admin-password"
    file.write_text("not-a-real-password", encoding="utf-8")
    file.chmod(0o644)

    def asked(path: str, **query: str) -> Any:
        _, answer = ask(int(compose.env["PROMETHEUS_PORT"]), f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        return answer["data"]

    def states() -> dict[str, str]:
        rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]
        return {rule["name"]: rule["state"] for rule in rules}

    def up() -> list[tuple[str, str]]:
        found = asked("query", query='up{job="foldserve"}')["result"]
        return [(series["metric"]["server"], series["value"][1]) for series in found]

    done = compose.ran("--profile", "monitoring", "up", "--wait", "--no-build")
    held(done.status == 0, "--profile monitoring starts Prometheus and Grafana", done)
    read = ("exec", "-T", "grafana", "cat", f"/run/secrets/{file.name}")
    held(compose.output(*read) == "not-a-real-password", "Grafana's user can read its secret")
    listed = compose.output("exec", "-T", "grafana", "ls", "/etc/grafana/dashboards").split()
    held(listed == ["foldserve.json"], "Grafana has the dashboard", listed)
    until(lambda: up() == [("foldserve", "1")], "Prometheus scrapes the server")
    # Before Prometheus's first scrape the alert may be pending.
    until(lambda: states()["FoldserveNotReady"] == "inactive", "no alert while the server is ready")
    held(up(), "Prometheus finds the server by DNS, and no alert is pending")
    compose.output("stop", "foldserve")
    seconds = until(lambda: states()["FoldserveNotReady"] == "firing", "FoldserveNotReady fires")
    held(True, f"FoldserveNotReady fires {seconds:.0f} s after the server stops")
    compose.output("--profile", "monitoring", "stop")
