"""Runs the command `docker`: builds images, starts containers, inspects both.

This module does not depend on foldserve.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_names = (f"foldserve-check-{os.getpid()}-{number}" for number in itertools.count())


def build(context: Path, tag: str, *flags: str, arguments: Mapping[str, str]) -> None:
    """Build an image from `context`.

    flags: options of `docker build`, such as --target and --file. arguments: the build arguments.
    """
    given = [flag for name, value in arguments.items() for flag in ("--build-arg", f"{name}={value}")]
    subprocess.run(["docker", "build", *flags, *given, "--tag", tag, context], check=True)


def start(
    tag: str,
    *arguments: str,
    program: str | None = None,
    env: Mapping[str, str] | None = None,
    volumes: Mapping[Path, str] | None = None,
    port: int | None = None,
    beside: subprocess.Popen[str] | None = None,
) -> subprocess.Popen[str]:
    """Start the image's entrypoint, or `program`.

    The container may write only to /tmp and the volumes. SIGTERM ends the container.

    arguments: the arguments of the program. By default, the program gets the arguments that the image defines. port:
    the port that is published on the host. beside: a running container whose network the new container shares.
    """
    flags = [flag for name, value in (env or {}).items() for flag in ("--env", f"{name}={value}")]
    flags += [flag for host, inside in (volumes or {}).items() for flag in ("--volume", f"{host}:{inside}")]
    flags += ["--publish", f"127.0.0.1:{port}:{port}"] if port else []
    if beside and beside.poll() is None:
        flags += ["--network", f"container:{container(beside)}"]
    flags += ["--entrypoint", program] if program else []
    safe = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]  # noqa: S108
    command = ["docker", "run", "--rm", "--name", next(_names), *safe, *flags, tag, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def container(process: subprocess.Popen[str]) -> str:
    """Return the name of the container that `start` started."""
    command = list(map(str, process.args))  # type: ignore[arg-type]
    return command[command.index("--name") + 1]


def inspect(name: str) -> dict[str, Any]:
    """Inspect a container or an image.

    Raises `subprocess.CalledProcessError` if there is no such container or image.
    """
    (found,) = json.loads(output("inspect", name))
    return dict(found)


def size(tag: str) -> int:
    """Return the size of the files of an image, in bytes."""
    return int(output("run", "--rm", "--user", "0", "--entrypoint", "du", tag, "-sbx", "/").split()[0])


def output(*arguments: str) -> str:
    """Run a command of docker that must succeed, and return its standard output."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout
