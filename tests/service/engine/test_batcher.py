"""Tests the batcher: admission, batches, deadlines, results and drain. The model is handmade, and the tests set the
event loop's clock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from foldserve.service.arrays import Rows
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.entry import Entry
from foldserve.service.errors import DeadlinePassed, Draining, NonFiniteOutput, QueueFull, RequestError, RuntimeFailure
from tests.service.support import PATIENCE

T = TypeVar("T")

FAR = math.inf
PAST = -math.inf

# The last column of a row has one of the values below. The value decides how the model behaves when it runs this row.
FINE, NAN, INFINITE, RAISES, TOO_FEW, NO_ROWS = range(6)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers follow `now`, which the test sets."""

    now = 0.0

    def time(self) -> float:
        return self.now


class Model:
    """A model whose output for a row depends only on that row: float32 [n, 3] -> [n, 2].

    A run on a thread waits while the gate is closed.
    """

    def __init__(self) -> None:
        self.runs: list[Rows] = []
        self.inline: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()
        self._loop_thread = threading.get_ident()

    def __call__(self, rows: Rows) -> Rows:
        self.runs.append(rows.copy())
        self.inline.append(threading.get_ident() == self._loop_thread)
        if not self.inline[-1] and not self.gate.is_set():
            self.held.set()
            assert self.gate.wait(PATIENCE)
            self.held.clear()
        kinds = set(rows[:, 2])
        if RAISES in kinds:
            raise ValueError("this row raises")
        if NO_ROWS in kinds:
            return None  # type: ignore[return-value]
        return self.of(rows)[: -1 if TOO_FEW in kinds else None]

    @staticmethod
    def of(rows: Rows) -> Rows:
        with np.errstate(invalid="ignore"):
            outputs = np.stack([rows[:, 0] / 3 - rows[:, 1], rows[:, 1] * 0.1 + 1], axis=1, dtype=np.float32)
        outputs[rows[:, 2] == NAN, 0] = np.nan
        outputs[rows[:, 2] == INFINITE, 1] = -np.inf
        return outputs


@dataclass(eq=False)
class Caller:
    rows: Rows
    answers: list[Rows | RequestError] = field(default_factory=list)
    entry: Entry | None = None

    def cancel(self) -> None:
        assert self.entry
        self.entry.cancel()

    def got_its_own_rows(self) -> bool:
        (answer,) = self.answers
        wanted = Model.of(self.rows)
        return isinstance(answer, np.ndarray) and answer.dtype == np.float32 and answer.tobytes() == wanted.tobytes()

    def error(self) -> RequestError:
        (answer,) = self.answers
        assert isinstance(answer, RequestError)
        return answer


