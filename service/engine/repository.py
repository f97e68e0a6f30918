"""Names and versions -> live models, each with its runtime, its batcher and an endpoint for each protocol.

Loads a folder of bundles, and keeps the reason of each that it refused.

A name is a key of a dictionary here, never a path made from a request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from foldserve.service import bundle
from foldserve.service.bundle import Bundle, Manifest, Parity
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Codec, Endpoint, Pool, RequestLimits
from foldserve.service.errors import BundleError, ModelNotReady, StartError, UnknownModel
from foldserve.service.machine import cgroup
from foldserve.service.metrics import Metrics
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.runtime.load import Runtime, load
from foldserve.service.runtime.session import Options
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# Below this a second thread gains less than it costs; measured.
_SMALL_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Model:
    """One version that may be served: its session gave the golden outputs."""

    manifest: Manifest
    runtime: Runtime
    parity: Parity
    batcher: Batcher
    friendly: Endpoint
    oip: Endpoint
    max_rows: int  # of one request


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

    def live(self) -> Iterator[Model]:
        """Give every version of every model that may be served."""
        for versions in self._models.values():
            yield from (version for version in versions.values() if isinstance(version, Model))

    @property
    def lost(self) -> bool:
        """Whether a model's device has failed, and nothing but a new process will help."""
        return any(model.runtime.lost for model in self.live())

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


def open_repository(settings: Settings, metrics: Metrics | None = None) -> Repository:
    """Load every version of every model in the settings' folder.

    A refused version is logged and the others serve. Raises `StartError` when the folder is missing or holds no
    model, when a model has no version that may be served, and when the default model is not one of the models;
    `DeviceError` when the device that was asked for does not answer.
    """
    folder, default = settings.models, settings.default_model
    try:
        found = _open_all(folder, settings, metrics)
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


def _open_all(folder: Path, settings: Settings, metrics: Metrics | None) -> dict[str, dict[int, Model | Refused]]:
    if not folder.is_dir():
        raise StartError(f"no models to serve: {folder} is no folder")
    pool = Pool(threads=cgroup.threads())
    return {
        entry.name: {version: _open(entry / str(version), settings, pool, metrics) for version in reversed(versions)}
        for entry in sorted(folder.iterdir())
        if bundle.NAME.fullmatch(entry.name) and entry.is_dir() and (versions := bundle.versions(entry))
    }


def _open(path: Path, settings: Settings, pool: Pool, metrics: Metrics | None) -> Model | Refused:
    started = time.perf_counter()
    try:
        whole = bundle.read(path)
        if (whole.manifest.name, str(whole.manifest.version)) != (path.parent.name, path.name):
            raise BundleError(f"the manifest is of {whole.manifest.name}/{whole.manifest.version}", path)
        runtime, parity = load(whole, how_to_run(settings, whole))
    except BundleError as error:
        return Refused(error.reason)
    log.info(
        "%s/%s ready on %s: %s; the golden rows use %.2g of the tolerance",
        *(path.parent.name, path.name, runtime.provider, runtime.why, parity.worst),
    )
    if metrics is not None:
        categorical = [feature.name for feature in whole.manifest.features if feature.kind == "categorical"]
        seconds = time.perf_counter() - started
        metrics.loaded(path.parent.name, path.name, seconds, parity, runtime.providers, categorical)
    return _live(whole.manifest, runtime, parity, settings, pool, metrics)


def how_to_run(settings: Settings, whole: Bundle) -> Options:
    """Choose how a bundle's model is run: what is the settings' own, and threads that fit its size."""
    threads = settings.threads
    if not threads:
        small = whole.manifest.model.size < _SMALL_BYTES
        threads = 1 if small else max(1, cgroup.threads() // settings.workers)
    return Options(
        device=settings.device,
        threads=threads,
        precision=settings.precision,
        buckets=tuple(size for size in settings.buckets if size <= settings.max_batch),
        crossover=settings.crossover,
        gpu_memory=settings.gpu_memory,
    )


def _live(
    manifest: Manifest, runtime: Runtime, parity: Parity, settings: Settings, pool: Pool, metrics: Metrics | None
) -> Model:
    """Put a batcher before the runtime, and an endpoint for each protocol before that."""
    labels = (manifest.name, str(manifest.version))
    batcher = Batcher(
        runtime.run,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_delay=settings.max_delay,
        observe=None if metrics is None else metrics.of_batches(*labels, lambda: batcher.queued_rows),
    )
    limits = RequestLimits(settings.max_body, settings.timeout, settings.compression)

    def endpoint(protocol: str, codec: Codec) -> Endpoint:
        requests = None if metrics is None else metrics.of_requests(*labels, protocol)
        return Endpoint(codec, batcher, limits, pool, metrics, requests)

    return Model(
        manifest,
        runtime,
        parity,
        batcher,
        friendly=endpoint("friendly", FriendlyCodec(manifest, settings.max_rows)),
        oip=endpoint("oip", OipCodec(manifest, settings.max_rows)),
        max_rows=settings.max_rows,
    )
