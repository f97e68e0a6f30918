"""The simulation of benchmarks/scaling.py agrees with the formulas of queueing theory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from rig.queueing import Replica, latencies

SERVICE = 1e-3
COUNT = 200_000


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_exponential_turns_of_one_request_are_an_m_m_1_queue(load: float) -> None:
    """The time in the system has an exponential distribution. https://en.wikipedia.org/wiki/M/M/1_queue"""
    found = latencies(Replica(0.0, SERVICE, 1, "exponential"), load / SERVICE, COUNT)
    rate = (1 - load) / SERVICE
    assert found.mean() == pytest.approx(1 / rate, rel=0.05)
    assert np.percentile(found, 99) == pytest.approx(np.log(100) / rate, rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_constant_turns_of_one_request_are_an_m_d_1_queue(load: float) -> None:
    """The mean equals the result of the Pollaczek-Khinchine formula. https://en.wikipedia.org/wiki/M/D/1_queue"""
    found = latencies(Replica(0.0, SERVICE, 1), 2 * load / SERVICE, COUNT, shares=(1, 1))
    assert found.mean() == pytest.approx(SERVICE * (1 + load / (2 * (1 - load))), rel=0.05)
    assert found.min() == pytest.approx(SERVICE)


def test_batches_share_the_fixed_part_of_a_turn() -> None:
    batched, single = Replica(SERVICE, SERVICE / 10, 64), Replica(SERVICE, SERVICE / 10, 1)
    assert batched.capacity() > 8 * single.capacity()
    rate = 1.5 * single.capacity()  # a server without batches can't handle this rate
    assert np.percentile(latencies(batched, rate, COUNT), 99) < 3 * (SERVICE + SERVICE / 10 * 4)
