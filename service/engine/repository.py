"""Finds a model by its name and version. This module does not know how models are loaded.

The name in a request is only a key of a dictionary. It never becomes a part of a file's path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from foldserve.service.bundle import Manifest, Parity
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.errors import ModelNotReady, UnknownModel
from foldserve.service.runtime.load import Runtime


@dataclass(frozen=True)
class Model:
    """One version that serves: its session has reproduced the golden outputs.

    max_rows: the largest number of rows in one request.
    """

    manifest: Manifest
    runtime: Runtime
    parity: Parity
    batcher: Batcher
    friendly: Endpoint
    oip: Endpoint
    max_rows: int

    @cached_property
    def manifest_json(self) -> bytes:
        """The manifest as JSON, encoded once."""
        return self.manifest.model_dump_json().encode()


@dataclass(frozen=True)
class Refused:
    """One version that does not serve, and the reason. A client may see the reason."""

    reason: str


class Repository:
    """The models by name, and their versions by number, newest first.

    default: the name of the model that answers /predict, or None.
    """

    def __init__(self, models: Mapping[str, Mapping[int, Model | Refused]], default: str | None) -> None:
        self._models = models
        self.default = default

    def names(self) -> tuple[str, ...]:
        """Return the names of all models."""
        return tuple(self._models)

    def versions(self, name: str) -> Mapping[int, Model | Refused]:
        """Return every version of `name`, newest first. Raises `UnknownModel`."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel("unknown model") from None

    def ready_models(self) -> Iterator[Model]:
        """Yield every version that serves, of every model."""
        for versions in self._models.values():
            yield from (version for version in versions.values() if isinstance(version, Model))

    def is_ready(self, name: str) -> bool:
        """Whether a version of `name` serves. Raises `UnknownModel`."""
        return any(isinstance(version, Model) for version in self.versions(name).values())

    @property
    def all_ready(self) -> bool:
        """Whether every model has a version that serves."""
        return all(map(self.is_ready, self._models))

    @property
    def shown(self) -> Model:
        """The model of the documentation's examples: the default if it serves, or else the first model that serves."""
        models = tuple(self.ready_models())
        return next((model for model in models if model.manifest.name == self.default), models[0])

    @property
    def device_lost(self) -> bool:
        """Whether the device of a model has failed. After that, only a new process can use the device."""
        return any(model.runtime.lost for model in self.ready_models())

    def drain(self) -> None:
        """Make every model refuse new rows, and run the rows in its queue."""
        for model in self.ready_models():
            model.batcher.drain()

    def abandon_hung(self) -> None:
        """Fail the requests of each model whose run hangs."""
        for model in self.ready_models():
            if model.batcher.hung:
                model.batcher.abandon()

    def find(self, name: str | None = None, version: int | None = None) -> Model:
        """Return the model to run. Without `name` it is the default model; without `version`, the newest version that
        serves.

        Raises `UnknownModel`, or `ModelNotReady` if the version was refused.
        """
        if name is None:
            name = self.default
        if name is None:
            raise UnknownModel("there are several models: name one in the path, /v1/models/{model}:predict")
        versions = self.versions(name)
        if version is not None and version not in versions:
            raise UnknownModel("unknown version of this model")
        candidates = versions.values() if version is None else [versions[version]]
        for candidate in candidates:
            if isinstance(candidate, Model):
                return candidate
        raise ModelNotReady("the model is not ready")
