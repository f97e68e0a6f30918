"""A pool takes a bounded amount of work and refuses more at once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from foldserve.service.engine.pool import Pool
from foldserve.service.errors import QueueFull
from tests.service.support import PATIENCE


def test_a_full_pool_refuses_at_once_and_takes_work_again_when_it_has_room() -> None:
    async def use() -> None:
        pool, gate = Pool(threads=1), threading.Event()
        taken: list[asyncio.Future[bool]] = []

        def fill() -> None:
            while len(taken) < 100:
                taken.append(pool.submit(gate.wait, PATIENCE))

        with pytest.raises(QueueFull) as refused:
            fill()
        assert refused.value.retry_after >= 1
        assert len(taken) > 1
        for waiting in taken[1:]:
            waiting.cancel()  # this frees their places in the pool
        await asyncio.wait(taken[1:])
        again = pool.submit(int, "7")
        gate.set()
        assert await again == 7
        assert await taken[0]

    asyncio.run(use())
