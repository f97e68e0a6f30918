"""Tests the admission of requests under simulated loads.

The simulated clock advances only by the cost of the work, so the figures are exact.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest

from foldserve.service.engine.admission import Admission

MAX_WAIT = 0.05
PATIENCE = 10.0
MILLISECOND = 1e-3


@dataclass(frozen=True)
class Cost:
    """The seconds that each step of one request takes. A refusal takes `read` seconds."""

    read: float = 10e-6
    decode: float = 150e-6
    encode: float = 60e-6
    size: int = 40_000

    @property
    def capacity(self) -> float:
        return 1 / (self.read + self.decode + self.encode)


@dataclass
class Seconds:
    """The latencies of all requests with one priority."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)


class Simulation:
    """One server. Each turn writes the responses of the previous turn, then reads all requests that have arrived."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self.now = 0.0
        self.admission = Admission(MAX_WAIT, lambda: self.now)
        self.begun: list[Request] = []
        self.waiting = 0
        self.normal, self.high = Seconds(), Seconds()

    def run(
        self, arrivals: Iterable[tuple[float, bool]], *, stall_at: float = np.inf, patience: float = PATIENCE
    ) -> None:
        """Serve all requests.

        arrivals: for each request, the time of arrival, and whether the priority is high. The requests are sorted by
        the time of arrival.
        """
        asyncio.run(self._serve(deque(arrivals), stall_at, patience))

    async def _serve(self, arrivals: deque[tuple[float, bool]], stall_at: float, patience: float) -> None:
        while arrivals or self.begun or self.waiting:
            begun, self.begun = self.begun, []
            for request in begun:
                self.now += self.cost.encode
                request.seconds.accepted.append(self.now - request.arrived)
            if not self.begun and not begun and not self.waiting and arrivals:
                self.now = max(self.now, arrivals[0][0])
            if self.now >= stall_at:
                self.now, stall_at = self.now + 0.5, np.inf
            while arrivals and arrivals[0][0] <= self.now:
                self._read(*arrivals.popleft(), patience)
            await asyncio.sleep(0)

    def _read(self, arrived: float, high: bool, patience: float) -> None:
        self.now += self.cost.read
        request = Request(self, arrived, self.high if high else self.normal)
        self.waiting += 1
        if self.admission.begins_now(self.now):
            request.begin()
        elif retry_after := self.admission.wait(request, self.cost.size, self.now, patience=patience, high=high):
            self.waiting -= 1
            request.seconds.refused.append(self.now - arrived)
            request.seconds.retry_after.append(retry_after)

    def goodput(self) -> float:
        """Compute the share of the capacity that accepted requests used."""
        return len(self.normal.accepted + self.high.accepted) / self.now / self.cost.capacity


@dataclass
class Request:
    simulation: Simulation
    arrived: float
    seconds: Seconds

    def begin(self) -> bool:
        self.simulation.now += self.simulation.cost.decode
        self.simulation.waiting -= 1
        self.simulation.begun.append(self)
        return True


def poisson(cost: Cost, factor: float, seconds: float = 3.0, high: float = 0.0) -> list[tuple[float, bool]]:
    """Draw arrivals at `factor` times the capacity. high: the share of requests of high priority."""
    rng = np.random.default_rng(0)
    rate = factor * cost.capacity
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    return list(zip(times.tolist(), (rng.random(len(times)) < high).tolist(), strict=True))


def p99(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 99))


def test_below_the_capacity_nothing_is_refused_or_queued_for_long() -> None:
    simulation = Simulation(Cost())
    simulation.run(poisson(simulation.cost, 0.8))
    assert not simulation.normal.refused
    assert p99(simulation.normal.accepted) < 10 * MILLISECOND


def test_at_three_times_the_capacity_accepted_requests_are_fast_and_others_are_refused_at_once() -> None:
    simulation = Simulation(Cost())
    simulation.run(poisson(simulation.cost, 3))
    assert simulation.goodput() > 0.85
    assert p99(simulation.normal.accepted) < MAX_WAIT + 10 * MILLISECOND
    assert p99(simulation.normal.refused) < 10 * MILLISECOND


def test_refusals_that_take_a_sixth_of_a_request_leave_time_for_accepted_ones() -> None:
    cost = Cost(decode=25e-6, encode=25e-6, size=4000)
    simulation = Simulation(cost)
    simulation.run(poisson(cost, 3))
    # The load is 3 times the capacity, and a refusal costs a sixth of a request. If g is the goodput as a share of the
    # capacity, then g + (3 - g) / 6 = 1.
    assert simulation.goodput() == pytest.approx(0.6, abs=0.03)
    assert p99(simulation.normal.refused) < 50 * MILLISECOND
    assert p99(simulation.normal.accepted) < 200 * MILLISECOND


def test_large_requests_are_admitted_up_to_the_same_wait() -> None:
    cost = Cost(read=20e-6, decode=0.7e-3, encode=0.3e-3, size=400_000)
    simulation = Simulation(cost)
    simulation.run(poisson(cost, 3, seconds=10))
    assert simulation.goodput() > 0.95
    assert p99(simulation.normal.accepted) < MAX_WAIT + 10 * MILLISECOND


def test_a_pool_of_32_connections_is_never_refused() -> None:
    cost = Cost(read=20e-6, decode=20e-3, encode=1e-3, size=1_000_000)  # 32 of these requests take 0.7 s
    simulation = Simulation(cost)
    simulation.run(poisson(cost, 3, seconds=1))  # the server learns its own speed
    assert simulation.normal.refused
    before = len(simulation.normal.refused)
    simulation.run([(simulation.now + 1, False)] * 32)
    assert len(simulation.normal.refused) == before


def test_a_burst_that_can_be_answered_in_time_is_accepted_whole() -> None:
    simulation = Simulation(Cost())
    simulation.run(poisson(simulation.cost, 2, seconds=0.2))  # the server learns its own speed
    before = len(simulation.normal.refused)
    simulation.run([(simulation.now + 1, False)] * int(MAX_WAIT / 2 * simulation.cost.capacity))
    assert len(simulation.normal.refused) == before


def test_a_stall_of_half_a_second_is_forgotten() -> None:
    steady, stalled = Simulation(Cost()), Simulation(Cost())
    steady.run(poisson(steady.cost, 3))
    stalled.run(poisson(stalled.cost, 3), stall_at=1.0)
    lost = 0.5 / 3
    assert stalled.goodput() > steady.goodput() - lost - 0.02


def test_a_request_of_high_priority_is_accepted_in_an_overload_and_runs_first() -> None:
    simulation = Simulation(Cost())
    simulation.run(poisson(simulation.cost, 3, high=0.03))  # the requests of high priority need 9% of the capacity
    assert not simulation.high.refused
    assert simulation.normal.refused
    assert p99(simulation.high.accepted) < MAX_WAIT / 2


def test_a_request_whose_deadline_would_pass_in_the_queue_is_refused_at_once() -> None:
    simulation = Simulation(Cost())
    simulation.run(poisson(simulation.cost, 3), patience=MAX_WAIT / 2)
    assert p99(simulation.normal.accepted) < MAX_WAIT / 2 + 15 * MILLISECOND


def test_retry_after_grows_with_the_work_that_was_refused() -> None:
    latest = []
    for factor in (1.5, 8):
        simulation = Simulation(Cost())
        simulation.run(poisson(simulation.cost, factor))
        latest.append(max(simulation.normal.retry_after))
        assert min(simulation.normal.retry_after) == 1
    assert 1 <= latest[0] <= 2
    assert 5 <= latest[1] <= 12
