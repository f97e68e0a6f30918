"""Builds and runs images for the checks, with Docker or with another program. It does not know foldserve.

Another program needs these commands: `build [-f FILE] [--build-arg K=V]... TAG CONTEXT`; `run [--read-only]
[-v HOST:PATH]... [-e K=V]... TAG [COMMAND...]`, where COMMAND replaces the entrypoint and the network is the host's;
`config TAG`, which prints Docker's JSON; `size TAG`, which prints bytes.
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
    """Reduce a Dockerfile to the stages that `target` needs, for a tool that builds the last stage."""
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
        """Start the image's entrypoint, or `program`. It may write only to /tmp and the volumes; `stop` ends it.

        arguments: by default those of the image. port: is published on the host. beside: a running container whose
        network this one shares.
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
        """Send SIGTERM to a started container."""
        process.terminate()

    def config(self, tag: str) -> dict[str, Any]:
        """The configuration of the image, in the form of Docker."""
        return json.loads(_output([self._program, "image", "inspect", "--format", "{{json .Config}}", tag]))

    def size(self, tag: str) -> int:
        """The size of the files of the image, in bytes."""
        return int(
            _output([self._program, "run", "--rm", "--user", "0", "--entrypoint", "du", tag, "-sbx", "/"]).split()[0]
        )


class OtherTool:
    """A program other than Docker. It knows base images by tag, not by digest."""

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
        """Send SIGTERM to the program in a started container.

        The program is a child of `process`. Signal it directly: a shell between them may exit with its own status.
        """
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)

    def config(self, tag: str) -> dict[str, Any]:
        """The configuration of the image, in the form of Docker."""
        return json.loads(_output([self._program, "config", tag]))

    def size(self, tag: str) -> int:
        """The size of the files of the image, in bytes."""
        return int(_output([self._program, "size", tag]))


Tool = Docker | OtherTool


def named(program: str) -> Tool:
    """Return the tool whose command is `program`."""
    return Docker(program) if Path(program).name == "docker" else OtherTool(program)


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
