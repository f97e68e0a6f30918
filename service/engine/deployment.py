"""Changes the models of one serving process: loads and compares versions, then serves the versions of a plan.

The changes run on a thread, so that loading a model never blocks the event loop. Only the last step, which replaces the
models, happens on the event loop. This module does not decide which models change.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping

from foldserve.service.engine.endpoint import Endpoint, SplitEndpoint
from foldserve.service.engine.loader import Loader
from foldserve.service.engine.repository import Model, Repository, Unavailable, Versions
from foldserve.service.engine.trial import compare
from foldserve.service.errors import DeviceError, ModelNotReady, StartError, UnknownModel
from foldserve.service.live.plan import Attempt, Attempts, ModelPlan, Outcome, Outcomes, Plan
from foldserve.service.live.policy import CANARY
from foldserve.service.live.scan import Layout
from foldserve.service.metrics import Metrics

log = logging.getLogger("foldserve")

_Key = tuple[str, int, str]  # the name, the number and the stamp of a version


class Deployment:
    """Changes the models of one process. `prepare` and `commit` must not be called at the same time.

    layout: the folders of the bundles. default_model: the setting `default_model`.
    """

    def __init__(
        self, loader: Loader, repository: Repository, metrics: Metrics, layout: Layout, default_model: str | None
    ) -> None:
        self._metrics = metrics
        self._loader = loader
        self._repository = repository
        self._layout = layout
        self._default_model = default_model
        self._loaded: dict[_Key, Model] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, replace the models on this event loop. The process may answer requests only after this call."""
        self._loop = loop

    def prepare(self, attempts: Attempts) -> Outcomes:
        """Load and compare versions, but do not serve them yet.

        Raises `DeviceError` if the requested device is not available and this process does not answer requests yet.
        """
        return Outcomes(outcomes=tuple(map(self._try, attempts.attempts)))

    def _try(self, attempt: Attempt) -> Outcome:
        try:
            found = self._load(attempt.name, attempt.version)
        except DeviceError as error:
            if self._loop is None:
                raise
            return Outcome(reason=f"the device can't hold it: {error}", final=True)
        if isinstance(found, Unavailable):
            return Outcome(reason=found.reason)
        outcome = Outcome()
        if (trial := attempt.trial) is not None and (old := self._serving(attempt.name, trial.against)) is not None:
            try:
                outcome = compare(old, found, trial)
            except Exception as error:  # noqa: BLE001 (the runtime raises many types)
                log.error("%s/%d fails on the rows of its trial: %s", attempt.name, attempt.version, error)
                outcome = Outcome(reason="a run fails on the rows of the comparison with the version that serves")
            if outcome.reason is not None:
                found.close()
                return outcome
        self._loaded[attempt.name, attempt.version, attempt.stamp] = found
        return outcome.model_copy(update={"digest": found.digest})

    def _serving(self, name: str, version: int) -> Model | None:
        try:
            return self._repository.find(name, version)
        except (ModelNotReady, UnknownModel):
            return None

    def _load(self, name: str, version: int) -> Model | Unavailable:
        path = self._layout.path(name, version)
        return self._loader.load_version(path, name, version, rename=self._layout.name is not None)

    def commit(self, plan: Plan) -> None:
        """Serve a plan. This method returns after the event loop has replaced the models.

        If `prepare` has not loaded a version, `commit` loads this version first, because this process may have started
        after the other processes. Raises `DeviceError` in the same cases as `prepare`. Raises `StartError` if the
        active version is now refused.
        """
        models = {name: self._versions(name, model) for name, model in plan.models.items()}
        keep = {
            (name, number, version.stamp)
            for name, model in plan.models.items()
            for number, version in model.versions.items()
            if version.state == "ready"
        }
        unused = [model for key, model in self._loaded.items() if key not in keep]
        self._loaded = {key: model for key, model in self._loaded.items() if key in keep}
        self._metrics.record_refused(_refused(plan))
        self._publish(models)
        served = {id(model) for model in self._repository.running_models()}
        for model in unused:
            if id(model) not in served:  # `prepare` has loaded this model, but the plan does not use the model
                model.close()

    def _versions(self, name: str, plan: ModelPlan) -> Versions:
        found: dict[int, Model | Unavailable] = {}
        for number, version in sorted(plan.versions.items(), reverse=True):
            if version.state != "ready":
                found[number] = Unavailable(version.reason or "", version.state)
                continue
            key = (name, number, version.stamp)
            if key not in self._loaded:
                loaded = self._load(name, number)
                if isinstance(loaded, Unavailable):
                    if number == plan.current and self._loop is None:  # the other processes already serve this version
                        raise StartError(f"version {number} of {name} may not be served: {loaded.reason}")
                    log.error("refused %s: %s", self._layout.path(name, number), loaded.reason)
                    found[number] = loaded
                    continue
                self._loaded[key] = loaded
            found[number] = self._loaded[key]
        notes = {n: v.reason for n, v in plan.versions.items() if v.state == "ready" and v.reason is not None}
        compared = {n: v.compared for n, v in plan.versions.items() if v.compared is not None}
        return Versions(found, plan.current, plan.labels, notes, compared, plan.canary)

    def _publish(self, models: Mapping[str, Versions]) -> None:
        default = self._default_model
        if default is None and len(models) == 1:
            default = next(iter(models))
        if default not in models:
            default = None
        endpoints = _endpoints_by_path(models, default)
        if self._loop is None:
            self._repository.publish(models, default, endpoints)
            return
        published = threading.Event()

        def publish() -> None:
            try:
                self._repository.publish(models, default, endpoints)
            finally:
                published.set()

        try:
            self._loop.call_soon_threadsafe(publish)
        except RuntimeError:  # the event loop is closed, because the server stops
            return
        while not published.wait(1):
            if not self._loop.is_running():
                return


def _refused(plan: Plan) -> list[tuple[str, str]]:
    """Return the refused versions, and the models whose folders can't be read."""
    refused = [
        (name, str(number))
        for name, model in plan.models.items()
        for number, version in model.versions.items()
        if version.state == "refused"
    ]
    return refused + [(name, "") for name, model in plan.models.items() if model.reason is not None]


def _endpoints_by_path(models: Mapping[str, Versions], default: str | None) -> dict[bytes, Endpoint]:
    """Return a dict that maps the paths for predictions to the endpoints of the models.

    A version that is not loaded has no path.
    """
    endpoints = {}
    for name, model in models.items():
        named: list[tuple[int | str | None, int | None]] = [(None, model.current), *model.labels.items()]
        named += [(number, number) for number in model.by_number]
        for key, number in named:
            found = model.by_number.get(number) if number is not None else None
            if not isinstance(found, Model):
                continue
            path = name if key is None else f"{name}/versions/{key}"
            friendly, oip = found.friendly, found.oip
            canary = model.by_number.get(model.labels.get(CANARY, 0))
            if key is None and model.canary and isinstance(canary, Model):
                friendly = SplitEndpoint(friendly, canary.friendly, model.canary)
                oip = SplitEndpoint(oip, canary.oip, model.canary)
            endpoints[f"/v1/models/{path}:predict".encode()] = friendly
            endpoints[f"/v2/models/{path}/infer".encode()] = oip
            endpoints[f"/v1/models/{path}:explain".encode()] = found.explain
            if key is None and name == default:
                endpoints[b"/predict"] = friendly
    return endpoints
