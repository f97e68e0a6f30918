"""Passes a worker's question to all workers, and returns all answers to the worker that asked.

Only the supervisor's thread that receives messages calls the methods of `Questions`. This module sends messages to the
workers through `line.py`, and does not depend on processes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from foldserve.service.http.line import Line


@dataclass
class _Question:
    """A question that at least one worker has not answered yet.

    asker: the worker that asked the question. number: the number of the asker's message; the message that returns the
    answers has the same number. missing: the workers that have not answered yet.
    """

    asker: Line
    number: int
    missing: list[Line]
    answers: list[str] = field(default_factory=list)


class Questions:
    """All questions that wait for answers."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Question] = {}
        self._numbers = itertools.count(1)

    def ask(self, text: str, asker: Line, number: int, workers: Iterable[Line]) -> None:
        """Send a question to all workers. asker: the worker that asks. number: the number of the asker's message."""
        own = next(self._numbers)
        self._waiting[own] = _Question(asker, number, list(workers))
        for line in self._waiting[own].missing:
            line.send("question", text, own)
        self._finish(own)

    def take(self, text: str, number: int, worker: Line) -> None:
        """Store a worker's answer to a question."""
        if (question := self._waiting.get(number)) is not None and worker in question.missing:
            question.missing.remove(worker)
            question.answers.append(text)
            self._finish(number)

    def remove(self, worker: Line) -> None:
        """Stop waiting for the answers of a dead worker, and drop the questions that the dead worker has asked."""
        for number, question in list(self._waiting.items()):
            if question.asker is worker:
                del self._waiting[number]
            elif worker in question.missing:
                question.missing.remove(worker)
                self._finish(number)

    def _finish(self, number: int) -> None:
        """If all workers have answered, send the answers to the worker that asked."""
        if not self._waiting[number].missing:
            question = self._waiting.pop(number)
            question.asker.send("answers", json.dumps(question.answers), question.number)