class World:
    """One batcher and one model on one event loop."""

    def __init__(self, *, max_batch: int = 8, max_queue: int = 100, max_delay: float = 0.0) -> None:
        self.loop = Loop()
        self.model = Model()
        self.observed: list[tuple[int, float, list[float]]] = []
        self.watched: list[tuple[Rows, Rows]] = []
        self.batcher = Batcher(
            self.model,
            max_batch=max_batch,
            max_queue=max_queue,
            max_delay=max_delay,
            observe=lambda *seen: self.observed.append(seen),
            watchers=[lambda *seen: self.watched.append(seen)],
        )
        self._made = 0

    def close(self) -> None:
        self.model.gate.set()
        self.until(lambda: len(self.observed) == len(self.model.runs))
        self.loop.close()

    def rows(self, count: int, kind: int = FINE, at: int = 0) -> Rows:
        """Make rows that no other caller has. Only the row at index `at` has the given kind."""
        self._made += 1
        rows = np.zeros((count, 3), np.float32)
        rows[:, 0] = self._made
        rows[:, 1] = np.arange(count)
        rows[at, 2] = kind
        return rows

    def submit(self, *callers: Caller, deadline: float = FAR, cancel: bool = False) -> tuple[Caller, ...]:
        """Submit all callers in one turn of the loop."""

        def act() -> None:
            for caller in callers:
                caller.entry = self.batcher.submit(caller.rows, deadline, caller.answers.append)
                if cancel:
                    caller.cancel()

        self.on_loop(act)
        return callers

    def arrive(self, *counts: int, deadline: float = FAR) -> tuple[Caller, ...]:
        return self.submit(*(Caller(self.rows(count)) for count in counts), deadline=deadline)

    def on_loop(self, act: Callable[[], T]) -> T:
        async def run() -> T:
            return act()

        return self.loop.run_until_complete(run())

    def turn(self) -> None:
        """Run all callbacks that wait for neither a thread nor the clock."""
        for _ in range(10):
            self.on_loop(lambda: None)

    def until(self, condition: Callable[[], object]) -> None:
        """Run the event loop until the condition holds."""

        async def run() -> None:
            hung = time.monotonic() + PATIENCE
            while not condition():
                assert time.monotonic() < hung, "it hangs"
                await asyncio.sleep(0)

        self.loop.run_until_complete(run())

    def until_answered(self, *callers: Caller) -> None:
        self.until(lambda: all(caller.answers for caller in callers))
        self.turn()

    def hold(self, count: int = 1) -> Caller:
        """Return a caller whose run stays on the thread until the test calls `let_go`."""
        assert not self.model.held.is_set()
        self.model.gate.clear()
        (caller,) = self.arrive(count)
        self.until(self.model.held.is_set)
        return caller

    def let_go(self) -> None:
        self.model.gate.set()

    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self.turn()

    def sizes(self) -> list[int]:
        """Return the number of rows of each run."""
        return [len(rows) for rows in self.model.runs]

    def times_run(self, caller: Caller) -> int:
        """Return the number of the caller's rows that were run."""
        return sum(int((rows[:, 0] == caller.rows[0, 0]).sum()) for rows in self.model.runs)


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**limits: Any) -> World:
        made.append(World(**limits))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_caller_gets_the_outputs_for_its_rows(world: World) -> None:
    (caller,) = world.arrive(3)
    assert not caller.answers  # the callback does not run before `submit` has returned
    world.until_answered(caller)
    assert caller.got_its_own_rows()
    assert world.batcher.queued_rows == 0


def test_all_rows_of_one_turn_of_the_loop_are_one_run(world: World) -> None:
    callers = world.arrive(1, 2, 1, 3)
    world.until_answered(*callers)
    assert world.sizes() == [7]
    assert all(caller.got_its_own_rows() for caller in callers)


def test_rows_that_arrive_during_a_run_are_batched_in_order_of_arrival(world: World) -> None:
    first = world.hold()
    callers = [caller for count in (3, 2, 4, 1) for caller in world.arrive(count)]
    assert world.batcher.queued_rows == 10
    world.let_go()
    world.until_answered(first, *callers)
    assert world.sizes() == [1, 5, 5]  # 5 + 4 rows exceed the limit, so the last two entries wait
    assert [*world.model.runs[1][:, 0], *world.model.runs[2][:, 0]] == sorted(
        row for caller in callers for row in caller.rows[:, 0]
    )
    assert all(caller.got_its_own_rows() for caller in callers)


def test_a_fast_run_happens_on_the_loop_and_a_run_of_unknown_time_on_the_thread(world: World) -> None:
    # Interruptions by other programs may make a few fast runs look slow.
    for attempt in range(1000):
        (caller,) = world.arrive(2)
        if attempt:
            world.turn()
        if caller.answers and world.model.inline[-1]:
            break
        world.until_answered(caller)
    assert world.model.inline == [False] * attempt + [True]
    # The time of a run with 7 rows is not known yet.
    world.until_answered(*world.arrive(7))
    assert not world.model.inline[-1]


def test_a_run_known_to_be_long_does_not_block_the_loop(world: World) -> None:
    for _ in range(3):
        caller = world.hold()
        world.turn()
        assert not caller.answers
        held = time.monotonic()
        world.until(lambda held=held: time.monotonic() > held + 0.002)
        world.let_go()
        world.until_answered(caller)
    assert world.model.inline == [False] * 3


