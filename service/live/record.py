"""The record of one model in the coordinator: its files, the results of its attempts, and the operator's decision. The
record decides which versions to try, and which version answers requests. This module does not depend on files or
processes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

from foldserve.service.errors import LoadRefused, UnknownModel
from foldserve.service.live.command import Command
from foldserve.service.live.plan import Attempt, ModelPlan, Outcome, Trial, VersionPlan
from foldserve.service.live.policy import CANARY, STABLE, ModelPolicy, Policies
from foldserve.service.live.scan import Found

log = logging.getLogger("foldserve")

# If the files of a version have not changed for this number of seconds, the files are considered complete. If a file
# changed within this time, a check may fail because another program is still copying the bundle.
_SETTLED_SECONDS = 2.0
# The minimum number of seconds between two attempts to load a version.
_RETRY_SECONDS = 0.5
# A version is removed if its folder is missing for this number of seconds. Some programs replace a folder in two steps.
_GONE_SECONDS = 1.0
_MOST_HISTORY = 16


@dataclass
class _Version:
    """One version. All times are monotonic.

    stamp: a text that identifies the contents of the files. since: the time of the last change of the files. gone: the
    time at which the folder was first found to be missing. tried: the time of the last attempt with this stamp.
    verdict: the outcome of the last attempt.
    against: the other version in the comparison. final: whether the verdict holds until the files change. served: the
    stamp of the files that the processes serve.
    """

    stamp: str
    since: float
    gone: float | None = None
    tried: float = -math.inf
    verdict: Outcome | None = None
    against: int | None = None
    final: bool = False
    served: str | None = None

    def reset(self) -> None:
        """Forget the last attempt."""
        self.verdict, self.against, self.final, self.tried = None, None, False, -math.inf

    @property
    def refused(self) -> bool:
        return self.final and self.verdict is not None and self.verdict.reason is not None


@dataclass(frozen=True)
class _Decision:
    """An operator's choice of the active version.

    The choice is valid until a version with a number above `newest` serves.
    """

    current: int
    newest: int


@dataclass
class _Wishes:
    """What the operator has asked for.

    extra: versions to load in addition to the versions of the policy. dropped: versions to unload.
    """

    decision: _Decision | None = None
    extra: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    unloaded: bool = False


class ModelRecord:
    """One model."""

    def __init__(self, name: str, policies: Policies) -> None:
        self._name = name
        self._policies = policies
        self._versions: dict[int, _Version] = {}
        self._unreadable: str | None = None
        self._wishes = self._before = _Wishes()
        self._current: int | None = None
        self._history: list[int] = []  # the versions that have answered requests, the oldest first

    @property
    def _policy(self) -> ModelPolicy:
        return self._policies.of(self._name)

    # --- the folder ---------------------------------------------------------------------------------------------------

    def look(self, found: Found, now: float, *, first: bool = False) -> None:
        """Record the state of the files. first: whether the server is starting.

        When the server starts, it treats all files as complete.
        """
        if found.reason is not None:
            if found.reason != self._unreadable:
                log.error("%s", found.reason)
            self._unreadable = found.reason
            return
        self._unreadable = None
        for number, stamp in found.versions.items():
            version = self._versions.get(number)
            if version is None:
                self._versions[number] = _Version(stamp, -math.inf if first else now)
            elif version.stamp != stamp:
                version.stamp, version.since, version.gone = stamp, now, None
                version.reset()
            else:
                version.gone = None
        for number in [number for number in self._versions if number not in found.versions]:
            version = self._versions[number]
            if version.gone is None:
                version.gone = now
            elif now - version.gone >= _GONE_SECONDS:
                del self._versions[number]

    @property
    def gone(self) -> bool:
        """Whether the files of all versions of the model were removed."""
        return not self._versions and self._unreadable is None

    def due(self, now: float) -> float:
        """Return the seconds until the folder must be looked at again, even if no file changes."""
        times = [math.inf]
        for version in self._versions.values():
            if version.gone is not None:
                times.append(version.gone + _GONE_SECONDS)
            elif version.verdict is not None and not version.final:
                times.append(version.since + _SETTLED_SECONDS)
            elif version.verdict is None and version.tried > -math.inf:
                times.append(version.tried + _RETRY_SECONDS)
        return max(0.05, min(times) - now)

    def retry(self) -> None:
        """Try refused versions again."""
        for version in self._versions.values():
            if version.served != version.stamp:
                version.reset()

    # --- attempts -----------------------------------------------------------------------------------------------------

    def attempts(self, now: float, *, hurry: bool) -> Iterator[Attempt]:
        """Yield the versions to load now. hurry: whether to skip the wait between two attempts."""
        if self._wishes.unloaded or self._unreadable is not None:
            return
        for number in sorted(self._to_try(), reverse=True):
            version = self._versions[number]
            waits = now - version.tried < _RETRY_SECONDS and not hurry
            unsettled = now - version.since < _SETTLED_SECONDS and not hurry
            if version.tried == now or waits or (version.verdict is not None and not version.final and unsettled):
                continue
            yield Attempt(name=self._name, version=number, stamp=version.stamp, trial=self._trial(number))

    def _to_try(self) -> list[int]:
        known = {n: v for n, v in self._versions.items() if v.gone is None and n not in self._wishes.dropped}
        usable = [n for n, v in known.items() if not v.refused or v.served is not None or self._may_retry(n, v)]
        wanted = self._policy.wanted(usable) | self._wishes.extra
        return [
            n
            for n, v in known.items()
            if n in wanted and v.served != v.stamp and (not v.refused or self._may_retry(n, v))
        ]

    def _may_retry(self, number: int, version: _Version) -> bool:
        """Whether to try a refused version again, because the version that it was compared with is no longer active."""
        if version.against is None or version.against == self._current:
            return False
        return self._current is None or number > self._current

    def _trial(self, number: int) -> Trial | None:
        """Return the comparison that a version needs before it answers requests; None if it needs no comparison."""
        current, decision = self._current, self._wishes.decision
        if current is None or (decision is not None and number <= decision.newest and number != current):
            return None
        if number != current and self._choose([*self._served(), number]) != number:
            return None
        return self._policy.swap.trial(current, self._policies.swap)

    def take(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Record the outcome of an attempt."""
        version = self._versions[attempt.version]
        version.tried, version.verdict = now, outcome
        version.against = None if attempt.trial is None else attempt.trial.against
        settled = now - version.since >= _SETTLED_SECONDS
        version.final = outcome.reason is None or outcome.final or settled
        if outcome.reason is None:
            version.served = attempt.stamp

    # --- decisions of the operator ------------------------------------------------------------------------------------

    def decide(self, command: Command) -> None:
        """Note a command. Raises `UnknownModel` for a version that does not exist, or `LoadRefused`."""
        wishes = self._before = self._wishes
        number = command.version
        if number is None and command.kind == "rollback":
            number = self._earlier()
        if number is None and command.kind == "promote":
            number = self._policy.labels.get(CANARY, max(self._versions, default=None))
        if (number is not None and number not in self._versions) or not self._versions:
            raise UnknownModel("unknown version of this model")
        extra, dropped = wishes.extra, wishes.dropped
        if command.kind == "unload":
            if number is None:
                self._wishes = _Wishes(unloaded=True)
            else:
                decision = None if wishes.decision and wishes.decision.current == number else wishes.decision
                self._wishes = _Wishes(decision, extra - {number}, dropped | {number}, wishes.unloaded)
            return
        if number is None:
            self._wishes = _Wishes(wishes.decision, extra)
            self.retry()
            return
        decision = wishes.decision if command.kind == "load" else _Decision(number, max(self._versions))
        self._wishes = _Wishes(decision, extra | {number}, dropped - {number})
        if self._versions[number].served != self._versions[number].stamp:
            self._versions[number].reset()

    def _earlier(self) -> int:
        """Return the version that answers requests after a rollback without a number."""
        current = self._current if self._current is not None else max(self._versions, default=0) + 1
        present = [n for n, v in self._versions.items() if v.gone is None and n < current]
        answered = [number for number in self._history if number in present]
        if not present:
            raise LoadRefused("there is no earlier version")
        return answered[-1] if answered else max(present)

    def shortfall(self, command: Command) -> str | None:
        """Return None if a command has led to the state that the command asks for. If the state is different, undo the
        command and return the reason.
        """
        reason = None
        decision = self._wishes.decision
        if command.kind in ("promote", "rollback") and decision is not None and self._current != decision.current:
            reason = self._describe(decision.current)
        elif command.kind == "load":
            wanted = command.version
            if wanted is None:  # the newest version that failed to replace the active version
                failed = [
                    n for n, v in self._versions.items() if v.verdict is not None and v.verdict.reason is not None
                ]
                wanted = max((number for number in failed if number > (self._current or 0)), default=None)
            if wanted is not None and self._versions[wanted].served != self._versions[wanted].stamp:
                reason = self._describe(wanted)
        if reason is not None and command.kind != "load":
            self._wishes = self._before
        self._before = _Wishes()
        return reason

    def _describe(self, number: int) -> str:
        verdict = self._versions[number].verdict
        why = "it was not loaded" if verdict is None or verdict.reason is None else verdict.reason
        serves = "no version serves" if self._current is None else f"version {self._current} serves"
        return f"version {number} may not serve: {why}; {serves}"

    def forget_decision(self) -> None:
        """Follow the policy again, because it has changed. Versions that the old policy refused are tried again."""
        self._wishes = _Wishes(unloaded=self._wishes.unloaded)
        self.retry()

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _served(self) -> list[int]:
        dropped = self._wishes.dropped
        return [n for n, v in self._versions.items() if v.served is not None and n not in dropped]

    def _choose(self, served: list[int]) -> int | None:
        """Return the version that answers requests that name no version. served: the versions that can answer
        requests.
        """
        stable = self._policy.labels.get(STABLE)
        decision = self._wishes.decision
        if decision is not None and decision.current not in served:
            decision = self._before.decision  # a command for a version that must not serve changes nothing
        if decision is not None and decision.current in served:
            newer = [] if stable is not None else [number for number in served if number > decision.newest]
            return max(newer, default=decision.current)
        wanted = self._policy.wanted(served) & set(served)
        return stable if stable in served else max(wanted or served, default=None)

    def plan(self) -> ModelPlan:
        """Return the plan of this model."""
        served = [] if self._wishes.unloaded else self._served()
        current = self._choose(served)
        decision = self._wishes.decision
        if decision is not None and current is not None and current > decision.newest:
            self._wishes = _Wishes(None, self._wishes.extra - {decision.current}, self._wishes.dropped)
        kept = (self._policy.wanted(served) | self._wishes.extra | {current}) & set(served)
        for number, version in self._versions.items():
            if number not in kept and version.served is not None:
                version.served = None
                version.reset()
        if current is not None and current != self._current:
            self._history = [*(n for n in self._history if n != current), current][-_MOST_HISTORY:]
        self._current = current
        labels = {label: number for label, number in self._policy.labels.items() if number in kept}
        return ModelPlan(
            versions={number: self._version_plan(number) for number in sorted(self._versions)},
            current=current,
            labels=labels,
            canary=self._policy.canary if CANARY in labels else 0.0,
            reason=self._unreadable if not self._versions else None,
        )

    def _version_plan(self, number: int) -> VersionPlan:
        version = self._versions[number]
        verdict = version.verdict
        compared = None if verdict is None else verdict.compared
        failed = None if verdict is None else verdict.reason
        if version.served is not None:
            reason = None if failed is None else f"the files have changed, and may not serve: {failed}"
            return VersionPlan(state="ready", stamp=version.served, reason=reason, compared=compared)
        if failed is not None and version.final:
            return VersionPlan(state="refused", stamp=version.stamp, reason=failed, compared=compared)
        if failed is not None:
            return VersionPlan(state="loading", stamp=version.stamp, reason=f"waiting for the files: {failed}")
        if self._wishes.unloaded or number in self._wishes.dropped:
            return VersionPlan(state="unloaded", stamp=version.stamp, reason="an operator has unloaded it")
        if number not in self._policy.wanted(self._served()):
            return VersionPlan(state="unloaded", stamp=version.stamp, reason=self._policy.described)
        return VersionPlan(state="loading", stamp=version.stamp, reason="it is not loaded yet")
