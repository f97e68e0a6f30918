"""Measures: one contender, one round; foldserve with and without metrics and a log; foldserve held under load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rig import bodies, environments, servers, wrk
from rig.bodies import Body, WrongAnswerError
from rig.cases import BARE, CONTENDERS, MODEL, ROW, TABLE, Contender, Door, Load, case
from rig.environments import StartError
from rig.servers import Server
from rig.wrk import Figures, LoadError

BY_NAME = {contender.name: contender for contender in CONTENDERS}
WARM_UP = 1
ON = ("--access-log",)
OFF = ("--no-metrics", "--no-access-log")


@dataclass
class Round:
    """One pass over the contenders: figures by case, start and memory by contender."""

    figures: dict[str, Figures] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    resident_mb: dict[str, float] = field(default_factory=dict)


@dataclass
class Bench:
    """What is the same for every measurement, and what is out: contenders, or doors of them, and why."""

    folder: Path
    seconds: float
    server_core: int
    load_core: int
    sent: dict[tuple[str, int], Body]
    out: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)  # met errors under load, in one round or more
    sizes: list[str] = field(default_factory=list)

    @contextmanager
    def serving(self, contender: Contender, *flags: str) -> Iterator[Server]:
        """Run a contender. Raises `StartError`."""
        python = str(environments.environment(contender.requirements) if contender.requirements else sys.executable)
        port, spare = servers.free_port(), servers.free_port()
        program = [
            part.format(python=python, port=port, spare=spare) for part in contender.command if part != "{sizes}"
        ]
        program += self.sizes if "{sizes}" in contender.command else []
        log = self.folder / f"{'-'.join((contender.name, *flags))}.log"
        with servers.started([*program, *flags], port, contender.ready, core=self.server_core, log=log) as server:
            yield server

    def find_sizes(self) -> None:
        """Learn how many bytes foldserve answers, which the ceiling has to answer too.

        Raises `StartError`, `WrongAnswerError`.
        """
        with self.serving(BY_NAME["foldserve"]) as server:
            self.sizes = [
                str(len(bodies.ask(server.port, "/predict", self.sent["json", count])[0])) for count in bodies.COUNTS
            ]

    def measure(self, name: str, into: Round) -> None:
        """Start a contender, check, load and check again each of its doors."""
        if name in self.out:
            return
        if name == BARE:
            into.figures |= self._bare()
            return
        contender = BY_NAME[name]
        try:
            if "{sizes}" in contender.command and not self.sizes:
                self.find_sizes()
            with self.serving(contender) as server:
                into.ready_s[name] = server.ready_s
                for door in contender.doors:
                    self._measure_door(contender, door, server, into)
                into.resident_mb[name] = server.resident_mb()
        except (StartError, WrongAnswerError) as error:
            self.out[name] = str(error)

    def _measure_door(self, contender: Contender, door: Door, server: Server, into: Round) -> None:
        where = f"{contender.name}/{door.protocol}"
        if where in self.out:
            return
        figures = {}
        try:
            self._check(door, server)
            for load in door.loads:
                figures[case(contender.name, door.protocol, load)] = self.load(server, door, load, self.seconds)
            self._check(door, server)
        except WrongAnswerError as error:
            self.out[where] = str(error)
        except LoadError as error:
            self.noted[where] = str(error)
        else:
            into.figures |= figures

    def _check(self, door: Door, server: Server) -> None:
        for count in sorted({load.rows for load in door.loads}):
            path, body = _path(door, count), self.sent[door.protocol, count]
            if door.answers:
                bodies.check(door.protocol, server.port, path, body)
            else:
                bodies.ask(server.port, path, body)

    def load(self, server: Server, door: Door, load: Load, seconds: float) -> Figures:
        """Warm up, then measure. Raises `LoadError`."""
        body = self.sent[door.protocol, load.rows]
        url = f"http://127.0.0.1:{server.port}{_path(door, load.rows)}"
        figures = Figures(0)
        for length in (WARM_UP, seconds):
            figures = wrk.load(
                url,
                body.file,
                body.headers,
                connections=load.connections,
                seconds=length,
                rows=load.rows,
                core=self.load_core,
            )
        return figures

    def _bare(self) -> dict[str, Figures]:
        script = str(environments.CONTENDERS / "bare_session.py")
        program = [sys.executable, script, MODEL, str(self.folder / "rows.npy"), str(self.seconds)]
        pinned = environments.pinned(self.server_core, [*program, str(ROW.rows), str(TABLE.rows)])
        done = subprocess.run(
            pinned, cwd=environments.ROOT, env=environments.variables(), capture_output=True, text=True, check=True
        )
        rates = json.loads(done.stdout)
        return {case(BARE, "none", load): Figures(rates[str(load.rows)]) for load in (ROW, TABLE)}

    def telemetry(self, pairs: int) -> list[float]:
        """Measure rows/s with metrics and the access log as a part of rows/s without, in pairs of either order.

        Raises `StartError`, `LoadError`.
        """
        door = BY_NAME["foldserve"].doors[0]
        with ExitStack() as stack:
            on, off = (stack.enter_context(self.serving(BY_NAME["foldserve"], *flags)) for flags in (ON, OFF))
            ratios = []
            for i in range(pairs):
                order = (on, off) if i % 2 == 0 else (off, on)
                rates = {server.port: self.load(server, door, ROW, self.seconds).rows_per_second for server in order}
                ratios.append(rates[on.port] / rates[off.port])
        return ratios

    def soak(self, seconds: float) -> tuple[Figures, float, float]:
        """Hold 64 connections; give the figures, and the resident memory before and after, in MB.

        Raises `StartError`, `LoadError`.
        """
        contender = BY_NAME["foldserve"]
        held = Load("soak", rows=1, connections=64)
        with self.serving(contender) as server:
            self.load(server, contender.doors[0], held, 2 * WARM_UP)
            before = server.resident_mb()
            figures = self.load(server, contender.doors[0], held, seconds)
            return figures, before, server.resident_mb()


def _path(door: Door, count: int) -> str:
    return door.path.format(index=bodies.COUNTS.index(count))
