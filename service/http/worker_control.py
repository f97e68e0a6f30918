"""Controls the models of one worker: carries out the changes that the supervisor asks for.

A thread reads the supervisor's messages as long as the worker runs. If the supervisor dies, the thread stops the
worker, because no other process would stop it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from foldserve.service.http.line import Line
from foldserve.service.live.command import Command, CommandOutcome
from foldserve.service.live.control import Member
from foldserve.service.live.plan import Attempts, Outcome, Outcomes, Plan

log = logging.getLogger("foldserve")


class WorkerControl:
    """Carries out the supervisor's changes in one worker. line: the worker's end of the message line."""

    _member: Member  # set by `start`

    def __init__(self, line: Line) -> None:
        self._line = line
        self._changes: queue.SimpleQueue[tuple[str, str, int] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        # The keys are the numbers of the messages that the supervisor has not answered yet; the values wait for the
        # answers.
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answer: Callable[[str], str] = str
        self._loop: asyncio.AbstractEventLoop | None = None
        self._follows = False
        threading.Thread(target=self._receive, name="line", daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                kind, text, number = self._line.receive()
                if kind == "executed":
                    self._deliver(number, CommandOutcome.model_validate_json(text))
                elif kind == "answers":
                    self._deliver(number, json.loads(text))
                elif kind == "question":
                    self._answer_soon(text, number)
                else:
                    self._changes.put((kind, text, number))
        except (EOFError, OSError):
            if not self._follows:
                os._exit(0)  # the worker has no clients yet, and a normal exit would print warnings
            os.kill(os.getpid(), signal.SIGTERM)

    def start(self, member: Member) -> None:
        """Carry out changes until a plan is committed. Raises the errors of `Member`."""
        self._member = member
        while (change := self._changes.get()) is not None:
            self._carry_out(*change)
            if change[0] == "commit":
                return

    def follow(self) -> None:
        """From now on, carry out all changes on a thread. Call this method only on the event loop."""
        self._follows = True
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._follow, name="models", daemon=True).start()

    def _follow(self) -> None:
        while (change := self._changes.get()) is not None:
            try:
                self._carry_out(*change)
            except Exception:  # the worker must continue with its current models
                log.exception("internal error while the models change")
                kind, text, number = change
                attempts = Attempts.model_validate_json(text).attempts if kind == "prepare" else ()
                refused = Outcomes(outcomes=tuple(Outcome(reason="internal error", final=True) for _ in attempts))
                self._line.send("failed", refused.model_dump_json(), number)

    def _carry_out(self, kind: str, text: str, number: int) -> None:
        if kind == "prepare":
            outcomes = self._member.prepare(Attempts.model_validate_json(text))
            self._line.send("prepared", outcomes.model_dump_json(), number)
        else:
            self._member.commit(Plan.model_validate_json(text))
            self._line.send("committed", "", number)

    def stop(self) -> None:
        """Carry out no more changes after the current change."""
        self._changes.put(None)

    def join(self) -> None:
        """Do nothing, because the supervisor kills a worker that does not end."""

    async def execute(self, command: Command) -> None:
        """Ask the supervisor to execute a command. Raises `RequestError`."""
        outcome: CommandOutcome = await self._request("execute", command.model_dump_json())
        outcome.raise_error()

    def answer_with(self, answer: Callable[[str], str]) -> None:
        """Answer the questions of all workers with the function `answer`.

        `answer` is called on the event loop in which `follow` was called.
        """
        self._answer = answer

    async def ask(self, question: str) -> Sequence[str]:
        """Return the answers of all workers that are ready, including this worker."""
        answers: list[str] = await self._request("ask", question)
        return answers

    def _answer_soon(self, question: str, number: int) -> None:
        def answer() -> None:
            try:
                self._line.send("answer", self._answer(question), number)
            except Exception:  # only logged, because the worker that asked waits for answers only some seconds
                log.exception("internal error")

        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed, because the worker stops
                self._loop.call_soon_threadsafe(answer)

    async def _request(self, kind: str, text: str) -> Any:
        """Send a message to the supervisor, and return the supervisor's reply."""
        number = next(self._numbers)
        reply = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        try:
            self._line.send(kind, text, number)
            return await reply
        finally:
            del self._waiting[number]

    def _deliver(self, number: int, reply: Any) -> None:
        def resolve(waiting: asyncio.Future[Any]) -> None:
            if not waiting.done():
                waiting.set_result(reply)

        if (found := self._waiting.get(number)) is not None:
            found.get_loop().call_soon_threadsafe(resolve, found)
