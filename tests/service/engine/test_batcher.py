"""Admission, coalescing, deadlines, scatter, drain: of a model made by hand, on an event loop whose clock is ours."""

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
from foldserve.service.engine.batcher import Batcher, Entry
from foldserve.service.errors import DeadlinePassed, Draining, NonFiniteOutput, QueueFull, RequestError, RuntimeFailure
from tests.service.support import PATIENCE

T = TypeVar("T")

FAR = math.inf
PAST = -math.inf

# What a row may do to the run that it is in: its last column.
FINE, NAN, INFINITE, RAISES, TOO_FEW, NO_ROWS = range(6)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers follow `now`, which the test moves."""

    now = 0.0

    def time(self) -> float:
        return self.now


class Model:
    """float32 [n, 3] -> [n, 2], each row by itself. Off the event loop its runs wait while the gate is closed."""

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

    def leave(self) -> None:
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
    """One batcher, one model and their event loop."""

    def __init__(self, *, max_batch: int = 8, max_queue: int = 100, max_delay: float = 0.0) -> None:
        self.loop = Loop()
        self.model = Model()
        self.observed: list[tuple[int, float, list[float]]] = []
        self.batcher = Batcher(
            self.model,
            max_batch=max_batch,
            max_queue=max_queue,
            max_delay=max_delay,
            observe=lambda *seen: self.observed.append(seen),
        )
        self._made = 0

    def close(self) -> None:
        self.model.gate.set()
        self.until(lambda: len(self.observed) == len(self.model.runs))
        self.loop.close()

    def rows(self, count: int, kind: int = FINE, at: int = 0) -> Rows:
        """Rows that no other caller has, one of them of another kind."""
        self._made += 1
        rows = np.zeros((count, 3), np.float32)
        rows[:, 0] = self._made
        rows[:, 1] = np.arange(count)
        rows[at, 2] = kind
        return rows

    def submit(self, *callers: Caller, deadline: float = FAR, leaves: bool = False) -> tuple[Caller, ...]:
        """All in one turn of the loop, which then turns no further than it must."""

        def act() -> None:
            for caller in callers:
                caller.entry = self.batcher.submit(caller.rows, deadline, caller.answers.append)
                if leaves:
                    caller.leave()

        self.on_loop(act)
        return callers

    def arrive(self, *counts: int, deadline: float = FAR) -> tuple[Caller, ...]:
        return self.submit(*(Caller(self.rows(count)) for count in counts), deadline=deadline)

    def on_loop(self, act: Callable[[], T]) -> T:
        async def run() -> T:
            return act()

        return self.loop.run_until_complete(run())

    def turn(self) -> None:
        """Let all happen that happens without a thread and without time going by."""
        for _ in range(10):
            self.on_loop(lambda: None)

    def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until it is so."""

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
        """A caller whose run is under way, off the loop, until `let_go`."""
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
        """How many rows each run had."""
        return [len(rows) for rows in self.model.runs]

    def times_run(self, caller: Caller) -> int:
        """How many of the caller's rows have been run."""
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


def test_a_caller_gets_what_the_model_gives_for_its_rows(world: World) -> None:
    (caller,) = world.arrive(3)
    assert not caller.answers  # later, never from within submit
    world.until_answered(caller)
    assert caller.got_its_own_rows()
    assert world.batcher.queued_rows == 0


def test_what_one_turn_of_the_loop_delivers_is_one_run(world: World) -> None:
    callers = world.arrive(1, 2, 1, 3)
    world.until_answered(*callers)
    assert world.sizes() == [7]
    assert all(caller.got_its_own_rows() for caller in callers)


def test_what_arrives_during_a_run_is_coalesced_in_order_of_arrival(world: World) -> None:
    first = world.hold()
    callers = [caller for count in (3, 2, 4, 1) for caller in world.arrive(count)]
    assert world.batcher.queued_rows == 10
    world.let_go()
    world.until_answered(first, *callers)
    assert world.sizes() == [1, 5, 5]  # 4 more don't fit into 8, and 1 doesn't overtake them
    assert [*world.model.runs[1][:, 0], *world.model.runs[2][:, 0]] == sorted(
        row for caller in callers for row in caller.rows[:, 0]
    )
    assert all(caller.got_its_own_rows() for caller in callers)


