"""Changes the plan that every process serves, when the folder of models changes or an operator sends a command.

A change of the models has these steps:

    scan -> attempts -> every process prepares -> merged outcomes -> plan -> every process commits

The coordinator runs on a thread of its own. With several workers, this thread is in the supervisor of the workers, so
all workers change together: if one of them refuses a version, none serves it. This module does not depend on HTTP or on
ONNX Runtime.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from foldserve.service.errors import FoldserveError, LoadRefused, ModelBusy, StartError, UnknownModel
from foldserve.service.live.command import Command
from foldserve.service.live.plan import Attempts, ModelPlan, Outcome, Outcomes, Plan
from foldserve.service.live.policy import Policies
from foldserve.service.live.record import ModelRecord
from foldserve.service.live.scan import Found, Layout, layout_of
from foldserve.service.live.verdict import merge
from foldserve.service.live.watch import watch
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# When a start fails, the error message names at most this number of models.
_MOST_REASONS = 3
# One change of the models has at most this number of rounds. If a version is refused, the policy may ask for an older
# version, which is tried in the next round.
_MOST_ROUNDS = 100


class Crew(Protocol):
    """The processes that serve the models.

    A dead process is ignored, because the new process that replaces the dead process serves the last plan.
    """

    def prepare(self, attempts: Attempts) -> Sequence[Outcomes]:
        """Load versions in every process, without serving them. Returns the outcomes of each process."""

    def commit(self, plan: Plan) -> None:
        """Let every process serve a plan. Versions that are not in the plan first finish their requests, and are then
        unloaded.
        """


@dataclass(frozen=True)
class Rules:
    """The settings of a coordinator.

    layout: where the bundles are. follow: whether the coordinator loads and unloads models when the folder changes.
    rescan: the coordinator looks at the folder at least once in this number of seconds. default_model: the value of the
    setting `default_model`.
    """

    layout: Layout
    follow: bool
    rescan: float
    default_model: str | None


class Coordinator:
    """Owns the plan.

    Any thread may call `submit` and `stop`. All other methods may be called by only one thread at a time.
    """

    def __init__(self, rules: Rules, policies: Policies, crew: Crew) -> None:
        self._rules = rules
        self._policies = policies
        self._crew = crew
        self._records: dict[str, ModelRecord] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        # The thread takes commands from this queue. If the queue contains None, the thread looks at the folder.
        self._wishes: queue.SimpleQueue[tuple[Command, Future[None]] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._unreadable = ""
        self._unused: set[str] = set()  # the warnings about the policy that are already in the log
        self.plan = Plan()

    # --- for any thread -----------------------------------------------------------------------------------------------

    def submit(self, command: Command) -> Future[None]:
        """Execute a command. The future raises `UnknownModel`, or `LoadRefused` with the reason.

        Raises `ModelBusy` if another command for this model is still running.
        """
        with self._lock:
            if command.name in self._busy:
                raise ModelBusy("this model is being changed by another request")
            self._busy.add(command.name)
        done: Future[None] = Future()
        self._wishes.put((command, done))
        return done

    def stop(self) -> None:
        """Make `run` return. This call does not wait for a change that has begun."""
        self._stopped.set()
        self._wishes.put(None)

    # --- for the thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load all models for the first time.

        Raises `StartError` in these cases: the folder is missing or can't be read, the default model is missing, or no
        model has a version that passes. Raises `StartError` for an empty folder, unless changes are followed.
        """
        found = self._rules.layout.scan()
        if not found and not self._rules.follow:
            raise StartError(_nothing_to_serve(self._rules.layout))
        default = self._rules.default_model
        if found and default is not None and default not in found:
            raise StartError(f"the default model {default!r} is not among {', '.join(found)}")
        self._change(found, list(found), first=True)
        models = self.plan.models
        if found and not any(model.ready() for model in models.values()):
            raise StartError(_nothing_serves(self.plan))
        self._log_changes(Plan())
        self._warn_of_unused(found)
        if not found:
            log.warning("%s; waiting for models", _nothing_to_serve(self._rules.layout))

    def run(self) -> None:
        """Execute commands until `stop` is called. If `Rules.follow` is set, also follow changes of the folder."""
        rules = self._rules
        if rules.follow:
            watch(rules.layout.folder, lambda: self._wishes.put(None), self._stopped)
        due = time.monotonic() + rules.rescan
        while not self._stopped.is_set():
            try:
                wish = self._wishes.get(timeout=max(0.0, due - time.monotonic()) if rules.follow else None)
            except queue.Empty:
                wish = None
            if self._stopped.is_set():
                return
            try:
                if wish is not None:
                    self._execute(*wish)
                elif rules.follow:
                    self._look()
            except Exception:  # the server must go on with the models that it has
                log.exception("internal error while the models change")
            now = time.monotonic()
            soon = min((record.due(now) for record in self._records.values()), default=rules.rescan)
            due = now + min(soon, rules.rescan)

    def _look(self) -> None:
        """Look for changes of the folder and of the policies, and apply them."""
        for name in self._policies.refresh(self._records):
            self._records[name].forget_decision()
        try:
            found = self._rules.layout.scan()
        except StartError as error:  # if a volume is gone for a moment, the models must continue to serve
            if str(error) != self._unreadable:
                log.error("the models stay as they were: %s", error)
            self._unreadable = str(error)
            return
        self._unreadable = ""
        self._change(found, list(dict.fromkeys((*found, *self._records))))
        self._warn_of_unused(found)

    def _warn_of_unused(self, found: dict[str, Found]) -> None:
        """Log once which names in the policy have no effect, because these names may be misspelt."""
        unused = self._policies.unused({name: each.versions for name, each in found.items()})
        for sentence in unused:
            if sentence not in self._unused:
                log.warning("%s", sentence)
        self._unused = set(unused)

    def _execute(self, command: Command, done: Future[None]) -> None:
        """Execute a command. As soon as the outcome is in `done`, the next command for this model is accepted."""
        failure: BaseException | None = None
        try:
            self._obey(command)
        except FoldserveError as error:
            failure = error
        except BaseException:
            failure = LoadRefused("internal error")
            raise
        finally:
            with self._lock:
                self._busy.discard(command.name)
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

    def _obey(self, command: Command) -> None:
        """Change the models as a command asks. Raises `UnknownModel` and `LoadRefused`."""
        found = self._rules.layout.scan()
        record = self._records.get(command.name)
        if record is None:
            if command.name not in found:
                raise UnknownModel("unknown model")
            record = self._record(command.name)
        record.look(found.get(command.name, Found({})), time.monotonic())
        record.decide(command)
        self._change(found, [command.name], decided=True)
        if reason := record.shortfall(command):
            raise LoadRefused(reason)
        log.info("%s", command)

    # --- one change ---------------------------------------------------------------------------------------------------

    def _record(self, name: str) -> ModelRecord:
        return self._records.setdefault(name, ModelRecord(name, self._policies))

    def _change(self, found: dict[str, Found], names: list[str], *, first: bool = False, decided: bool = False) -> None:
        """Change the models `names` to the wanted state.

        The wanted state depends on the folder, the policies and the operator's decisions.
        """
        now = time.monotonic()
        for name in names:
            self._record(name).look(found.get(name, Found({})), now, first=first)
        for _ in range(_MOST_ROUNDS):
            attempts = [
                a
                for name in names
                if name in self._records
                for a in self._records[name].attempts(now, hurry=first or decided)
            ]
            outcomes: list[Outcome] = []
            if attempts:
                outcomes = merge(attempts, [o.outcomes for o in self._crew.prepare(Attempts(attempts=tuple(attempts)))])
                if not outcomes:  # every process has died; the new processes will serve the last plan
                    return
            for attempt, outcome in zip(attempts, outcomes, strict=True):
                self._records[attempt.name].take(attempt, outcome, now)
            before = self.plan
            self._commit(names, tried=bool(attempts))
            if not first:
                self._log_changes(before)
            if not attempts:
                return

    def _commit(self, names: list[str], *, tried: bool) -> None:
        """Send the plan to the processes if it has changed, or if versions were tried. The processes then close the
        versions that the plan does not use.
        """
        models = dict(self.plan.models)
        for name in names:
            record = self._records.get(name)
            if record is None or record.gone:
                self._records.pop(name, None)
                models.pop(name, None)
            else:
                models[name] = record.plan()
        plan = Plan(models=dict(sorted(models.items())))
        if plan != self.plan or tried or not plan.models:
            self.plan = plan
            self._crew.commit(plan)

    def _log_changes(self, before: Plan) -> None:
        for name in (*self.plan.models, *(name for name in before.models if name not in self.plan.models)):
            old, new = before.models.get(name, ModelPlan()), self.plan.models.get(name)
            if new is None:
                log.info("%s was removed", name)
                continue
            for number, version in new.versions.items():
                known = old.versions.get(number)
                fails = version.state in ("refused", "ready") and version.reason is not None
                if fails and (known is None or known.reason != version.reason):
                    log.error("refused %s: %s", self._rules.layout.path(name, number), version.reason)
            if name in before.models and old.current != new.current:
                log.info("%s: %s answers in place of %s", name, _version(new.current), _version(old.current))
            if new.current is None and not new.unloaded and (name not in before.models or old.current is not None):
                log.error("%s is not ready: none of its versions may be served", name)