def test_an_entry_larger_than_a_batch_is_split_and_gets_one_result(world: World) -> None:
    (caller,) = world.arrive(29)
    world.until_answered(caller)
    assert world.sizes() == [8, 8, 8, 5]
    assert caller.got_its_own_rows()


def test_small_entries_run_between_the_pieces_of_a_large_one(world: World) -> None:
    first = world.hold()
    large, one, two = (world.arrive(count)[0] for count in (20, 6, 1))
    world.let_go()
    world.until_answered(first, large, one, two)
    assert [sorted(set(rows[:, 0])) for rows in world.model.runs] == [[1], [2], [3, 4], [2], [2]]
    assert all(caller.got_its_own_rows() for caller in (large, one, two))


def test_two_large_entries_take_turns(world: World) -> None:
    callers = world.arrive(17, 20)
    world.until_answered(*callers)
    assert [sorted(set(rows[:, 0])) for rows in world.model.runs] == [[1], [2], [1], [2], [1, 2]]
    assert all(caller.got_its_own_rows() for caller in callers)


def test_the_observer_gets_each_run_and_the_wait_of_each_entry_that_starts_in_it(world: World) -> None:
    began = time.monotonic()
    first = world.hold()
    callers = world.arrive(20, 6)
    world.let_go()
    world.until_answered(first, *callers)
    took = time.monotonic() - began
    assert [(rows, len(waited)) for rows, _, waited in world.observed] == [(1, 1), (8, 1), (6, 1), (8, 0), (4, 0)]
    assert all(0 <= seconds <= took for _, seconds, _ in world.observed)
    assert all(0 <= wait <= took for _, _, waited in world.observed for wait in waited)


def test_a_watcher_gets_the_rows_and_the_outputs_of_each_run(world: World) -> None:
    callers = world.arrive(2, 20)
    world.until_answered(*callers)
    assert len(world.watched) == len(world.model.runs) > 1
    for run, (rows, outputs) in zip(world.model.runs, world.watched, strict=True):
        assert (rows == run).all()
        assert (outputs == Model.of(run)).all()


def test_a_run_that_fails_is_observed_but_not_watched(world: World) -> None:
    world.until_answered(*world.submit(Caller(world.rows(1, RAISES))))
    assert len(world.observed) == 1
    assert not world.watched


def test_a_check_of_the_server_itself_is_neither_observed_nor_watched(world: World) -> None:
    check, observed, watched = world.rows(1), [], []
    world.batcher = Batcher(
        Model.of,
        max_batch=8,
        max_queue=100,
        observe=lambda *seen: observed.append(seen),
        watchers=[lambda *seen: watched.append(seen)],
        unobserved=check,
    )
    (checked,) = world.submit(Caller(check))
    world.until_answered(checked)
    assert checked.got_its_own_rows()
    assert not observed
    assert not watched
    world.until_answered(*world.submit(Caller(check), Caller(check.copy())))  # both callers are in one run
    assert [count for count, *_ in observed] == [len(rows) for rows, _ in watched] == [2]


def test_a_batcher_needs_no_observer(world: World) -> None:
    world.batcher = Batcher(Model.of, max_batch=8, max_queue=100)
    callers = world.arrive(3, 20)
    world.until_answered(*callers)
    assert all(caller.got_its_own_rows() for caller in callers)


# --- max_delay -------------------------------------------------------------------------------------------------------


