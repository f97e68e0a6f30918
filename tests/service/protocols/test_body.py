"""All bodies together have one limit in bytes. The bytes of a body count towards the limit until the body is freed."""

from __future__ import annotations

import numpy as np
import pytest

from foldserve.service.errors import MemoryFull
from foldserve.service.protocols.body import BodyMemory

LIMIT = 10**6
PART = bytes(10**5)


def test_bodies_count_until_they_are_freed() -> None:
    memory = BodyMemory(LIMIT)
    first, second = memory.new_body(), memory.new_body()
    for _ in range(5):
        first.add(PART)
        second.add(PART)
    assert (memory.held, bytes(first)) == (LIMIT, PART * 5)
    with pytest.raises(MemoryFull) as refused:
        second.add(b"x")
    assert refused.value.retry_after >= 1
    assert len(second) == 5 * len(PART)
    del first
    assert memory.held == LIMIT // 2
    second.add(PART)
    assert memory.held == 6 * len(PART)


def test_a_body_counts_while_an_array_refers_to_it() -> None:
    memory = BodyMemory(LIMIT)
    body = memory.new_body()
    body.add(PART)
    rows = np.frombuffer(body, "<f4")
    del body
    assert memory.held == len(PART)
    del rows
    assert memory.held == 0


def test_a_body_that_is_discarded_does_not_count() -> None:
    memory = BodyMemory(LIMIT)
    body = memory.new_body()
    body.add(PART)
    body.discard()
    assert (memory.held, bytes(body)) == (0, b"")


def test_small_bodies_do_not_count() -> None:
    memory = BodyMemory(LIMIT)
    full = memory.new_body()
    full.add(bytes(LIMIT))
    small = [memory.new_body() for _ in range(100)]
    for body in small:
        body.add(bytes(2**15))
        body.add(bytes(2**15))
    assert memory.held == LIMIT
    memory.check_room(2**16)
    with pytest.raises(MemoryFull):
        small[0].add(b"x")


def test_room_is_checked_without_being_reserved() -> None:
    memory = BodyMemory(LIMIT)
    memory.check_room(LIMIT)
    body = memory.new_body()
    body.add(PART)
    memory.check_room(LIMIT - len(PART))
    with pytest.raises(MemoryFull):
        memory.check_room(LIMIT - len(PART) + 1)
    assert memory.held == len(PART)
