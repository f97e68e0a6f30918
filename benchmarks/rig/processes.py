"""Finds the cores of this process. Runs a program on one core, and measures its processor time, memory and output."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rig.environments import ROOT, pinned, variables


def two_cores() -> list[int]:
    """Return the cores of this process, in order. Exit with a message of one line if there are fewer than two cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit(f"{Path(sys.argv[0]).name} needs two cores: one for the server, one for the load")
    return cores


class RunError(Exception):
    """Raised if a program fails. The message is the program's last line of output."""


@dataclass(frozen=True)
class Run:
    """The measurements of one run of a program.

    processor_s: the user and system time in seconds, including child processes. first_output_s: the seconds from the
    start to the first output on the terminal. peak_bytes: the largest resident memory of a single process. output: the
    whole printed text.
    """

    processor_s: float
    wall_s: float
    first_output_s: float
    peak_bytes: int
    output: str

    def last_line(self) -> str:
        """Return the last line of output that is not blank."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return (lines or ["no output"])[-1]


def run(program: Sequence[str], core: int) -> Run:
    """Run a program in the root of the repository, on a terminal. A program shows its progress only on a terminal.

    Raises `RunError` if the program fails.
    """
    ours, theirs = pty.openpty()
    start = time.perf_counter()
    with subprocess.Popen(
        pinned(core, program),
        cwd=ROOT,
        env=variables() | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        first, output = None, bytearray()
        with suppress(OSError):  # EIO means that every process has closed the other end
            while piece := os.read(ours, 65_536):
                first = time.perf_counter() if first is None else first
                output += piece
        os.close(ours)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    end = time.perf_counter()
    done = Run(
        processor_s=used.ru_utime + used.ru_stime,
        wall_s=end - start,
        first_output_s=(first or end) - start,
        peak_bytes=used.ru_maxrss * 1024,
        output=output.decode(errors="replace"),
    )
    if process.returncode:
        raise RunError(done.last_line()[:200])
    return done