def test_the_first_entry_waits_max_delay_and_no_longer(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    (first,) = world.arrive(1)
    world.pass_time(4.9)
    (second,) = world.arrive(1)  # the second entry does not restart the delay
    world.turn()
    assert not world.model.runs
    world.pass_time(0.2)
    world.until_answered(first, second)
    assert world.sizes() == [2]


def test_a_full_batch_does_not_wait_for_max_delay(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    callers = world.arrive(3, 4) + world.arrive(1)
    world.until_answered(*callers)
    assert world.sizes() == [8]
    assert world.loop.now == 0
    (large,) = world.arrive(9)
    world.until_answered(large)
    assert world.loop.now == 0


def test_entries_that_arrived_during_a_run_do_not_wait_for_max_delay(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    world.model.gate.clear()
    (first,) = world.arrive(1)
    world.loop.now += 6
    world.until(world.model.held.is_set)
    (second,) = world.arrive(1)
    world.let_go()
    world.until_answered(first, second)
    assert world.loop.now == 6


def test_drain_ends_the_wait_for_max_delay(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    (caller,) = world.arrive(1)
    world.on_loop(world.batcher.drain)
    world.until_answered(caller)
    assert caller.got_its_own_rows()
    assert world.loop.now == 0


# --- cancellation and deadlines --------------------------------------------------------------------------------------


def test_an_entry_cancelled_in_the_queue_is_not_run(world: World) -> None:
    first = world.hold()
    cancelled, stays = world.arrive(2) + world.arrive(3)
    cancelled.cancel()
    world.let_go()
    world.until_answered(first, stays)
    assert not cancelled.answers
    assert world.times_run(cancelled) == 0
    assert stays.got_its_own_rows()
    assert world.batcher.queued_rows == 0


def test_an_entry_cancelled_in_the_turn_of_its_arrival_is_not_run(world: World) -> None:
    world.submit(Caller(world.rows(2)), cancel=True)
    world.turn()
    assert not world.model.runs
    assert world.batcher.queued_rows == 0


def test_an_entry_cancelled_during_its_run_does_not_affect_its_batch(world: World) -> None:
    world.model.gate.clear()
    left, cancelled, right = world.arrive(2, 1, 3)
    world.until(world.model.held.is_set)
    cancelled.cancel()
    world.let_go()
    world.until_answered(left, right)
    assert world.sizes() == [6]
    assert not cancelled.answers
    assert left.got_its_own_rows()
    assert right.got_its_own_rows()


def test_the_rest_of_a_cancelled_large_entry_is_not_run(world: World) -> None:
    world.model.gate.clear()
    (large,) = world.arrive(20)
    world.until(world.model.held.is_set)
    (small,) = world.arrive(1)
    large.cancel()
    world.let_go()
    world.until_answered(small)
    assert world.times_run(large) == 8
    assert not large.answers
    assert world.batcher.queued_rows == 0


def test_cancelling_after_the_result_does_nothing(world: World) -> None:
    (caller,) = world.arrive(2)
    world.until_answered(caller)
    caller.cancel()
    world.turn()
    assert caller.got_its_own_rows()


def test_an_expired_entry_gets_an_error_and_is_not_run(world: World) -> None:
    for late in (time.monotonic(), time.monotonic() - 1, PAST):
        (caller,) = world.arrive(2, deadline=late)
        world.until_answered(caller)
        assert isinstance(caller.error(), DeadlinePassed)
    assert not world.model.runs
    assert world.batcher.queued_rows == 0


def test_an_entry_that_expires_in_the_queue_gets_its_error_during_a_long_run(world: World) -> None:
    first = world.hold()
    late, cancelled, stays = world.arrive(2, deadline=time.monotonic() + 0.01) + world.arrive(3) + world.arrive(1)
    cancelled.cancel()

    def answered() -> bool:
        world.loop.now += 0.01
        return bool(late.answers)

    world.until(answered)
    assert isinstance(late.error(), DeadlinePassed)
    assert world.model.held.is_set()
    assert not first.answers
    assert world.batcher.queued_rows == 1  # the cancelled entry is no longer in the queue
    world.let_go()
    world.until_answered(first, stays)
    assert stays.got_its_own_rows()
    assert world.times_run(late) == world.times_run(cancelled) == 0


def test_the_rest_of_an_expired_large_entry_is_not_run(world: World) -> None:
    world.model.gate.clear()
    # On a slow machine, the deadline may pass before any row of the entry runs, and the test must pass even then.
    (large,) = world.arrive(20, deadline=time.monotonic() + 0.02)

    def answered() -> bool:
        world.loop.now += 0.01
        return bool(large.answers)

    world.until(answered)
    assert isinstance(large.error(), DeadlinePassed)
    assert world.batcher.queued_rows == 0
    world.let_go()
    world.turn()
    assert world.times_run(large) in {0, 8}
    assert len(large.answers) == 1


def test_a_change_of_the_wall_clock_has_no_effect(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10_000))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    first = world.hold()
    (stays,) = world.arrive(2, deadline=time.monotonic() + 100 * PATIENCE)
    (late,) = world.arrive(2, deadline=time.monotonic())
    world.pass_time(1)
    assert isinstance(late.error(), DeadlinePassed)
    assert not stays.answers
    world.let_go()
    world.until_answered(first, stays)
    assert stays.got_its_own_rows()
    assert all(wait < 100 * PATIENCE for _, _, waited in world.observed for wait in waited)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RAISES, TOO_FEW, NO_ROWS])
def test_a_failed_run_fails_only_its_own_batch(kind: int, world: World) -> None:
    callers = world.submit(*(Caller(world.rows(2, kind if number == 1 else FINE)) for number in range(3)))
    world.until_answered(*callers)
    assert world.sizes() == [6]
    found = [caller.error() for caller in callers]
    assert {type(error) for error in found} == {RuntimeFailure}
    assert len(set(map(id, found))) == len(found)  # each caller gets its own error object, which it may raise
    assert all(isinstance(error.__cause__, ValueError | TypeError) for error in found)
    (following,) = world.arrive(2)
    world.until_answered(following)
    assert following.got_its_own_rows()


def test_the_rest_of_a_large_entry_is_not_run_after_a_failed_run(world: World) -> None:
    (large,) = world.submit(Caller(world.rows(40, RAISES, at=10)))
    world.until_answered(large)
    assert type(large.error()) is RuntimeFailure
    assert world.sizes() == [8, 8]
    assert world.batcher.queued_rows == 0


@pytest.mark.parametrize("kind", [NAN, INFINITE])
def test_an_output_that_is_not_finite_fails_only_its_own_caller(kind: int, world: World) -> None:
    left, bad, right = world.submit(Caller(world.rows(3)), Caller(world.rows(3, kind, at=1)), Caller(world.rows(2)))
    world.until_answered(left, bad, right)
    assert world.sizes() == [8]
    assert type(bad.error()) is NonFiniteOutput
    assert left.got_its_own_rows()
    assert right.got_its_own_rows()


def test_a_large_entry_with_an_output_that_is_not_finite_gets_one_error(world: World) -> None:
    large, small = world.submit(Caller(world.rows(40, NAN, at=10)), Caller(world.rows(2)))
    world.until_answered(large, small)
    assert type(large.error()) is NonFiniteOutput
    assert world.times_run(large) == 16
    assert small.got_its_own_rows()


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_finite_outputs_with_squares_too_large_for_float32_are_results(value: float, world: World) -> None:
    huge, bad, small = Caller(world.rows(2)), Caller(world.rows(1, NAN)), Caller(world.rows(2))
    huge.rows[:, 0] = value
    world.submit(huge, small)
    world.until_answered(huge, small)
    world.submit(again := Caller(huge.rows), bad)
    world.until_answered(again, bad)
    assert world.sizes() == [4, 3]
    assert all(caller.got_its_own_rows() for caller in (huge, again, small))
    assert type(bad.error()) is NonFiniteOutput


def test_a_callback_that_raises_does_not_affect_other_callers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def raises(_: Rows | RequestError) -> None:
        raise ValueError("an error of a callback")

    first = world.hold()
    left, right = world.arrive(1)[0], Caller(world.rows(1))
    world.on_loop(lambda: world.batcher.submit(world.rows(1), FAR, raises))
    world.on_loop(lambda: world.batcher.submit(world.rows(1), PAST, raises))
    world.submit(right)
    world.let_go()
    world.until_answered(first, left, right)
    assert left.got_its_own_rows()
    assert right.got_its_own_rows()
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == ["internal error"] * 2
    assert world.batcher.queued_rows == 0


@pytest.mark.parametrize("held", [True, False], ids=["during a run", "before a run"])
def test_a_callback_may_submit_another_entry(held: bool, world: World) -> None:
    first = world.hold() if held else None
    again, stays = Caller(world.rows(2)), Caller(world.rows(1))
    refused: list[Rows | RequestError] = []

    def retry(answer: Rows | RequestError) -> None:
        refused.append(answer)
        again.entry = world.batcher.submit(again.rows, FAR, again.answers.append)

    def act() -> None:
        world.batcher.submit(world.rows(3), PAST, retry)
        stays.entry = world.batcher.submit(stays.rows, FAR, stays.answers.append)

    world.on_loop(act)
    if held:
        world.pass_time(1)
        assert world.batcher.queued_rows == 3
        world.let_go()
    world.until_answered(*filter(None, [first]), again, stays)
    assert [type(answer) for answer in refused] == [DeadlinePassed]
    assert again.got_its_own_rows()
    assert stays.got_its_own_rows()
    assert world.batcher.queued_rows == 0


# --- admission -------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_with_the_seconds_to_wait(make: Callable[..., World]) -> None:
    world = make(max_queue=10)
    first = world.hold()
    waiting = world.arrive(4, 5)
    with pytest.raises(QueueFull) as refused:
        world.arrive(1)
    assert type(refused.value.retry_after) is int
    assert refused.value.retry_after >= 1
    assert world.batcher.queued_rows == 9
    world.let_go()
    world.until_answered(first, *waiting)
    (later,) = world.arrive(1)
    world.until_answered(later)
    assert later.got_its_own_rows()


def test_an_empty_queue_accepts_an_entry_larger_than_its_limit(make: Callable[..., World]) -> None:
    world = make(max_queue=10)
    (large,) = world.arrive(30)
    with pytest.raises(QueueFull):
        world.arrive(1)
    world.until_answered(large)
    assert large.got_its_own_rows()


def test_drain_refuses_new_entries_and_finishes_old_ones(world: World) -> None:
    first = world.hold()
    waiting = world.arrive(3, 20)
    world.on_loop(world.batcher.drain)
    with pytest.raises(Draining) as refused:
        world.arrive(1)
    assert refused.value.retry_after >= 1
    world.let_go()
    world.until_answered(first, *waiting)
    assert all(caller.got_its_own_rows() for caller in (first, *waiting))
    with pytest.raises(Draining):
        world.arrive(1)


def test_an_entry_runs_before_its_deadline_even_within_max_delay() -> None:
    async def use() -> np.ndarray:
        answer = asyncio.get_running_loop().create_future()
        batcher = Batcher(lambda rows: rows + 1, max_batch=8, max_queue=8, max_delay=PATIENCE)
        batcher.submit(np.zeros((1, 2), np.float32), time.monotonic() + 1, answer.set_result)
        return await asyncio.wait_for(answer, PATIENCE)

    assert asyncio.run(use()).tolist() == [[1, 1]]


def test_a_cancelled_entry_makes_room_in_the_queue_before_any_run() -> None:
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


def test_entries_of_high_priority_are_run_first(world: World) -> None:
    first = world.hold()
    normal = world.arrive(8, 8)
    high = [Caller(world.rows(8)) for _ in range(2)]
    for caller in high:
        world.on_loop(lambda each=caller: world.batcher.submit(each.rows, FAR, each.answers.append, high=True))
    world.let_go()
    world.until_answered(first, *normal, *high)
    assert [rows[0, 0] for rows in world.model.runs[-4:]] == [caller.rows[0, 0] for caller in (*high, *normal)]
    assert all(caller.got_its_own_rows() for caller in (*high, *normal))


def test_the_last_tenth_of_the_queue_is_for_high_priority(make: Callable[..., World]) -> None:
    world = make(max_queue=10)
    first = world.hold()
    normal = world.arrive(9)
    high = Caller(world.rows(1))
    with pytest.raises(QueueFull):
        world.arrive(1)
    world.on_loop(lambda: world.batcher.submit(high.rows, FAR, high.answers.append, high=True))
    world.let_go()
    world.until_answered(first, *normal, high)
    assert high.got_its_own_rows()


# --- all together ----------------------------------------------------------------------------------------------------


@dataclass
class Arrival:
    count: int
    kind: int
    at: int
    late: bool
    cancelled: bool


ARRIVALS = strategies.lists(
    strategies.builds(
        Arrival,
        count=strategies.one_of(strategies.integers(1, 4), strategies.integers(1, 30)),
        kind=strategies.sampled_from([*[FINE] * 8, NAN, INFINITE, RAISES, TOO_FEW, NO_ROWS]),
        at=strategies.integers(0, 29),
        late=strategies.sampled_from([False] * 4 + [True]),
        cancelled=strategies.sampled_from([False] * 6 + [True]),
    ),
    min_size=1,
    max_size=6,
)


@dataclass(eq=False)
class Waiting:
    """A caller, and the result that the test expects for it."""

    caller: Caller
    late: bool
    cancelled: bool = False
    taken: int = 0
    wanted: type[RequestError] | None = None  # the error that the caller must get, or None if it must get outputs
    over: bool = False  # if true, two outcomes are correct: the caller gets its result, or the caller is cancelled

    def end(self, wanted: type[RequestError] | None) -> None:
        if not self.over:
            self.over, self.wanted = True, wanted


class Batching(RuleBasedStateMachine):
    """Each caller that is not cancelled gets exactly one result, which belongs to its rows. The rows of a caller run in
    their order.

    After each rule, the test waits until every caller has a result, or until the gate holds a run.
    """

    @initialize(max_batch=strategies.integers(1, 9), max_queue=strategies.integers(1, 60))
    def begin(self, max_batch: int, max_queue: int) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self.world = World(max_batch=max_batch, max_queue=max_queue)
        self.callers: list[Waiting] = []
        self.queue: list[Waiting] = []
        self.in_run: list[tuple[Waiting, int]] = []  # a caller, and the index of the caller's first row in the run
        self.known_runs = self.known_ends = 0
        self.draining = False

    # The rules.

    @rule(arrivals=ARRIVALS)
    def arrive(self, arrivals: list[Arrival]) -> None:
        self.world.on_loop(lambda: [self._submit(arrival) for arrival in arrivals])
        self._settle()

    def _submit(self, arrival: Arrival) -> None:
        batcher = self.world.batcher
        caller = Caller(self.world.rows(arrival.count, arrival.kind, min(arrival.at, arrival.count - 1)))
        waits = batcher.queued_rows
        full = waits > 0 and waits + arrival.count > self.max_queue - self.max_queue // 10
        refusal = Draining if self.draining else QueueFull if full else None
        if refusal is not None:
            with pytest.raises(refusal) as refused:
                batcher.submit(caller.rows, FAR, caller.answers.append)
            assert refused.value.retry_after >= 1
            assert batcher.queued_rows == waits
            return
        caller.entry = batcher.submit(caller.rows, PAST if arrival.late else FAR, caller.answers.append)
        assert batcher.queued_rows == waits + arrival.count
        waiting = Waiting(caller, arrival.late)
        self.callers.append(waiting)
        self.queue.append(waiting)
        if arrival.cancelled:
            self._cancel(waiting)

    # The rules of this class have no preconditions. The speed of the machine decides whether the gate holds a run, so a
    # precondition could make the examples depend on this speed.

    @rule(number=strategies.integers(1, 12))
    def cancel(self, number: int) -> None:
        if self.callers:
            self._cancel(self.callers[-min(number, len(self.callers))])
            self._settle()

    def _cancel(self, waiting: Waiting) -> None:
        waiting.caller.cancel()
        if not waiting.caller.answers:  # cancelling has no effect after the result has arrived
            waiting.cancelled = waiting.over = True

    @rule()
    def hold_the_next_run_off_the_loop(self) -> None:
        if not self.world.model.held.is_set():
            self.world.model.gate.clear()

    @rule()
    def let_go(self) -> None:
        self.world.let_go()
        self._settle()

    @rule()
    def let_time_pass(self) -> None:
        self.world.pass_time(1)
        self._drop()
        self._check()

    @rule()
    def drain(self) -> None:
        if len(self.callers) > 20:
            self.world.on_loop(self.world.batcher.drain)
            self.draining = True

    # The required results.

    def _settle(self) -> None:
        model, batcher = self.world.model, self.world.batcher

        def at_rest() -> bool:
            held = model.held.is_set() and not model.gate.is_set()
            all_over = all(waiting.cancelled or waiting.caller.answers for waiting in self.callers)
            return held or (all_over and batcher.queued_rows == 0 and len(self.world.observed) == len(model.runs))

        self.world.until(at_rest)
        while self.known_runs < len(model.runs):
            self._one_run_ends()
            self._one_run_begins()
        if not model.held.is_set():
            self._one_run_ends()
            self._drop()
        self._check()

    def _one_run_begins(self) -> None:
        """Take entries in order while they fit into the run.

        If an entry is larger than a batch, take a piece of the entry. The rest of the large entry goes to the end of
        the queue.
        """
        rows: list[Rows] = []
        room = self.max_batch
        while self.queue and room:
            waiting = self.queue[0]
            if waiting.late:
                waiting.end(DeadlinePassed)
            if waiting.over:
                del self.queue[0]
                continue
            left = len(waiting.caller.rows) - waiting.taken
            if left > room and room < self.max_batch:
                break
            del self.queue[0]
            count = min(left, room)
            rows.append(waiting.caller.rows[waiting.taken : waiting.taken + count])
            self.in_run.append((waiting, waiting.taken))
            waiting.taken += count
            room -= count
            if count < left:
                self.queue.append(waiting)
        assert np.array_equal(self.world.model.runs[self.known_runs], np.concatenate(rows))
        self.known_runs += 1

    def _one_run_ends(self) -> None:
        if self.known_ends == self.known_runs:
            return
        count, seconds, waited = self.world.observed[self.known_ends]
        rows = self.world.model.runs[self.known_ends]
        assert count == len(rows) <= self.max_batch
        assert seconds >= 0
        assert len(waited) == sum(start == 0 for _, start in self.in_run)
        assert all(wait >= 0 for wait in waited)
        failed = bool({RAISES, TOO_FEW, NO_ROWS} & set(rows[:, 2]))
        for waiting, start in self.in_run:
            kinds = waiting.caller.rows[start : waiting.taken, 2]
            if failed:
                waiting.end(RuntimeFailure)
            elif {NAN, INFINITE} & set(kinds):
                waiting.end(NonFiniteOutput)
            elif waiting.taken == len(waiting.caller.rows):
                waiting.end(None)
        self.in_run.clear()
        self.known_ends += 1

    def _drop(self) -> None:
        for waiting in self.queue:
            if waiting.late:
                waiting.end(DeadlinePassed)
        self.queue = [waiting for waiting in self.queue if not waiting.over]

    def _check(self) -> None:
        for waiting in self.callers:
            if waiting.cancelled or not waiting.over:
                assert not waiting.caller.answers
            elif waiting.wanted is None:
                assert waiting.caller.got_its_own_rows()
            else:
                assert type(waiting.caller.error()) is waiting.wanted
        assert self.world.batcher.queued_rows == sum(
            len(each.caller.rows) - each.taken for each in self.queue if not each.over
        )
        if not self.world.model.held.is_set():
            assert not self.queue
            assert all(waiting.over for waiting in self.callers)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.let_go()
            self._settle()
            self.world.close()


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
