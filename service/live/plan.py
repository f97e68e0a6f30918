"""The data of a change of models: the versions to try, the outcome of each attempt, and the plan.

Every process serves the plan. Several processes may serve the same models. A plan is sent to each process as JSON. This
module does not depend on files or models.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

State = Literal["ready", "loading", "refused", "unloaded"]


class Message(BaseModel):
    """A message between processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(Message):
    """A comparison of a new version with the active version. `service/live/policy.py` describes the limits.

    against: the number of the active version.
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

    stamp: identifies the contents of the version's files. trial: the comparison with another version; None if the
    version need not be compared.
    """

    name: str
    version: int
    stamp: str
    trial: Trial | None = None


class Changes(Message):
    """How the answers of a new version differ from the answers of an old version, for the same rows.

    not_finite: the number of rows for which the new version computes an infinite output or NaN. If `not_finite` is
    above 0, the other counts are missing. by_class: maps each label of the old version to the number of rows with this
    label, and to the number of these rows that get another label.
    largest_change: the largest change of an output. range: the lowest and the highest output of the old version; None
    for a classification.
    seconds: the time of one run of the new version, and of the old version; None if these times are not known.
    """

    rows: int
    not_finite: int = 0
    by_class: dict[str, tuple[int, int]] = {}
    largest_change: float = 0.0
    range: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None


class Outcome(Message):
    """The result of one attempt in one process.

    reason: why the version must not serve; None if it is allowed to serve. final: whether waiting is useless, because
    the reason would still hold after all files are copied. digest: identifies the contents that were read. compared:
    maps the name of each measure of the trial to its value. live, golden: the changes for the live rows of this
    process, and for the golden rows of the active version.
    """

    reason: str | None = None
    final: bool = False
    digest: str | None = None
    compared: dict[str, Any] | None = None
    live: Changes | None = None
    golden: Changes | None = None


class VersionPlan(Message):
    """The state of one version. reason: why the version is not ready; None if it is ready. compared: the measures of
    the version's trial.
    """

    state: State
    stamp: str
    reason: str | None = None
    compared: dict[str, Any] | None = None


class ModelPlan(Message):
    """One model.

    versions: maps each version number to the plan for this version. current: the active version, which answers a
    request that names no version; None if no version is active. labels: maps each version label to a version number.
    canary: the label `canary` answers this share of the requests that name no version.
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
    """The plans of all models, by the model's name."""

    models: dict[str, ModelPlan] = {}


class Attempts(Message):
    """The versions to try in one change."""

    attempts: tuple[Attempt, ...] = ()


class Outcomes(Message):
    """The outcomes of all attempts in an `Attempts`, in the same order."""

    outcomes: tuple[Outcome, ...] = ()
