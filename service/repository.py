"""Names and versions -> live models. Loads a folder of bundles, and keeps the reason of each that it refused.

A name is a key of a dictionary here, never a path made from a request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service import bundle
from service.bundle import Manifest, Parity
from service.codecs.friendly import FriendlyCodec
from service.errors import BundleError, ModelNotReady, StartError, UnknownModel
from service.runtime import Runtime, load
from service.settings import Settings

log = logging.getLogger("foldserve")


@dataclass(frozen=True)
class Model:
    """One version that may be served: its session gave the golden outputs."""

    manifest: Manifest
    runtime: Runtime
    parity: Parity
    codec: FriendlyCodec


@dataclass(frozen=True)
class Refused:
    """One version that may not be served, and why."""

    reason: str


class Repository:
    """The models by name, their versions by number, newest first. `default` is the name that /predict answers for."""

    def __init__(self, models: Mapping[str, Mapping[int, Model | Refused]], default: str | None) -> None:
        self._models = models
        self.default = default

    def names(self) -> tuple[str, ...]:
        """List the models' names."""
        return tuple(self._models)

    def versions(self, name: str) -> Mapping[int, Model | Refused]:
        """Give every version of `name`, newest first. Raises `UnknownModel`."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel("unknown model") from None

    def find(self, name: str | None = None, version: int | None = None) -> Model:
        """Give the model to run: by default the only name, and the highest version that may be served.

        Raises `UnknownModel`, or `ModelNotReady` for one that was refused.
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


def open_repository(settings: Settings) -> Repository:
    """Load every version of every model in the settings' folder.

    A refused version is logged and the others serve. Raises `StartError` when the folder is missing or holds no
    model, when a model has no version that may be served, and when the default model is not one of the models;
    `DeviceError` when the device that was asked for does not answer.
    """
    folder, default = settings.models, settings.default_model
    try:
        found = _open_all(folder, settings)
    except OSError as error:
        raise StartError(f"can't read {error.filename}: {error.strerror}") from error
    if not found:
        raise StartError(f"no models to serve: {folder} holds no <name>/<version>/")
    for name, opened in found.items():
        refused = [version for version in opened.values() if isinstance(version, Refused)]
        if len(refused) == len(opened):
            raise StartError(f"no version of {name} may be served: {refused[0].reason}")
        for version, state in opened.items():
            if isinstance(state, Refused):
                log.error("refused %s: %s", folder / name / str(version), state.reason)
    if default is None and len(found) == 1:
        (default,) = found
    if default is not None and default not in found:
        raise StartError(f"the default model {default!r} is not among {', '.join(found)}")
    return Repository(found, default)


def _open_all(folder: Path, settings: Settings) -> dict[str, dict[int, Model | Refused]]:
    if not folder.is_dir():
        raise StartError(f"no models to serve: {folder} is no folder")
    return {
        entry.name: {version: _open(entry / str(version), settings) for version in reversed(versions)}
        for entry in sorted(folder.iterdir())
        if bundle.NAME.fullmatch(entry.name) and entry.is_dir() and (versions := bundle.versions(entry))
    }


def _open(path: Path, settings: Settings) -> Model | Refused:
    try:
        whole = bundle.read(path)
        if (whole.manifest.name, str(whole.manifest.version)) != (path.parent.name, path.name):
            raise BundleError(f"the manifest is of {whole.manifest.name}/{whole.manifest.version}", path)
        runtime, parity = load(whole, settings.device, settings.threads)
    except BundleError as error:
        return Refused(error.reason)
    log.info(
        "%s/%s ready on %s: %s; the golden rows use %.2g of the tolerance",
        *(path.parent.name, path.name, runtime.provider, runtime.why, parity.worst),
    )
    return Model(whole.manifest, runtime, parity, FriendlyCodec(whole.manifest, settings.max_rows))
