"""Simulates servers behind a load balancer. The servers form batches by the same rule as foldserve's batcher.

Assumptions: requests arrive at random (Poisson). The balancer sends each request to a random replica, and each replica
gets a given share. A replica has one core, and does one turn after the other. A turn takes all waiting requests, but at
most `max_batch`. The length of a turn is `fixed` plus `each` times the number of requests in the turn. All responses of
a turn are sent at the end of the turn. No request is refused, and transfers over the network take no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Replica:
    """The processor times of one server, in seconds.

    law: whether the length of a turn is constant or has an exponential distribution.
    """

    fixed: float
    each: float
    max_batch: int
    law: Literal["constant", "exponential"] = "constant"

    def capacity(self) -> float:
        """Return the largest number of requests that the replica can answer per second."""
        return self.max_batch / (self.fixed + self.each * self.max_batch)


def latencies(replica: Replica, rate: float, count: int, *, shares: Sequence[float] = (1.0,), seed: int = 0) -> Array:
    """Return the seconds from arrival to response, for each of `count` requests. `rate` requests arrive per second.

    shares: the share of the requests that each replica gets. The first tenth of the requests is left out, because the
    queues begin empty.
    """
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    place = random.choice(len(shares), count, p=np.array(shares) / sum(shares))
    found = np.empty(count)
    for number in range(len(shares)):
        mine = np.flatnonzero(place == number)
        found[mine] = _one(replica, arrivals[mine], random)
    return found[count // 10 :]


def _one(replica: Replica, arrivals: Array, random: np.random.Generator) -> Array:
    """Return the seconds from arrival to response, for the requests of one replica. arrivals: sorted times."""
    times = arrivals.tolist()
    count, first, free = len(times), 0, 0.0
    ends: list[float] = []
    while first < count:
        start = max(free, times[first])
        last = first + 1
        while last < count and last - first < replica.max_batch and times[last] <= start:
            last += 1
        length = replica.fixed + replica.each * (last - first)
        free = start + (random.exponential(length) if replica.law == "exponential" else length)
        ends += [free] * (last - first)
        first = last
    return np.array(ends) - arrivals
