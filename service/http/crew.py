"""Lets the coordinator change the models in all workers.

Every worker first prepares a change; after that, every worker commits the change. This module sends messages to the
workers through `line.py`, and does not depend on processes.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Sequence

from foldserve.service.http.line import Line
from foldserve.service.live.plan import Attempts, Outcomes, Plan


class Member:
    """One worker.

    replies: the worker's messages `prepared` and `committed`; None means that the worker is dead. follows: whether the
    worker serves a plan. After the first plan is committed, changes wait only for the workers that already serve a
    plan. A new worker gets the latest plan when it starts.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.replies: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self.follows = False

    def wait_for(self, number: int) -> str | None:
        """Wait for the reply with the number `number`, and return the reply, or None if the worker has died."""
        while (reply := self.replies.get()) is not None:
            if reply[1] == number:
                return reply[0]
        self.replies.put(None)  # makes the next call of this method return None too
        return None


class WorkerCrew:
    """All workers. Any thread may call `add` and `remove`.

    Only the coordinator's thread may call `prepare` and `commit`. before_first: a function that is called before the
    first plan is served.
    """

    def __init__(self, before_first: Callable[[], object]) -> None:
        self._before_first = before_first
        self._members: list[Member] = []
        self._plan: Plan | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, member: Member) -> None:
        """Add a worker that was just started. If a plan was already committed, send the latest plan to the worker."""
        with self._lock:
            self._members.append(member)
            if self._plan is not None:
                member.line.send("commit", self._plan.model_dump_json(), next(self._numbers))

    def remove(self, member: Member) -> None:
        """Remove a worker that has died."""
        with self._lock:
            self._members.remove(member)
        member.replies.put(None)

    def prepare(self, attempts: Attempts) -> Sequence[Outcomes]:
        """Make every worker load versions and compare them.

        Returns the outcomes of all workers that are still alive at the end.
        """
        with self._lock:
            members = [member for member in self._members if member.follows or self._plan is None]
            number = self._send(members, "prepare", attempts.model_dump_json())
        replies = [reply for member in members if (reply := member.wait_for(number)) is not None]
        return [Outcomes.model_validate_json(reply) for reply in replies]

    def commit(self, plan: Plan) -> None:
        """Make every worker serve a plan. This method returns when all workers serve the plan."""
        if self._plan is None:
            self._before_first()
        with self._lock:
            members = [member for member in self._members if member.follows or self._plan is None]
            self._plan = plan
            number = self._send(self._members, "commit", plan.model_dump_json())
        for member in members:
            member.wait_for(number)

    def _send(self, members: Iterable[Member], kind: str, text: str) -> int:
        number = next(self._numbers)
        for member in members:
            member.line.send(kind, text, number)
        return number
