"""Owns the loaded models. Finds a model by name and version, and replaces all models in one step.

The name in a request is only a key of a dictionary. The name in a request never becomes a part of a file's path. A
model that was replaced is closed after its last request. This module does not load models, and does not decide when
models change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from foldserve.service.bundle import Manifest, Parity, Tolerance
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.live_rows import LiveRows
from foldserve.service.errors import ModelNotReady, UnknownModel
from foldserve.service.quality.monitor import Monitor
from foldserve.service.runtime.load import Runtime

log = logging.getLogger("foldserve")

_DRAIN_SECONDS = 0.05  # after this number of seconds, check again whether a replaced model still has requests


@dataclass(frozen=True)
class Model:
    """One loaded version of a model, whose session has reproduced the golden outputs.

    max_rows: the largest number of rows in one request. live_rows: the last rows that the model has answered. monitor:
    the counts of rows, predictions and labels. digest: a text that identifies the contents of the bundle. folder: the
    folder of the bundle. forget: a function that removes the model from the metrics.
    """

    manifest: Manifest
    runtime: Runtime
    parity: Parity
    batcher: Batcher
    friendly: Endpoint
    oip: Endpoint
    explain: Endpoint
    max_rows: int
    live_rows: LiveRows
    monitor: Monitor
    tolerance: Tolerance
    digest: str = ""
    folder: Path = Path()
    forget: Callable[[], object] = lambda: None

    @cached_property
    def manifest_json(self) -> bytes:
        """The manifest as JSON, encoded once."""
        return self.manifest.model_dump_json().encode()

    @property
    def batchers(self) -> tuple[Batcher, Batcher]:
        """The batchers for predictions and for explanations."""
        return self.batcher, self.explain.batcher

    @property
    def busy(self) -> bool:
        """Whether a request of this model has no reply yet."""
        endpoints = self.friendly, self.oip, self.explain
        return any(each.in_flight > 0 for each in endpoints) or not all(each.idle for each in self.batchers)

    def close(self) -> None:
        """Refuse all requests from now on, and release the memory of the device."""
        for batcher in self.batchers:
            batcher.close()
        self.runtime.close()
        self.forget()


@dataclass(frozen=True)
class Unavailable:
    """One version that is not loaded, and the reason. Clients may see the reason."""

    reason: str
    state: Literal["refused", "loading", "unloaded"] = "refused"


@dataclass(frozen=True)
class Versions:
    """The versions of one model.

    by_number: maps each version number to its version, with the newest version first. current: the number of the active
    version. labels: maps each label to its version number. notes: maps version numbers to remarks about loaded
    versions. compared: maps a version number to the differences between this version and the version that was active
    before it. canary: the version with the label `canary` answers this share of the requests that name no version.
    """

    by_number: Mapping[int, Model | Unavailable]
    current: int | None
    labels: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)
    compared: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    canary: float = 0.0

    @property
    def unloaded(self) -> bool:
        """Whether there are versions, and all of them have been unloaded."""
        found = self.by_number.values()
        return bool(found) and all(isinstance(v, Unavailable) and v.state == "unloaded" for v in found)


_NO_VERSIONS = Versions(MappingProxyType({}), None)


class Repository:
    """Holds the versions of each model. Any method except `publish` may be called at any time.

    default: the name of the model that answers /predict, or None. endpoints: a dict from the path of a request, without
    percent-encoding, to its endpoint. generation: how many times `endpoints` has changed.
    """

    def __init__(self) -> None:
        self._models: Mapping[str, Versions] = {}
        self._retired: list[Model] = []
        self._failures: dict[int, tuple[Model, str]] = {}  # why a model fails, by the `id` of the model
        self._published: Mapping[bytes, Endpoint] = {}  # all endpoints, including those of models that fail their check
        self.default: str | None = None
        self.endpoints: dict[bytes, Endpoint] = {}
        self.generation = 0

    def publish(self, models: Mapping[str, Versions], default: str | None, endpoints: Mapping[bytes, Endpoint]) -> None:
        """Replace all models in one step. Call this method on the event loop, or before the event loop runs.

        A request that has already begun keeps the version that it began with.
        """
        before = list(self.ready_models())
        self._models, self.default = models, default
        self._published = endpoints
        self._failures = {id(m): self._failures[id(m)] for m in self.ready_models() if id(m) in self._failures}
        self._update_endpoints()
        served = {id(model) for model in self.ready_models()}
        retired = [model for model in before if id(model) not in served]
        if retired:
            self._retired.extend(retired)
            asyncio.get_running_loop().call_soon(self._close_idle)

    def _close_idle(self) -> None:
        """Close each replaced model that has no request left.

        If a replaced model still has requests, check again soon.
        """
        for model in [model for model in self._retired if not model.busy]:
            self._retired.remove(model)
            try:
                model.close()
            except Exception:  # a device may fail while its memory is released
                log.exception("internal error")
            log.info("%s/%s is unloaded", model.manifest.name, model.manifest.version)
        if self._retired:
            asyncio.get_running_loop().call_later(_DRAIN_SECONDS, self._close_idle)

    def failure(self, model: Model) -> str | None:
        """Return the reason why a loaded model fails its check now; None if the model answers requests."""
        found = self._failures.get(id(model))
        return None if found is None else found[1]

    def set_failure(self, model: Model, reason: str | None) -> None:
        """Stop serving a model because of `reason`, or serve the model again if `reason` is None.

        Call this method only on the event loop.
        """
        if reason == self.failure(model):
            return
        if reason is None:
            del self._failures[id(model)]
        elif any(model is served for served in self.ready_models()):
            self._failures[id(model)] = (model, reason)
        self._update_endpoints()

    def _update_endpoints(self) -> None:
        failing = {id(e) for model, _ in self._failures.values() for e in (model.friendly, model.oip, model.explain)}
        self.endpoints.clear()
        self.endpoints.update({path: e for path, e in self._published.items() if id(e.answering) not in failing})
        self.generation += 1

    def names(self) -> tuple[str, ...]:
        """Return the names of all models."""
        return tuple(self._models)

    def model(self, name: str) -> Versions:
        """Return the versions of the model `name`. Raises `UnknownModel`."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel("unknown model") from None

    def versions(self, name: str) -> Mapping[int, Model | Unavailable]:
        """Return every version of the model `name`, with the newest version first. Raises `UnknownModel`."""
        return self.model(name).by_number

    def ready_models(self) -> Iterator[Model]:
        """Yield every loaded version of every model."""
        for model in self._models.values():
            yield from (version for version in model.by_number.values() if isinstance(version, Model))

    def running_models(self) -> Iterator[Model]:
        """Yield every loaded version, and every replaced version that still has requests to answer."""
        yield from self.ready_models()
        yield from list(self._retired)

    def is_ready(self, name: str) -> bool:
        """Return whether the model `name` has a loaded version that passes its checks. Raises `UnknownModel`."""
        return any(isinstance(v, Model) and self.failure(v) is None for v in self.versions(name).values())

    @property
    def all_ready(self) -> bool:
        """Whether the server has models, and each model is ready.

        Models whose versions are all unloaded do not count.
        """
        wanted = [name for name, model in self._models.items() if not model.unloaded]
        return bool(wanted) and all(map(self.is_ready, wanted))

    @property
    def shown(self) -> Model | None:
        """The model that the documentation pages use for examples.

        `shown` is the default model if it is ready, and otherwise the first model that is ready.
        """
        if self.default is not None and (found := self._current(self.default)) is not None:
            return found
        return next((found for name in self._models if (found := self._current(name)) is not None), None)

    def _current(self, name: str) -> Model | None:
        model = self._models.get(name, _NO_VERSIONS)
        found = None if model.current is None else model.by_number.get(model.current)
        return found if isinstance(found, Model) and self.failure(found) is None else None

    @property
    def device_lost(self) -> bool:
        """Whether the device of a model has failed. After a failure, only a new process can use the device."""
        return any(model.runtime.lost for model in self.running_models())

    def drain(self) -> None:
        """Make every model refuse new rows, and make it run the rows in its queue immediately."""
        for model in self.running_models():
            for batcher in model.batchers:
                batcher.drain()

    def abandon_hung(self) -> None:
        """If a run of a model hangs, answer all requests of this model with an error."""
        for model in self.running_models():
            for batcher in model.batchers:
                if batcher.hung:
                    batcher.abandon()

    def friendly(self, name: str | None, version: int | str | None = None) -> Endpoint:
        """Return the endpoint of the friendly protocol. Raises the exceptions of `find`."""
        found = self.find(name, version)
        path = f"/v1/models/{found.manifest.name}:predict"
        return found.friendly if version is not None else self.endpoints.get(path.encode(), found.friendly)

    def oip(self, name: str, version: int | str | None = None) -> Endpoint:
        """Return the endpoint of the Open Inference Protocol. Raises the exceptions of `find`."""
        found = self.find(name, version)
        return found.oip if version is not None else self.endpoints.get(f"/v2/models/{name}/infer".encode(), found.oip)

    def find(self, name: str | None = None, version: int | str | None = None) -> Model:
        """Return the model for a request. Without `name`, the result is the default model.

        version: a number or a label. Without `version`, the result is the active version. Raises `UnknownModel`, or
        `ModelNotReady` if the version is not ready.
        """
        if name is None:
            name = self.default
        if name is None:
            if not self._models:
                raise ModelNotReady("the server has no model yet")
            raise UnknownModel("there are several models: name one in the path, /v1/models/{model}:predict")
        model = self.model(name)
        number = model.labels.get(version) if isinstance(version, str) else version
        if version is not None and number not in model.by_number:
            raise UnknownModel("unknown version of this model")
        found = self._current(name) if number is None else model.by_number[number]
        if isinstance(found, Model) and self.failure(found) is None:
            return found
        raise ModelNotReady("the model is not ready")
