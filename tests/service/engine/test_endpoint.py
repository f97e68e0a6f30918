"""What large and encoded bodies may take: few wait for a thread, and none is decoded again and again."""

import asyncio
import gzip
import threading
import time

import numpy as np
import pytest

from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Pool
from foldserve.service.errors import QueueFull, UnsupportedMedia
from foldserve.service.protocols.content import inflated, preferred
from tests.service.support import PATIENCE

CAP = 1000


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
            waiting.cancel()  # they have left, and give back their places
        await asyncio.wait(taken[1:])
        again = pool.submit(int, "7")
        gate.set()
        assert await again == 7
        assert await taken[0]

    asyncio.run(use())


def test_a_body_that_is_encoded_more_than_twice_is_refused_unread() -> None:
    body = gzip.compress(gzip.compress(b"rows"))
    assert inflated({b"content-encoding": b"gzip, gzip"}, body, CAP) == b"rows"
    with pytest.raises(UnsupportedMedia):
        inflated({b"content-encoding": b"gzip, gzip, gzip"}, body, CAP)


@pytest.mark.parametrize(
    ("header", "liked"),
    [(b"b;q=0.1, a", b"a"), (b"a;q=0.5, b;q=0.5", b"a"), (b"b;q=0", None), (b"c", None), (b"", None), (b"B", b"b")],
)
def test_what_a_client_likes_best_is_by_weight_and_then_by_order(header: bytes, liked: bytes | None) -> None:
    assert preferred({b"accept": header}, b"accept", (b"a", b"b")) == liked


def test_nobody_waits_for_company_until_its_deadline() -> None:
    async def use() -> np.ndarray:
        answer = asyncio.get_running_loop().create_future()
        batcher = Batcher(lambda rows: rows + 1, max_batch=8, max_queue=8, max_delay=PATIENCE)
        batcher.submit(np.zeros((1, 2), np.float32), time.monotonic() + 1, answer.set_result)
        return await asyncio.wait_for(answer, PATIENCE)

    assert asyncio.run(use()).tolist() == [[1, 1]]


def test_who_leaves_makes_room_for_others_though_nothing_has_run() -> None:
    async def use() -> None:
        batcher = Batcher(lambda rows: rows, max_batch=8, max_queue=2, max_delay=PATIENCE)
        rows, never = np.zeros((2, 2), np.float32), time.monotonic() + 100 * PATIENCE
        first = batcher.submit(rows, never, pytest.fail)
        with pytest.raises(QueueFull):
            batcher.submit(rows, never, pytest.fail)
        first.cancel()
        assert batcher.queued_rows == 0
        batcher.submit(rows, never, pytest.fail).cancel()

    asyncio.run(use())
