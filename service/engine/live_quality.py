"""Measures the drift and the quality of the models over all processes.

Each process counts only the requests that it answers itself. This module asks every process for its counts, and joins
the answers. This module does not depend on HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, TypeAdapter

from foldserve.service.engine.repository import Model, Repository
from foldserve.service.errors import DeadlinePassed, ModelNotReady, UnknownModel
from foldserve.service.live.control import Control
from foldserve.service.metrics import Figure, Metrics
from foldserve.service.quality.document import Drift, describe
from foldserve.service.quality.feedback import Entry, FeedbackAnswer, Outcome, join_outcomes, read_feedback
from foldserve.service.quality.figures import figures_of
from foldserve.service.quality.monitor import Snapshot

log = logging.getLogger("foldserve")

_PATIENCE = 5.0  # the process waits this number of seconds for the answers of all processes
# A request may have at most this number of labels. If the server remembers more rows of a version than that, the number
# of remembered rows is the limit.
_MAX_LABELS = 10_000


class Question(BaseModel):
    """A question that is sent to every process.

    A `snapshots` question asks for the snapshots of all models, or of the model `name`. A `label` question asks each
    process to count the labels of `entries`. A `reset` question asks each process to start new windows for the model.
    """

    kind: Literal["snapshots", "label", "reset"]
    name: str | None = None
    entries: list[Entry] = []


class _Snapshots(BaseModel):
    by_key: dict[str, Snapshot]


_OUTCOMES = TypeAdapter(list[Outcome])


class LiveQuality:
    """The drift and the quality of all models. Call all methods on the same event loop."""

    def __init__(self, repository: Repository, control: Control, metrics: Metrics) -> None:
        self._repository = repository
        self._control = control
        self._metrics = metrics
        control.answer_with(self._answer)
        metrics.for_quality(self._own_figures)

    def tick(self) -> None:
        """Do the work that is due once a second."""
        for model in self._repository.running_models():
            model.monitor.tick()

    async def drift(self, name: str, version: int | str | None = None) -> Drift:
        """Return the drift of one version. Raises the errors of `Repository.find`, and `DeadlinePassed`."""
        model = self._repository.find(name, version)
        answers = await self._ask(Question(kind="snapshots", name=name))
        return describe(model.monitor, _snapshots(answers).get(_key(model), ()))

    async def label(self, name: str, body: bytes | bytearray) -> FeedbackAnswer:
        """Count labels. body: the body of the request.

        Raises `UnknownModel`, `InvalidInput` and `DeadlinePassed`. Raises `ModelNotReady` if no version is loaded.
        """
        if not (models := self._models(name)):
            raise ModelNotReady("the model is not ready")
        max_labels = max(model.monitor.options.remembered for model in models)
        entries = read_feedback(body, [model.manifest for model in models], max(_MAX_LABELS, max_labels))
        answers = await self._ask(Question(kind="label", name=name, entries=entries))
        answer = join_outcomes([_OUTCOMES.validate_json(each) for each in answers])
        self._metrics.count_feedback(
            name,
            {
                "counted": len(entries) - answer.unknown.count - answer.mismatched.count - answer.repeated.count,
                "unknown": answer.unknown.count,
                "mismatched": answer.mismatched.count,
                "repeated": answer.repeated.count,
            },
        )
        return answer

    async def reset(self, name: str) -> None:
        """Start new windows for all versions of a model. Raises `UnknownModel` and `DeadlinePassed`."""
        self._repository.model(name)
        await self._ask(Question(kind="reset", name=name))

    async def refresh_metrics(self) -> None:
        """Set the metrics of drift and quality.

        If a process does not answer in time, the metrics of drift and quality are left out.
        """
        figures: list[Figure] = []
        try:
            answers = await self._ask(Question(kind="snapshots"))
        except DeadlinePassed as error:
            log.error("the metrics of drift and quality are left out: %s", error)
        else:
            # For a thousand models, computing the figures takes seconds, so a thread computes them while the event loop
            # answers requests.
            figures = await asyncio.to_thread(_figures, list(self._repository.ready_models()), answers)
        self._metrics.set_figures(figures)

    def _own_figures(self) -> list[Figure]:
        """Return the figures of only this process. Any thread may call this method."""
        models = list(self._repository.ready_models())
        return [
            figure for model in models for figure in figures_of(describe(model.monitor, [model.monitor.snapshot()]))
        ]

    def _models(self, name: str) -> list[Model]:
        """Return the loaded versions of a model, with the newest version first. Raises `UnknownModel`."""
        return [found for found in self._repository.versions(name).values() if isinstance(found, Model)]

    # --- processes ----------------------------------------------------------------------------------------------------

    async def _ask(self, question: Question) -> Sequence[str]:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._control.ask(question.model_dump_json())
        except TimeoutError:
            raise DeadlinePassed("a worker did not answer in time") from None

    def _answer(self, text: str) -> str:
        """Answer a question of another worker about this process. The question and the answer are JSON."""
        question = Question.model_validate_json(text)
        try:
            names = self._repository.names() if question.name is None else (question.name,)
            models = [model for name in names for model in self._models(name)]
        except UnknownModel:  # this process has just removed the model
            models = []
        if question.kind == "label":
            return _OUTCOMES.dump_json([_label(models, entry) for entry in question.entries]).decode()
        if question.kind == "reset":
            for model in models:
                model.monitor.reset()
            return ""
        return _Snapshots(by_key={_key(model): model.monitor.snapshot() for model in models}).model_dump_json()


def _snapshots(answers: Iterable[str]) -> dict[str, list[Snapshot]]:
    """Read the snapshots from the answers of all processes.

    Return the snapshots of each version, by the key of the version.
    """
    found: dict[str, list[Snapshot]] = {}
    for answer in answers:
        for key, snapshot in _Snapshots.model_validate_json(answer).by_key.items():
            found.setdefault(key, []).append(snapshot)
    return found


def _figures(models: Iterable[Model], answers: Iterable[str]) -> list[Figure]:
    """Return the figures of all processes. Any thread may call this function. answers: the answers of all processes."""
    by_key = _snapshots(answers)
    return [figure for model in models for figure in figures_of(describe(model.monitor, by_key.get(_key(model), ())))]


def _key(model: Model) -> str:
    """Return the key of a version. The key is equal in all processes that have loaded the same bundle."""
    return f"{model.manifest.name}/{model.manifest.version}/{model.digest}"


def _label(models: Sequence[Model], entry: Entry) -> Outcome:
    """Count the labels of one request for the version that answered this request."""
    outcomes = (model.monitor.label(entry.request_id, entry.labels) for model in models)
    return next((outcome for outcome in outcomes if outcome.problem != "unknown"), Outcome())
