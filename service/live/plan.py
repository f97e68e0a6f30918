"""The data of a change of models: the versions to try, the outcome of each, and the plan that every process serves.

Several processes may serve the same models. A plan is written as JSON and sent to each of them. This module knows
neither files nor models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

State = Literal["ready", "loading", "refused", "unloaded"]


class Message(BaseModel):
    """A message between processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(Message):
    """A comparison of a new version with the version that serves. `service/live/policy.py` describes the limits.

    against: the number of the version that serves.
    """

    against: int
    allow_interface_change: bool = False
    shadow: bool = False
    max_changed: float = 1.0
    max_changed_in_class: float = 1.0
    max_change: float | None = None
    max_latency_ratio: float | None = None


class Attempt(Message):
    """A version that every process must try to load.

    stamp: identifies the contents of its files. trial: None if the version need not be compared with another one.
    """

    name: str
    version: int
    stamp: str
    trial: Trial | None = None


class Outcome(Message):
    """The result of one attempt in one process.

    reason: why the version may not serve; None if it may. final: whether the reason would also hold for completely
    copied files, so that waiting is useless. digest: identifies the contents that were read. compared: the measures of
    the trial, by name.
    """

    reason: str | None = None
    final: bool = False
    digest: str | None = None
    compared: dict[str, Any] | None = None


class VersionPlan(Message):
    """The state of one version. reason: None if it is ready. compared: the measures of its trial."""

    state: State
    stamp: str
    reason: str | None = None
    compared: dict[str, Any] | None = None


class ModelPlan(Message):
    """One model.

    versions: by number. current: the version that answers a request without a version; None if none does. labels: the
    version number of each label. canary: the share of the requests without a version that the label `canary` answers.
    reason: why the folder of the model can't be read; None if it can.
    """

    versions: dict[int, VersionPlan] = {}
    current: int | None = None
    labels: dict[str, int] = {}
    canary: float = 0.0
    reason: str | None = None

    def ready(self) -> list[int]:
        """Return the versions that are ready, in ascending order."""
        return sorted(number for number, version in self.versions.items() if version.state == "ready")

    @property
    def unloaded(self) -> bool:
        """Whether the operator has unloaded every version."""
        return bool(self.versions) and all(version.state == "unloaded" for version in self.versions.values())


class Plan(Message):
    """The state of all models, by name."""

    models: dict[str, ModelPlan] = {}


class Attempts(Message):
    """The versions to try in one change."""

    attempts: tuple[Attempt, ...] = ()


class Outcomes(Message):
    """The outcomes of `Attempts`, in the same order."""

    outcomes: tuple[Outcome, ...] = ()


def merge(outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """Merge the outcomes of several processes. A version may serve only if it may serve in every process.

    outcomes: for each process, the outcomes of the same attempts.
    """
    merged = []
    for of_each in zip(*outcomes, strict=True):
        refused = next((outcome for outcome in of_each if outcome.reason is not None), None)
        if refused is None and len({outcome.digest for outcome in of_each}) > 1:
            refused = Outcome(reason="the files changed while the processes read them")
        merged.append(refused or of_each[0])
    return merged