def create_coordinator(settings: Settings, crew: Crew) -> Coordinator:
    """Create a coordinator from the settings. Raises `SettingsError` if the file of policies is not valid."""
    rules = Rules(layout_of(settings), settings.watch, settings.rescan, settings.default_model)
    return Coordinator(rules, Policies(settings.policy, settings.swap_policy), crew)


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"


def _nothing_to_serve(layout: Layout) -> str:
    """Return a text that says why the folder has no models, and what to do about it."""
    folder, form = layout.folder, "<name>/<version>/" if layout.name is None else "bundle"
    text = f"no models to serve: {folder} holds no {form}"
    if any(folder.iterdir()):
        return text
    return (
        f"{text}; it is empty: train into it with foldserve-train fit, or mount the folder of your bundles "
        "(Docker makes a missing one, empty and owned by root)"
    )


def _nothing_serves(plan: Plan) -> str:
    """Return a text that says why no model serves.

    The text names some of the models, each with the reason for its newest version.
    """
    reasons = [
        f"no version of {name} may be served: {model.versions[max(model.versions)].reason}"
        for name, model in plan.models.items()
        if model.versions
    ]
    reasons += [f"the folder of {name} can't be read" for name, model in plan.models.items() if not model.versions]
    more = f"; and {len(reasons) - _MOST_REASONS} more models" if len(reasons) > _MOST_REASONS else ""
    return "; ".join(reasons[:_MOST_REASONS]) + more
