"""Measures servers.

There are three measurements: of one contender in one round, of foldserve with and without metrics, and of foldserve
under a long load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rig import bodies, environments, servers, wrk
from rig.bodies import Body, WrongResponseError
from rig.cases import BARE, CONTENDERS, MODEL, ROW, TABLE, Contender, Endpoint, Load, case
from rig.environments import StartError
from rig.servers import Server
from rig.wrk import Figures, LoadError

BY_NAME = {contender.name: contender for contender in CONTENDERS}
WARM_UP = 1
ON = ("--access-log",)
OFF = ("--no-metrics", "--no-access-log")


@dataclass
class Round:
    """The results of one pass over the contenders. `figures` is keyed by the name of a case. `ready_s` and
    `resident_mb` are keyed by the name of a contender.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    resident_mb: dict[str, float] = field(default_factory=dict)


@dataclass
class Bench:
    """The conditions of every measurement, and the failures so far.

    bodies: the request bodies, by protocol and number of rows. excluded: the reason for each contender that did not
    start, and for each endpoint with a wrong response. load_errors: the endpoints that had errors under load in at
    least one round. sizes: the lengths in bytes of foldserve's responses, by number of rows.
    """

    folder: Path
    seconds: float
    server_core: int
    load_core: int
    bodies: dict[tuple[str, int], Body]
    excluded: dict[str, str] = field(default_factory=dict)
    load_errors: dict[str, str] = field(default_factory=dict)
    sizes: list[str] = field(default_factory=list)

    @contextmanager
    def serving(self, contender: Contender, *flags: str) -> Iterator[Server]:
        """Run a contender until the `with` block ends. Raises `StartError`."""
        python = str(environments.environment(contender.requirements) if contender.requirements else sys.executable)
        modules = environments.modules(contender.modules) if contender.modules else None
        port, spare = servers.free_port(), servers.free_port()
        program = [
            part.format(python=python, port=port, spare=spare, modules=modules)
            for part in contender.command
            if part != "{sizes}"
        ]
        program += self.sizes if "{sizes}" in contender.command else []
        log = self.folder / f"{'-'.join((contender.name, *flags))}.log"
        with servers.running([*program, *flags], port, contender.ready, core=self.server_core, log=log) as server:
            yield server

    def find_sizes(self) -> None:
        """Find the lengths of foldserve's responses. The servers of constant responses must send responses of these
        lengths.

        Raises `StartError`, `WrongResponseError`.
        """
        with self.serving(BY_NAME["foldserve"]) as server:
            self.sizes = [
                str(len(bodies.ask(server.port, "/predict", self.bodies["json", count])[0])) for count in bodies.COUNTS
            ]

    def measure(self, name: str, results: Round) -> None:
        """Start a contender. Check each endpoint of the contender before and after a load. Failures are recorded, not
        raised.
        """
        if name in self.excluded:
            return
        if name == BARE:
            results.figures |= self._bare()
            return
        contender = BY_NAME[name]
        try:
            if "{sizes}" in contender.command and not self.sizes:
                self.find_sizes()
            with self.serving(contender) as server:
                results.ready_s[name] = server.ready_s
                for endpoint in contender.endpoints:
                    self._measure_endpoint(contender, endpoint, server, results)
                results.resident_mb[name] = server.resident_mb()
        except (StartError, WrongResponseError) as error:
            self.excluded[name] = str(error)

    def _measure_endpoint(self, contender: Contender, endpoint: Endpoint, server: Server, results: Round) -> None:
        where = f"{contender.name}/{endpoint.protocol}"
        if where in self.excluded:
            return
        figures = {}
        try:
            self._check(endpoint, server)
            for load in endpoint.loads:
                figures[case(contender.name, endpoint.protocol, load)] = self.load(server, endpoint, load, self.seconds)
            self._check(endpoint, server)
        except WrongResponseError as error:
            self.excluded[where] = str(error)
        except LoadError as error:
            self.load_errors[where] = str(error)
        else:
            results.figures |= figures

    def _check(self, endpoint: Endpoint, server: Server) -> None:
        for count in sorted({load.rows for load in endpoint.loads}):
            path, body = _path(endpoint, count), self.bodies[endpoint.protocol, count]
            if endpoint.predicts:
                bodies.check(endpoint.protocol, server.port, path, body)
            else:
                bodies.ask(server.port, path, body)

    def load(self, server: Server, endpoint: Endpoint, load: Load, seconds: float) -> Figures:
        """Load a server, first to warm it up, then to measure. Raises `LoadError`."""
        body = self.bodies[endpoint.protocol, load.rows]
        url = f"http://127.0.0.1:{server.port}{_path(endpoint, load.rows)}"
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
        """Return ratios of two rates: the rate with metrics and access log, divided by the rate without both. The two
        rates of a ratio are measured one after the other, and the order alternates.

        Raises `StartError`, `LoadError`.
        """
        endpoint = BY_NAME["foldserve"].endpoints[0]
        with ExitStack() as stack:
            on, off = (stack.enter_context(self.serving(BY_NAME["foldserve"], *flags)) for flags in (ON, OFF))
            ratios = []
            for i in range(pairs):
                order = (on, off) if i % 2 == 0 else (off, on)
                rates = {
                    server.port: self.load(server, endpoint, ROW, self.seconds).rows_per_second for server in order
                }
                ratios.append(rates[on.port] / rates[off.port])
        return ratios

    def soak(self, seconds: float) -> tuple[Figures, float, float]:
        """Load foldserve on 64 connections. Return the figures, and the resident memory in MB before and after the
        load.

        Raises `StartError`, `LoadError`.
        """
        contender = BY_NAME["foldserve"]
        held = Load("soak", rows=1, connections=64)
        with self.serving(contender) as server:
            self.load(server, contender.endpoints[0], held, 2 * WARM_UP)
            before = server.resident_mb()
            figures = self.load(server, contender.endpoints[0], held, seconds)
            return figures, before, server.resident_mb()


def _path(endpoint: Endpoint, count: int) -> str:
    return endpoint.path.format(index=bodies.COUNTS.index(count))
