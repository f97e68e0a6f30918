"""A pool accepts a bounded amount of work, refuses further work immediately, and keeps no result."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

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
            waiting.cancel()  # cancelled work leaves the pool
        await asyncio.wait(taken[1:])
        again = pool.submit(int, "7")
        gate.set()
        assert await again == 7
        assert await taken[0]

    asyncio.run(use())


class Rows:
    """An object in the place of a request's rows."""


def test_a_result_is_freed_with_its_last_reference() -> None:
    async def use() -> None:
        pool = Pool(threads=1)
        result = pool.submit(Rows)
        rows = weakref.ref(await result)
        del result
        await pool.submit(int)  # after this call, the thread no longer holds a reference to the first call
        assert rows() is None

    gc.disable()  # rows in a reference cycle would stay in memory
    try:
        asyncio.run(use())
    finally:
        gc.enable()


def test_an_error_is_raised_where_the_result_is_awaited() -> None:
    async def use() -> None:
        pool = Pool(threads=1)
        with pytest.raises(ValueError, match="seven"):
            await pool.submit(int, "seven")
        assert await pool.submit(int, "7") == 7

    asyncio.run(use())


def test_work_that_is_cancelled_while_it_runs_ends_without_a_result() -> None:
    async def use() -> None:
        pool, started, gate = Pool(threads=1), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            gate.wait(PATIENCE)

        running = pool.submit(work)
        assert await asyncio.to_thread(started.wait, PATIENCE)
        running.cancel()
        gate.set()
        assert await pool.submit(int, "7") == 7  # the only thread is free again
        assert running.cancelled()

    asyncio.run(use())
