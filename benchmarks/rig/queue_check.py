"""Compares real servers with the simulation of `queueing.py`.

Requests arrive at random times. A latency starts at the scheduled arrival. The comparison has two parts. In the first
part, one server has one core, and the load generator has another core. In the second part, each of two servers has one
core, and the load generator runs on the same cores. Each part runs once with the kernel's ordinary scheduler and once
with real-time priority. With real-time priority, the servers wait for no other program, and the load generator waits
for no server. The latencies with and without real-time priority differ by the waits that the scheduler causes.

Each server has one worker and a port of its own, so the load generator divides its connections equally between the
servers. If you give the flag `--workers 2`, the workers share one port, and the division of the connections depends on
chance.

The simulation gets three measured processor times, but no measured latency. Two of the processor times describe a turn
of the server. The third processor time is what the load generator needs for a request. If the load generator has its
own core, its time is added to each latency. If the load generator shares a core with a server, its time is added to the
turns of this server.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from rig.open_loop import Load
from rig.queueing import Replica, latencies
from rig.report import Row, markdown, number
from rig.servers import Server

CONNECTIONS = 32
UTILISATIONS = (0.3, 0.5, 0.7)
_WARM_UP_SECONDS = 1.0
_TOGETHER = 16
_LONE_UTILISATION = 0.1
_SIMULATED = 200_000
# The real-time priorities of the server and of the load generator. If a server and the load generator wait for the same
# core, the load generator runs first.
_PRIORITIES = {"ordinary": (None, None), "real-time": (10, 20)}
_HEADER = (
    "servers",
    "priority",
    "utilisation",
    "requests/s",
    "p50, ms: measured",
    "simulated",
    "p99, ms: measured",
    "simulated",
    "measured ÷ simulated",
)


@dataclass(frozen=True)
class Plan:
    """The settings of a comparison.

    serve: starts a server on a core. cores: the two cores for the servers and the load generator.
    """

    serve: Callable[[int], AbstractContextManager[Server]]
    request: bytes
    max_batch: int
    seconds: float
    cores: tuple[int, int]


def turn(plan: Plan) -> Replica:
    """Measure the processor time that one turn takes.

    A load with 16 requests in flight measures the time that one more request adds to a turn. If a request arrives alone
    after a pause, its time includes the fixed part of a turn.
    """
    with plan.serve(plan.cores[0]) as server:
        load = Load(server.port, _TOGETHER)
        load.closed_loop(plan.request, _WARM_UP_SECONDS, _TOGETHER)
        before = server.processor_seconds()
        answered = load.closed_loop(plan.request, plan.seconds, _TOGETHER).count(200)
        together = (server.processor_seconds() - before) / answered
        before = server.processor_seconds()
        rate = _LONE_UTILISATION / together
        lone = load.open_loop(plan.request, 2 * plan.seconds, rate, poisson=True, seed=0).count(200)
        alone = (server.processor_seconds() - before) / lone
        load.close()
    return Replica(max(0.0, alone - together), together, plan.max_batch)


def compare(plan: Plan, replica: Replica) -> str:
    """Run both parts with ordinary and with real-time priority. Return a table."""
    table: list[Row] = [_HEADER]
    everywhere = os.sched_getaffinity(0)
    for count in (1, 2):
        for name, (first, second) in _PRIORITIES.items():
            if not _may_have(second):
                print("left out: real-time priority needs root (CAP_SYS_NICE)", file=sys.stderr)
                continue
            with ExitStack() as stack:
                with _priority(first):
                    servers = [stack.enter_context(plan.serve(core)) for core in plan.cores[:count]]
                stack.callback(os.sched_setaffinity, 0, everywhere)
                os.sched_setaffinity(0, plan.cores[1:] if count == 1 else plan.cores)
                with _priority(second):
                    rows = list(_measure(plan, replica, [server.port for server in servers]))
            table += [(f"{count}", name, *row) for row in rows]
    return markdown(table)


def _measure(plan: Plan, replica: Replica, ports: list[int]) -> Iterator[Row]:
    count = len(ports)
    load = Load(ports, CONNECTIONS)
    load.closed_loop(plan.request, _WARM_UP_SECONDS, 2 * count)
    for utilisation in UTILISATIONS:
        print(f"servers: {count}, utilisation: {utilisation:.0%}", file=sys.stderr)
        rate = utilisation * count / (replica.fixed + replica.each)
        own = time.process_time()
        outcome = load.open_loop(plan.request, 2 * plan.seconds, rate, poisson=True, seed=1)
        client = (time.process_time() - own) / outcome.count(200)
        if count == 1:
            simulated = client + latencies(replica, rate, _SIMULATED)
        else:
            slower = Replica(replica.fixed, replica.each + client, replica.max_batch)
            simulated = latencies(slower, rate, _SIMULATED, shares=[1.0] * count)
        real, model = (np.percentile(x, (50, 99)) * 1e3 for x in (outcome.latencies(200), simulated))
        cells = (rate, real[0], model[0], real[1], model[1], real[1] / model[1])
        yield (f"{utilisation:.0%}", *map(number, cells))
    load.close()


def _may_have(priority: int | None) -> bool:
    try:
        with _priority(priority):
            return True
    except PermissionError:
        return False


@contextmanager
def _priority(priority: int | None) -> Iterator[None]:
    """Set a real-time priority for this process and for the processes that it starts. None changes nothing."""
    policy, old = os.sched_getscheduler(0), os.sched_getparam(0)
    if priority is not None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, old)
