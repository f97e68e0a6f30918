"""The link between a serving process and the coordinator of its models, which may be in another process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from foldserve.service.live.command import Command
from foldserve.service.live.coordinator import Coordinator, Crew
from foldserve.service.live.plan import Attempts, Outcomes, Plan

_JOIN_SECONDS = 5.0


class Member(Protocol):
    """The models of this process."""

    def prepare(self, attempts: Attempts) -> Outcomes:
        """Load versions without serving them."""

    def commit(self, plan: Plan) -> None:
        """Serve a plan."""


class Control(Protocol):
    """Starts the models of a process, and changes them while the process runs."""

    def start(self, member: Member) -> None:
        """Load the models. Raises `StartError` and `DeviceError`."""

    def follow(self) -> None:
        """Allow changes of the models from now on."""

    def stop(self) -> None:
        """Refuse all later changes of the models."""

    def join(self) -> None:
        """If a change has begun, wait for its end, but at most a few seconds. Call `join` after `stop`."""

    async def execute(self, command: Command) -> None:
        """Execute a command of an operator. Raises `RequestError`."""

    def answer_with(self, answer: Callable[[str], str]) -> None:
        """Use `answer` to answer the questions of all processes.

        `answer` runs on the event loop that called `follow`.
        """

    async def ask(self, question: str) -> Sequence[str]:
        """Return the answers of all processes that serve, including this process."""


class _Alone:
    """A crew with one member: the only process of a server."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def prepare(self, attempts: Attempts) -> Sequence[Outcomes]:
        return [self._member.prepare(attempts)]

    def commit(self, plan: Plan) -> None:
        self._member.commit(plan)


class LocalControl:
    """The control of a server with one process. The coordinator runs on a thread of this process."""

    def __init__(self, create_coordinator: Callable[[Crew], Coordinator]) -> None:
        self._create_coordinator = create_coordinator
        self._coordinator: Coordinator | None = None
        self._thread: threading.Thread | None = None
        self._answer: Callable[[str], str] = str

    def start(self, member: Member) -> None:
        """Load the models. Raises `StartError` and `DeviceError`."""
        self._coordinator = self._create_coordinator(_Alone(member))
        self._coordinator.start()

    def follow(self) -> None:
        """Allow changes of the models from now on."""
        if self._coordinator is not None:
            self._thread = threading.Thread(target=self._coordinator.run, name="models", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Refuse all later changes of the models."""
        if self._coordinator is not None:
            self._coordinator.stop()

    def join(self) -> None:
        """If a change has begun, wait for its end, but at most a few seconds. Call `join` after `stop`."""
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    async def execute(self, command: Command) -> None:
        """Execute a command of an operator. Raises `RequestError`."""
        if self._coordinator is not None:
            # A change that has begun continues even if its client disconnects.
            await asyncio.shield(asyncio.wrap_future(self._coordinator.submit(command)))

    def answer_with(self, answer: Callable[[str], str]) -> None:
        """Use the function `answer` to answer the questions that this process receives."""
        self._answer = answer

    async def ask(self, question: str) -> Sequence[str]:
        """Return the answer of this process. This server has no other process."""
        return [self._answer(question)]
