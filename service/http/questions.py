"""Passes a question of one worker to all workers. When all workers have answered, returns the answers to this worker.

Only the supervisor's thread that receives messages calls the methods of `Questions`. This module uses the message line
to each worker. This module does not depend on processes.
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

    asker: the worker that asks. number: the number of the message with the question. missing: the workers that have not
    answered yet.
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
        """Ask all workers. asker: the worker that asks. number: the number of the message with the question."""
        own = next(self._numbers)
        self._waiting[own] = _Question(asker, number, list(workers))
        for line in self._waiting[own].missing:
            line.send("question", text, own)
        self._finish(own)

    def take(self, text: str, number: int, worker: Line) -> None:
        """Store the answer of a worker."""
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