def test_a_run_that_is_known_to_be_quick_happens_on_the_loop_and_an_unknown_one_does_not(world: World) -> None:
    # A machine that is interrupted for long may measure a few quick runs as long ones.
    for attempt in range(1000):
        (caller,) = world.arrive(2)
        if attempt:
            world.turn()
        if caller.answers:
            break
        world.until_answered(caller)
    assert world.model.inline == [False] * attempt + [True]
    # Of another size nothing is known yet.
    world.until_answered(*world.arrive(7))
    assert not world.model.inline[-1]


def test_a_run_that_is_known_to_be_long_leaves_the_loop_to_others(world: World) -> None:
    for _ in range(3):
        caller = world.hold()
        world.turn()  # it turns
        assert not caller.answers
        held = time.monotonic()
        world.until(lambda held=held: time.monotonic() > held + 0.002)
        world.let_go()
        world.until_answered(caller)
    assert world.model.inline == [False] * 3


def test_an_entry_larger_than_a_batch_is_split_and_has_one_answer(world: World) -> None:
    (caller,) = world.arrive(29)
    world.until_answered(caller)
    assert world.sizes() == [8, 8, 8, 5]
    assert caller.got_its_own_rows()


def test_small_entries_get_in_between_the_pieces_of_a_large_one(world: World) -> None:
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


def test_the_observer_is_told_of_each_run_and_of_the_wait_of_each_entry_that_starts_in_it(world: World) -> None:
    began = time.monotonic()
    first = world.hold()
    callers = world.arrive(20, 6)
    world.let_go()
    world.until_answered(first, *callers)
    took = time.monotonic() - began
    assert [(rows, len(waited)) for rows, _, waited in world.observed] == [(1, 1), (8, 1), (6, 1), (8, 0), (4, 0)]
    assert all(0 <= seconds <= took for _, seconds, _ in world.observed)
    assert all(0 <= wait <= took for _, _, waited in world.observed for wait in waited)


def test_a_batcher_without_an_observer_answers_too(world: World) -> None:
    world.batcher = Batcher(Model.of, max_batch=8, max_queue=100)
    callers = world.arrive(3, 20)
    world.until_answered(*callers)
    assert all(caller.got_its_own_rows() for caller in callers)


# --- max_delay -------------------------------------------------------------------------------------------------------


