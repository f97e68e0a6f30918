"""Runs a program to its end on one core, and tells what that took: processor time, memory, when it first spoke."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from rig.environments import ROOT, pinned, variables


class RunError(Exception):
    """Why a program came to no good end, in one line: the last that it said."""


@dataclass(frozen=True)
class Ran:
    """What a run took.

    processor_s: user and system time, of its children too. first_output_s: from its start until it first wrote to the
    terminal. peak_bytes: the largest resident memory of any one of its processes. output: all that it wrote.
    """

    processor_s: float
    wall_s: float
    first_output_s: float
    peak_bytes: int
    output: str

    def last_line(self) -> str:
        """Give the last line that says something."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return (lines or ["it said nothing"])[-1]


def run(program: Sequence[str], core: int) -> Ran:
    """Run it in the repository's root, at a terminal, since progress is shown to people. Raises `RunError`."""
    ours, theirs = pty.openpty()
    started = time.perf_counter()
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
        with suppress(OSError):  # EIO: the last holder of the other end is gone
            while piece := os.read(ours, 65_536):
                first = time.perf_counter() if first is None else first
                output += piece
        os.close(ours)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    ended = time.perf_counter()
    ran = Ran(
        processor_s=used.ru_utime + used.ru_stime,
        wall_s=ended - started,
        first_output_s=(first or ended) - started,
        peak_bytes=used.ru_maxrss * 1024,
        output=output.decode(errors="replace"),
    )
    if process.returncode:
        raise RunError(ran.last_line()[:200])
    return ran
