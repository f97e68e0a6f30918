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
from service.runtime import Device, Runtime, load

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
    """The models by name, their versions by number."""

    def __init__(self, models: Mapping[str, Mapping[int, Model | Refused]], default: str | None) -> None:
        self._models = models
        self._default = default

    def names(self) -> tuple[str, ...]:
        """List the models' names."""
        return tuple(self._models)

    def versions(self, name: str) -> Mapping[int, Model | Refused]:
        """Give every version of `name`, ascending. Raises `UnknownModel`."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel("unknown model") from None

    def find(self, name: str | None = None, version: int | None = None) -> Model:
        """Give the model to run: by default the only name, and the highest version that may be served.

        Raises `UnknownModel`, or `ModelNotReady` for one that was refused.
        """
        if name is None:
            name = self._default
            if name is None:
                raise UnknownModel("there are several models: name one in the path, /v1/models/{name}:predict")
        versions = self.versions(name)
        if version is not None and version not in versions:
            raise UnknownModel("unknown version of this model")
        wanted = [versions[version]] if version is not None else list(reversed(versions.values()))
        for candidate in wanted:
            if isinstance(candidate, Model):
                return candidate
        raise ModelNotReady("the model is not ready")


def open_repository(models: Path, device: Device, threads: int, max_rows: int, default: str | None) -> Repository:
    """Load every version of every model under `models`.

    A refused version is logged and the others serve. Raises `StartError` when the folder is missing or holds no
    model, when a model has no version that may be served, and when `default` is not one of the models.
    """
    if not models.is_dir():
        raise StartError(f"no models to serve: {models} is no folder")
    found = {
        folder.name: {number: _open(folder / str(number), device, threads, max_rows) for number in numbers}
        for folder in sorted(models.iterdir())
        if bundle.NAME.fullmatch(folder.name) and folder.is_dir() and (numbers := bundle.versions(folder))
    }
    if not found:
        raise StartError(f"no models to serve: {models} holds no <name>/<version>/")
    for name, versions in found.items():
        if all(isinstance(version, Refused) for version in versions.values()):
            reason = next(version.reason for version in reversed(versions.values()) if isinstance(version, Refused))
            raise StartError(f"no version of {name} may be served: {reason}")
    if default is not None and default not in found:
        raise StartError(f"the default model {default!r} is not among {', '.join(found)}")
    return Repository(found, default or (next(iter(found)) if len(found) == 1 else None))


def _open(path: Path, device: Device, threads: int, max_rows: int) -> Model | Refused:
    try:
        whole = bundle.read(path)
        if (whole.manifest.name, str(whole.manifest.version)) != (path.parent.name, path.name):
            raise BundleError(f"the manifest is of {whole.manifest.name}/{whole.manifest.version}", path)
        runtime, parity = load(whole, device, threads)
    except BundleError as error:
        log.error("refused %s", error)
        return Refused(error.reason)
    log.info(
        "%s/%s ready on %s (%s), golden rows within %.2g of the tolerance",
        path.parent.name,
        path.name,
        runtime.provider,
        runtime.why,
        parity.worst,
    )
    return Model(whole.manifest, runtime, parity, FriendlyCodec(whole.manifest, max_rows))