def test_the_first_of_the_waiting_waits_max_delay_and_no_longer(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    (first,) = world.arrive(1)
    world.pass_time(4.9)
    (second,) = world.arrive(1)  # starts no wait of its own
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


def test_after_a_run_nobody_waits_for_max_delay_again(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    world.model.gate.clear()
    (first,) = world.arrive(1)
    world.loop.now += 6
    world.until(world.model.held.is_set)
    (second,) = world.arrive(1)
    world.let_go()
    world.until_answered(first, second)
    assert world.loop.now == 6


def test_drain_ends_the_wait_for_company_that_will_not_come(make: Callable[..., World]) -> None:
    world = make(max_delay=5.0)
    (caller,) = world.arrive(1)
    world.on_loop(world.batcher.drain)
    world.until_answered(caller)
    assert caller.got_its_own_rows()
    assert world.loop.now == 0


# --- who leaves, who comes too late ----------------------------------------------------------------------------------


def test_a_caller_that_leaves_while_queued_is_not_computed(world: World) -> None:
    first = world.hold()
    gone, stays = world.arrive(2) + world.arrive(3)
    gone.leave()
    world.let_go()
    world.until_answered(first, stays)
    assert not gone.answers
    assert world.times_run(gone) == 0
    assert stays.got_its_own_rows()
    assert world.batcher.queued_rows == 0


def test_a_caller_that_leaves_in_the_turn_that_it_came_is_not_computed(world: World) -> None:
    world.submit(Caller(world.rows(2)), leaves=True)
    world.turn()
    assert not world.model.runs
    assert world.batcher.queued_rows == 0


def test_a_caller_that_leaves_during_its_run_leaves_its_neighbours_their_answers(world: World) -> None:
    world.model.gate.clear()
    left, gone, right = world.arrive(2, 1, 3)
    world.until(world.model.held.is_set)
    gone.leave()
    world.let_go()
    world.until_answered(left, right)
    assert world.sizes() == [6]
    assert not gone.answers
    assert left.got_its_own_rows()
    assert right.got_its_own_rows()


def test_a_large_entry_whose_caller_leaves_is_run_no_further(world: World) -> None:
    world.model.gate.clear()
    (large,) = world.arrive(20)
    world.until(world.model.held.is_set)
    (small,) = world.arrive(1)
    large.leave()
    world.let_go()
    world.until_answered(small)
    assert world.times_run(large) == 8
    assert not large.answers
    assert world.batcher.queued_rows == 0


def test_to_leave_after_the_answer_does_nothing(world: World) -> None:
    (caller,) = world.arrive(2)
    world.until_answered(caller)
    caller.leave()
    world.turn()
    assert caller.got_its_own_rows()


def test_a_deadline_that_has_passed_is_an_answer_and_no_run(world: World) -> None:
    for late in (time.monotonic(), time.monotonic() - 1, PAST):
        (caller,) = world.arrive(2, deadline=late)
        world.until_answered(caller)
        assert isinstance(caller.error(), DeadlinePassed)
    assert not world.model.runs
    assert world.batcher.queued_rows == 0


def test_a_deadline_that_passes_in_the_queue_is_told_while_a_long_run_is_still_under_way(world: World) -> None:
    first = world.hold()
    late, gone, stays = world.arrive(2, deadline=time.monotonic() + 0.01) + world.arrive(3) + world.arrive(1)
    gone.leave()

    def answered() -> bool:
        world.loop.now += 0.01
        return bool(late.answers)

    world.until(answered)
    assert isinstance(late.error(), DeadlinePassed)
    assert world.model.held.is_set()
    assert not first.answers
    assert world.batcher.queued_rows == 1  # who left has made room too
    world.let_go()
    world.until_answered(first, stays)
    assert stays.got_its_own_rows()
    assert world.times_run(late) == world.times_run(gone) == 0


def test_a_large_entry_whose_deadline_passes_is_run_no_further(world: World) -> None:
    world.model.gate.clear()
    # On a machine so slow that none of it is run in time, the answer is the same.
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


def test_the_wall_clock_may_jump(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RAISES, TOO_FEW, NO_ROWS])
def test_a_run_that_fails_is_the_failure_of_its_batch_and_of_no_other(kind: int, world: World) -> None:
    callers = world.submit(*(Caller(world.rows(2, kind if number == 1 else FINE)) for number in range(3)))
    world.until_answered(*callers)
    assert world.sizes() == [6]
    found = [caller.error() for caller in callers]
    assert {type(error) for error in found} == {RuntimeFailure}
    assert len(set(map(id, found))) == len(found)  # each may be raised elsewhere
    assert all(isinstance(error.__cause__, ValueError | TypeError) for error in found)
    (following,) = world.arrive(2)
    world.until_answered(following)
    assert following.got_its_own_rows()


def test_a_large_entry_one_of_whose_runs_fails_is_run_no_further(world: World) -> None:
    (large,) = world.submit(Caller(world.rows(40, RAISES, at=10)))
    world.until_answered(large)
    assert type(large.error()) is RuntimeFailure
    assert world.sizes() == [8, 8]
    assert world.batcher.queued_rows == 0


@pytest.mark.parametrize("kind", [NAN, INFINITE])
def test_a_value_that_is_not_finite_is_the_failure_of_its_caller_alone(kind: int, world: World) -> None:
    left, bad, right = world.submit(Caller(world.rows(3)), Caller(world.rows(3, kind, at=1)), Caller(world.rows(2)))
    world.until_answered(left, bad, right)
    assert world.sizes() == [8]
    assert type(bad.error()) is NonFiniteOutput
    assert left.got_its_own_rows()
    assert right.got_its_own_rows()


def test_a_large_entry_with_a_value_that_is_not_finite_has_one_answer(world: World) -> None:
    large, small = world.submit(Caller(world.rows(40, NAN, at=10)), Caller(world.rows(2)))
    world.until_answered(large, small)
    assert type(large.error()) is NonFiniteOutput
    assert world.times_run(large) == 16
    assert small.got_its_own_rows()


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_finite_values_whose_squares_are_too_large_for_float32_are_answers(value: float, world: World) -> None:
    huge, bad, small = Caller(world.rows(2)), Caller(world.rows(1, NAN)), Caller(world.rows(2))
    huge.rows[:, 0] = value
    world.submit(huge, small)
    world.until_answered(huge, small)
    world.submit(anew := Caller(huge.rows), bad)
    world.until_answered(anew, bad)
    assert world.sizes() == [4, 3]
    assert all(caller.got_its_own_rows() for caller in (huge, anew, small))
    assert type(bad.error()) is NonFiniteOutput


def test_a_callback_that_raises_strands_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def raises(_: Rows | RequestError) -> None:
        raise ValueError("a callback's own failure")

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


@pytest.mark.parametrize("held", [True, False], ids=["in a sweep", "in a take"])
def test_a_callback_may_submit_anew(held: bool, world: World) -> None:
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


def test_a_full_queue_is_told_at_once_with_the_seconds_until_it_may_not_be(make: Callable[..., World]) -> None:
    world = make(max_queue=10)
    first = world.hold()
    waiting = world.arrive(4, 6)
    with pytest.raises(QueueFull) as refused:
        world.arrive(1)
    assert type(refused.value.retry_after) is int
    assert refused.value.retry_after >= 1
    assert world.batcher.queued_rows == 10
    world.let_go()
    world.until_answered(first, *waiting)
    (later,) = world.arrive(1)
    world.until_answered(later)
    assert later.got_its_own_rows()


def test_an_entry_larger_than_the_queue_is_taken_when_nobody_waits(make: Callable[..., World]) -> None:
    world = make(max_queue=10)
    (large,) = world.arrive(30)
    with pytest.raises(QueueFull):
        world.arrive(1)
    world.until_answered(large)
    assert large.got_its_own_rows()


def test_drain_refuses_what_is_new_and_finishes_what_is_old(world: World) -> None:
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


# --- all of it together ----------------------------------------------------------------------------------------------


@dataclass
class Arrival:
    count: int
    kind: int
    at: int
    late: bool
    leaves: bool


ARRIVALS = strategies.lists(
    strategies.builds(
        Arrival,
        count=strategies.one_of(strategies.integers(1, 4), strategies.integers(1, 30)),
        kind=strategies.sampled_from([*[FINE] * 8, NAN, INFINITE, RAISES, TOO_FEW, NO_ROWS]),
        at=strategies.integers(0, 29),
        late=strategies.sampled_from([False] * 4 + [True]),
        leaves=strategies.sampled_from([False] * 6 + [True]),
    ),
    min_size=1,
    max_size=6,
)


@dataclass(eq=False)
class Waiting:
    """A caller as the rules say that it must fare."""

    caller: Caller
    late: bool
    gone: bool = False
    taken: int = 0
    wanted: type[RequestError] | None = None  # None: its own rows
    over: bool = False  # its answer is due

    def end(self, wanted: type[RequestError] | None) -> None:
        if not self.over:
            self.over, self.wanted = True, wanted


class Batching(RuleBasedStateMachine):
    """Whatever comes, whoever leaves and whatever fails: who stays has one answer, its own, and rows are run in order.

    After each rule the world stands still: all is answered, or one run is held at the gate.
    """

    @initialize(max_batch=strategies.integers(1, 9), max_queue=strategies.integers(1, 60))
    def begin(self, max_batch: int, max_queue: int) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self.world = World(max_batch=max_batch, max_queue=max_queue)
        self.everybody: list[Waiting] = []
        self.queue: list[Waiting] = []
        self.under_way: list[tuple[Waiting, int]] = []  # with the first of its rows in the run
        self.known_runs = self.known_ends = 0
        self.draining = False

    # What happens.

    @rule(arrivals=ARRIVALS)
    def arrive(self, arrivals: list[Arrival]) -> None:
        self.world.on_loop(lambda: [self._submit(arrival) for arrival in arrivals])
        self._stand_still()

    def _submit(self, arrival: Arrival) -> None:
        batcher = self.world.batcher
        caller = Caller(self.world.rows(arrival.count, arrival.kind, min(arrival.at, arrival.count - 1)))
        waits = batcher.queued_rows
        full = waits > 0 and waits + arrival.count > self.max_queue
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
        self.everybody.append(waiting)
        self.queue.append(waiting)
        if arrival.leaves:
            self._leave(waiting)

    # No rule has a precondition: whether a run is held depends on the machine, and what is drawn must not.

    @rule(number=strategies.integers(1, 12))
    def leave(self, number: int) -> None:
        if self.everybody:
            self._leave(self.everybody[-min(number, len(self.everybody))])
            self._stand_still()

    def _leave(self, waiting: Waiting) -> None:
        waiting.caller.leave()
        if not waiting.caller.answers:  # else it does nothing
            waiting.gone = waiting.over = True

    @rule()
    def hold_the_next_run_off_the_loop(self) -> None:
        if not self.world.model.held.is_set():
            self.world.model.gate.clear()

    @rule()
    def let_go(self) -> None:
        self.world.let_go()
        self._stand_still()

    @rule()
    def let_time_pass(self) -> None:
        self.world.pass_time(1)
        self._drop()
        self._check()

    @rule()
    def drain(self) -> None:
        if len(self.everybody) > 20:
            self.world.on_loop(self.world.batcher.drain)
            self.draining = True

    # What must come of it.

    def _stand_still(self) -> None:
        model, batcher = self.world.model, self.world.batcher

        def still() -> bool:
            held = model.held.is_set() and not model.gate.is_set()
            all_over = all(waiting.gone or waiting.caller.answers for waiting in self.everybody)
            return held or (all_over and batcher.queued_rows == 0 and len(self.world.observed) == len(model.runs))

        self.world.until(still)
        while self.known_runs < len(model.runs):
            self._one_run_ends()
            self._one_run_begins()
        if not model.held.is_set():
            self._one_run_ends()
            self._drop()
        self._check()

    def _one_run_begins(self) -> None:
        """In order of arrival, as many as fit; of what is too large for any batch a piece, and the rest goes last."""
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
            self.under_way.append((waiting, waiting.taken))
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
        assert len(waited) == sum(start == 0 for _, start in self.under_way)
        assert all(wait >= 0 for wait in waited)
        failed = bool({RAISES, TOO_FEW, NO_ROWS} & set(rows[:, 2]))
        for waiting, start in self.under_way:
            kinds = waiting.caller.rows[start : waiting.taken, 2]
            if failed:
                waiting.end(RuntimeFailure)
            elif {NAN, INFINITE} & set(kinds):
                waiting.end(NonFiniteOutput)
            elif waiting.taken == len(waiting.caller.rows):
                waiting.end(None)
        self.under_way.clear()
        self.known_ends += 1

    def _drop(self) -> None:
        for waiting in self.queue:
            if waiting.late:
                waiting.end(DeadlinePassed)
        self.queue = [waiting for waiting in self.queue if not waiting.over]

    def _check(self) -> None:
        for waiting in self.everybody:
            if waiting.gone or not waiting.over:
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
            assert all(waiting.over for waiting in self.everybody)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.let_go()
            self._stand_still()
            self.world.close()


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
