"""Reads requests with labels that became known after a prediction, and joins the outcomes of all processes.

    {"feedback": [{"request_id": "r-17", "labels": [3, null]}, ...]}

`labels` has one label for each row of the prediction request with this `request_id`. A label is null if the label is
not known yet. This module does not depend on predictions or routes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from foldserve.service.bundle import Label, Manifest
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.json_text import parse_json
from foldserve.service.telemetry.trace_context import safe_id

_MEMBERS = {"request_id", "labels"}
_NUMBERS = (int, float)
_KINDS = (bool, int, float, str)

# The reasons why some labels of an entry are not counted. If several reasons apply, the answer gives the reason that
# comes last in `_ORDER`.
Problem = Literal["unknown", "", "repeated", "mismatched"]
_ORDER: tuple[Problem, ...] = ("unknown", "", "repeated", "mismatched")


class Entry(BaseModel):
    """The labels of one request. Each label is a JSON value, or None if the label is not known yet."""

    request_id: str
    labels: list[bool | int | float | str | None]


class Outcome(BaseModel):
    """The outcome of one entry. accepted: the number of labels that were counted."""

    accepted: int = 0
    problem: Problem = "unknown"


class Entries(BaseModel):
    """All entries of a request that have the same kind of problem. indices: the indices of these entries in the
    request, from 0.
    """

    count: int
    indices: list[int]


class FeedbackAnswer(BaseModel):
    """The outcome of a request with labels.

    `accepted`: the number of labels that were counted. `unknown`: entries whose request is not remembered: the id is
    wrong or too old, or no request of this model had this id. `mismatched`: entries that do not have one label for each
    row, or that have a label that this version of the model does not have. `repeated`: entries with a label for a row
    that already has a label; only the first label is counted.
    """

    accepted: int
    unknown: Entries
    mismatched: Entries
    repeated: Entries


@dataclass(frozen=True)
class LabelReader:
    """Converts the labels in a request for one model to numbers.

    In a classification, a label becomes the index of its class. In a regression, a label becomes a float.
    """

    labels: Sequence[Label]

    @cached_property
    def _places(self) -> dict[tuple[bool, Label], int]:
        """The index of each label. In Python, True equals 1, so each key also says whether the label is a boolean."""
        return {(type(label) is bool, label): place for place, label in enumerate(self.labels)}

    def read(self, value: Any) -> float | None:
        """Return the index of a class, or the value of a regression; None for null. Raises `ValueError`."""
        if value is None:
            return None
        if not self.labels:
            if type(value) not in _NUMBERS or not math.isfinite(value):
                raise ValueError("is not a finite number")
            return float(value)
        place = self._places.get((type(value) is bool, value)) if type(value) in _KINDS else None
        if place is None:
            raise ValueError("is not one of the model's labels")
        return place


def read_feedback(body: bytes | bytearray | memoryview, manifests: Iterable[Manifest], max_labels: int) -> list[Entry]:
    """Read the body of a request. manifests: the manifests of all versions of the model that answer requests.

    Raises `InvalidInput`. A label is refused if none of these versions has this label. The versions of a model usually
    have the same labels. max_labels: the largest number of labels in all entries together. Without the limit
    `max_labels`, a small body could block the event loop for seconds.
    """
    parsed = parse_json(body)
    entries = parsed.get("feedback") if type(parsed) is dict and parsed.keys() == {"feedback"} else None
    if type(entries) is not list or not entries:
        raise InvalidInput('the body is not an object with an array "feedback" that has an entry')
    readers = [LabelReader(manifest.labels) for manifest in manifests]
    found, room = [], max_labels
    for place, entry in enumerate(entries):
        request_id, labels = _open_entry(place, entry)
        if (room := room - len(labels)) < 0:
            raise InvalidInput(f"the request has more than {max_labels} labels; send them in several requests")
        _check_labels(place, labels, readers)
        found.append(Entry.model_construct(request_id=request_id, labels=labels))
    return found


def _open_entry(place: int, entry: Any) -> tuple[str, list[Any]]:
    if type(entry) is not dict or entry.keys() != _MEMBERS:
        raise InvalidInput(f'entry {place} is not an object with "request_id" and "labels"')
    request_id, labels = entry["request_id"], entry["labels"]
    if type(request_id) is not str or not safe_id(request_id.encode("utf-8", "replace")):
        raise InvalidInput(f'entry {place}: "request_id" is not a text that X-Request-Id may have')
    if type(labels) is not list or not labels:
        raise InvalidInput(f'entry {place}: "labels" is not an array with a label for each row of the request')
    return request_id, labels


def _check_labels(place: int, labels: Sequence[Any], readers: Sequence[LabelReader]) -> None:
    for row, label in enumerate(labels):
        problem = ""
        for reader in readers:
            try:
                reader.read(label)
                break
            except ValueError as error:
                problem = str(error)
        else:
            raise InvalidInput(f"entry {place}, row {row}: the label {problem}")


def join_outcomes(by_process: Sequence[Sequence[Outcome]]) -> FeedbackAnswer:
    """Join the outcomes of all processes. Each process gives one outcome for each entry."""
    joined = [
        Outcome(accepted=sum(o.accepted for o in each), problem=max((o.problem for o in each), key=_ORDER.index))
        for each in zip(*by_process, strict=True)
    ]

    def entries(problem: Problem) -> Entries:
        places = [place for place, outcome in enumerate(joined) if outcome.problem == problem]
        return Entries(count=len(places), indices=places)

    return FeedbackAnswer(
        accepted=sum(outcome.accepted for outcome in joined),
        unknown=entries("unknown"),
        mismatched=entries("mismatched"),
        repeated=entries("repeated"),
    )
