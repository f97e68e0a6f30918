"""What builds and runs an image for the checks: Docker, or a stand-in for where there is no engine.

A stand-in is a program with the commands `build [-f FILE] [--build-arg K=V]... TAG CONTEXT`, `run [--read-only]
[-v HOST:PATH]... [-e K=V]... TAG [COMMAND...]`, where COMMAND replaces the entrypoint and the network is the host's,
`config TAG`, which prints Docker's JSON, and `size TAG`, in bytes. It knows nothing of foldserve.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def only(dockerfile: str, target: str) -> str:
    """Leave of a Dockerfile what its stage `target` is made of, for a tool that builds the last stage, and no other."""
    head, *stages = re.split(r"^(?=FROM )", dockerfile, flags=re.MULTILINE)
    names = [re.match(r"FROM \S+ AS (\S+)", stage)[1] for stage in stages]
    needed, kept = {target}, []
    for name, stage in reversed(list(zip(names, stages, strict=True))):
        if name in needed:
            needed |= {stage.split()[1], *re.findall(r"from=(\w[\w-]*)", stage)}
            kept.append(stage)
    return "".join([head, *reversed(kept)])


class Docker:
    """Docker's own command."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._names = (f"foldserve-check-{os.getpid()}-{number}" for number in itertools.count())

    def build(self, context: Path, target: str, tag: str, arguments: Mapping[str, str]) -> None:
        """Build one stage of the Dockerfile in `context`."""
        flags = [flag for name, value in arguments.items() for flag in ("--build-arg", f"{name}={value}")]
        subprocess.run([self._program, "build", "--target", target, *flags, "--tag", tag, context], check=True)

    def start(
        self,
        tag: str,
        *arguments: str,
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        volumes: Mapping[Path, str] | None = None,
        port: int | None = None,
        beside: subprocess.Popen[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start the image's entrypoint, or `program`, with nothing to write to but /tmp and the volumes.

        Its `port` is the host's too; with `beside`, what 127.0.0.1 is to that one while it runs, it is to this one.
        Without arguments and program it gets the image's own. `stop` ends it.
        """
        flags = [flag for name, value in (env or {}).items() for flag in ("--env", f"{name}={value}")]
        flags += [flag for host, inside in (volumes or {}).items() for flag in ("--volume", f"{host}:{inside}")]
        flags += ["--publish", f"127.0.0.1:{port}:{port}"] if port else []
        if beside and beside.poll() is None:
            flags += ["--network", f"container:{beside.args[beside.args.index('--name') + 1]}"]
        flags += ["--entrypoint", program] if program else []
        safe = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]  # noqa: S108
        command = [self._program, "run", "--rm", "--name", next(self._names), *safe, *flags, tag, *arguments]
        return _started(command)

    def stop(self, process: subprocess.Popen[str]) -> None:
        """Send SIGTERM to what was started."""
        process.terminate()

    def config(self, tag: str) -> dict[str, Any]:
        """The image's configuration, as Docker names it."""
        return json.loads(_said([self._program, "image", "inspect", "--format", "{{json .Config}}", tag]))

    def size(self, tag: str) -> int:
        """The bytes of the image's files."""
        return int(
            _said([self._program, "run", "--rm", "--user", "0", "--entrypoint", "du", tag, "-sbx", "/"]).split()[0]
        )


class StandIn:
    """A program that builds and runs without an engine, and stands in for a base image by its tag alone."""

    def __init__(self, program: str) -> None:
        self._program = program

    def build(self, context: Path, target: str, tag: str, arguments: Mapping[str, str]) -> None:
        """Build one stage of the Dockerfile in `context`."""
        flags = [flag for name, value in arguments.items() for flag in ("--build-arg", f"{name}={value}")]
        with tempfile.NamedTemporaryFile("w", prefix="Dockerfile.") as file:
            stages = only((context / "Dockerfile").read_text(encoding="utf-8"), target)
            file.write(re.sub(r"@sha256:[0-9a-f]{64}", "", stages))
            file.flush()
            subprocess.run([self._program, "build", "-f", file.name, *flags, tag, context], check=True)

    def start(
        self,
        tag: str,
        *arguments: str,
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        volumes: Mapping[Path, str] | None = None,
        port: int | None = None,  # noqa: ARG002 (the network is the host's)
        beside: subprocess.Popen[str] | None = None,  # noqa: ARG002
    ) -> subprocess.Popen[str]:
        """As `Docker.start`."""
        flags = [flag for name, value in (env or {}).items() for flag in ("-e", f"{name}={value}")]
        flags += [flag for host, inside in (volumes or {}).items() for flag in ("-v", f"{host}:{inside}")]
        replaced: Sequence[str] = [program, *arguments] if program else arguments
        if arguments and not program:
            replaced = [*self.config(tag)["Entrypoint"], *arguments]
        return _started([self._program, "run", "--read-only", *flags, tag, *replaced])

    def stop(self, process: subprocess.Popen[str]) -> None:
        """Send SIGTERM to what was started.

        To the program itself: a shell that stands before it, and is signalled, may give its own status for the
        program's.
        """
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)

    def config(self, tag: str) -> dict[str, Any]:
        """The image's configuration, as Docker names it."""
        return json.loads(_said([self._program, "config", tag]))

    def size(self, tag: str) -> int:
        """The bytes of the image's files."""
        return int(_said([self._program, "size", tag]))


Tool = Docker | StandIn


def named(program: str) -> Tool:
    """The tool whose command is `program`: Docker by that name, and else a stand-in."""
    return Docker(program) if Path(program).name == "docker" else StandIn(program)


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
