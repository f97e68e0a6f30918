"""Four servers run on separate hosts, behind nginx or HAProxy with the shipped configuration. No request fails.

A client sends prediction requests at a constant rate, and checks each answer. During these requests, the servers and
the model are upgraded. One server is killed, and one server is cut off from the network. `make test-fleet` prints the
figures.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from foldserve.service import bundle
from tests.fleet.balancers import HAPROXY, NGINX, Balancer, balancing
from tests.fleet.hosts import Host, network
from tests.service.support import (
    PATIENCE,
    command_line,
    constant,
    environment,
    manifest,
    onnx_model,
    write_square_root,
)

pytestmark = pytest.mark.fleet

RATE = 100  # requests a second
CALM = 2 * RATE  # each phase waits for at least this many answers


def write_sum(models: Path) -> None:
    """Write version 2 of the model that `write_square_root` writes. Version 2 computes a + b instead of sqrt(a + b)."""
    node = helper.make_node("ReduceSum", ["input", "axes"], ["value"], keepdims=1)
    model = onnx_model([node], [constant("axes", [1], np.int64)])
    golden = bundle.Golden(inputs=((1.0, 3.0), (4.0, 5.0)), outputs=((4.0,), (9.0,)))
    bundle.write(models, "roots", model, lambda n: manifest(model, name="roots", version=n, golden=golden))


@dataclass
class Server:
    """A server on a host, with its own folder of models."""

    host: Host
    folder: Path
    drain_delay: float
    process: subprocess.Popen[str] = field(init=False)

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        flags = ("--host", self.host.address, "--port", 8000, "--allowed-hosts", "foldserve.example")
        flags += ("--timeout", 2, "--drain-delay", self.drain_delay, "--no-early-port")
        command = self.host.command(*command_line("serve", "--models", self.models, *flags))
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout
        with self.process.stdout as announcement:
            assert announcement.readline(), (self.folder / "log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


@dataclass(frozen=True)
class Answer:
    """A prediction's answer, as the load process reports it.

    server: the address of the server, or "" if no server answered. start, end: the monotonic times at which the request
    begins and ends.
    """

    number: int
    start: float
    end: float
    status: int
    right: bool
    version: int
    server: str
    retries: int


class Client:
    """The answers that the load process has received so far."""

    def __init__(self, process: subprocess.Popen[str], balancer: Balancer) -> None:
        self._process = process
        self._balancer = balancer
        self._answers: list[Answer] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            record: dict[str, Any] = json.loads(line)
            server, retries = self._balancer.read_tried(record["tried"]) if record.get("tried") else ("", 0)
            with self._changed:
                self._answers.append(
                    Answer(
                        record["number"],
                        record["start"],
                        record["start"] + record["seconds"],
                        record.get("status", 0),
                        record.get("right", False),
                        record.get("version", 0),
                        server,
                        retries,
                    )
                )
                self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds. Check the condition after each new answer."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), "it hangs"

    def wait_for(self, condition: Callable[[Answer], bool], count: int = 1) -> None:
        """Wait for `count` answers that meet a condition. Ignore answers to requests that began before this call."""
        now, seen, found = time.monotonic(), len(self._answers), 0

        def enough() -> bool:
            nonlocal seen, found
            found += sum(each.start >= now and condition(each) for each in self._answers[seen:])
            seen = len(self._answers)
            return found >= count

        self.wait(enough)

    def since(self, begin: float) -> Sequence[Answer]:
        """Wait until all requests that were sent so far have an answer. Return the answers that arrived after the time
        `begin`.
        """
        self.wait_for(lambda _: True)
        total = 1 + max(each.number for each in self._answers)
        self.wait(lambda: len(self._answers) >= total and sum(each.number < total for each in self._answers) == total)
        return [each for each in self._answers if each.end >= begin and each.number < total]

    def join(self) -> None:
        self._reader.join(PATIENCE)


@dataclass(frozen=True)
class Fleet:
    balancer: Balancer
    servers: Sequence[Server]
    client: Client

    @contextmanager
    def phase(self, title: str) -> Iterator[list[float]]:
        """Require that no request of a phase fails, and print the figures.

        Yields a list. The test appends the time of each fault to this list.
        """
        faults: list[float] = []
        begin = time.monotonic()
        yield faults
        self.client.wait_for(lambda _: True, CALM)
        answers = self.client.since(begin)
        failed = [each for each in answers if each.status != 200 or not each.right]
        times = sorted(1000 * (each.end - each.start) for each in answers)
        retried = [each for each in answers if each.retries]
        print(
            f"{self.balancer.name}: {title}: {len(answers)} requests, {len(failed)} failed, {len(retried)} retried; "
            f"median {statistics.median(times):.1f} ms, p99 {times[len(times) * 99 // 100]:.1f} ms, "
            f"slowest {times[-1]:.0f} ms"
        )
        for fault in faults:
            noticed = min((each.end for each in retried if each.end > fault), default=None)
            seconds = "by a health check only" if noticed is None else f"by a request after {noticed - fault:.2f} s"
            print(f"    the dead server was noticed {seconds}")
        assert not failed
        assert len({each.server for each in answers}) == len(self.servers)

    def wait_for_answers_of(self, server: Server) -> None:
        """Wait until the balancer sends requests to a server."""
        self.client.wait_for(lambda each: each.server == server.host.address)


@pytest.fixture(scope="module", params=[NGINX, HAPROXY], ids=lambda balancer: balancer.name)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    balancer: Balancer = request.param
    folder = tmp_path_factory.mktemp(balancer.name)
    with ExitStack() as stack:
        first, *hosts = stack.enter_context(network(5))
        servers = [Server(host, folder / host.address, balancer.drain_delay) for host in hosts]
        for server in servers:
            server.folder.mkdir()
            write_square_root(server.models)
            server.start()
            stack.callback(server.kill)
        url = stack.enter_context(balancing(balancer, folder, first, hosts))
        arguments = (url, folder / "certificate.pem", RATE, balancer.most_rows)
        command = first.command(sys.executable, "-m", "tests.fleet.load", *arguments)
        load = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        client = Client(load, balancer)
        stack.callback(client.join)
        stack.callback(load.terminate)
        running = Fleet(balancer, servers, client)
        for server in servers:
            running.wait_for_answers_of(server)
        yield running


def test_calm(fleet: Fleet) -> None:
    with fleet.phase("calm"):
        pass


def test_an_upgrade_of_the_servers(fleet: Fleet) -> None:
    with fleet.phase("servers upgraded"):
        for server in fleet.servers:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE) == 0
            server.start()
            fleet.wait_for_answers_of(server)


def test_an_upgrade_of_the_model(fleet: Fleet) -> None:
    with fleet.phase("model upgraded"):
        for server in fleet.servers:
            write_sum(server.models)
            expected = (server.host.address, 2)
            fleet.client.wait_for(lambda each, expected=expected: (each.server, each.version) == expected)
    begin = time.monotonic()
    fleet.client.wait_for(lambda _: True, CALM)
    assert {each.version for each in fleet.client.since(begin) if each.start >= begin} == {2}


def test_a_killed_server(fleet: Fleet) -> None:
    server = fleet.servers[1]
    with fleet.phase("a server killed") as faults:
        faults.append(time.monotonic())
        server.kill()
        fleet.client.wait_for(lambda _: True, 5 * CALM)
        server.start()
        fleet.wait_for_answers_of(server)


def test_a_server_that_is_cut_off(fleet: Fleet) -> None:
    server = fleet.servers[2]
    with fleet.phase("a server cut off") as faults:
        server.host.cut_off()
        faults.append(time.monotonic())
        fleet.client.wait_for(lambda _: True, 5 * CALM)
        server.host.connect()
        fleet.wait_for_answers_of(server)
