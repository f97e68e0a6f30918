"""Turns a folder of bundles into models that serve. This module reads each bundle and verifies it on the device.

For each model that passes, it creates a batcher and the endpoints. For each refused version, the module keeps the
reason. This module does not know requests or HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from foldserve.service import bundle
from foldserve.service.bundle import Manifest, Parity
from foldserve.service.engine.admission import Admission
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.exchange import Codec, RequestLimits, Resources
from foldserve.service.engine.pool import Pool
from foldserve.service.engine.repository import Model, Refused, Repository
from foldserve.service.engine.threads import threads_per_run
from foldserve.service.errors import BundleError, StartError
from foldserve.service.metrics import Metrics
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.ranges import Ranges
from foldserve.service.runtime.load import Runtime, load
from foldserve.service.runtime.session import Options
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

_MOST_REASONS = 3  # the largest number of models that the error message of a failed start names


class Loader:
    """Loads models with the settings of one process. All models share `pool`, `memory`, `metrics` and one admission."""

    def __init__(self, settings: Settings, pool: Pool, memory: BodyMemory, metrics: Metrics) -> None:
        self._settings = settings
        self._admission = Admission(settings.max_wait)
        self._pool = pool
        self._memory = memory
        self._metrics = metrics

    def load_repository(self) -> Repository:
        """Load every version of every model in the settings' folder.

        Refused versions are logged, and the other versions serve. A model is not ready if all its versions are refused.
        Raises `StartError` if the folder is missing or holds no model, if every version of every model is refused, or
        if the default model is missing. Raises `DeviceError` if the requested device is not available.
        """
        folder = self._settings.models
        try:
            models = self._load_folder(folder)
        except OSError as error:
            raise StartError(f"can't read {error.filename}: {error.strerror}") from error
        if not models:
            raise StartError(_nothing_to_serve(folder))
        repository = Repository(models, self._default(list(models)))
        if not any(map(repository.is_ready, models)):
            raise StartError(_nothing_serves(models))
        for name, versions in models.items():
            for number, found in versions.items():
                if isinstance(found, Refused):
                    log.error("refused %s: %s", folder / name / str(number), found.reason)
            if not repository.is_ready(name):
                log.error("%s is not ready: none of its versions may be served", name)
        return repository

    def load_version(self, path: Path) -> Model | Refused:
        """Load the bundle in <models>/<name>/<version>.

        Raises `DeviceError` if the requested device is not available.
        """
        started = time.perf_counter()
        name, version = path.parent.name, path.name
        try:
            contents = bundle.read(path)
            bundle.require_place(contents)
            manifest = contents.manifest
            runtime, parity = load(contents, self._options(manifest))
        except BundleError as error:
            self._metrics.record_refused(name, version)
            return Refused(error.reason)
        if contents.warning:
            log.warning("%s/%s: %s", name, version, contents.warning)
        log.info(
            "%s/%s ready on %s: %s; the golden rows use %.2g of the tolerance",
            *(name, version, runtime.provider, runtime.why, parity.worst),
        )
        self._metrics.record_load(manifest, time.perf_counter() - started, parity, runtime.providers)
        return self._assemble(manifest, runtime, parity)

    def _load_folder(self, folder: Path) -> dict[str, dict[int, Model | Refused]]:
        if not folder.is_dir():
            raise StartError(f"no models to serve: {folder} is not a directory")
        models: dict[str, dict[int, Model | Refused]] = {}
        for entry in sorted(folder.iterdir()):
            if not bundle.NAME.fullmatch(entry.name) or not entry.is_dir():
                continue
            try:
                numbers = bundle.versions(entry)
            except OSError as error:
                log.error("can't read %s: %s", entry, error.strerror)
                self._metrics.record_refused(entry.name, "")
                models[entry.name] = {}
                continue
            if numbers:
                models[entry.name] = {number: self.load_version(entry / str(number)) for number in reversed(numbers)}
        return models

    def _default(self, names: list[str]) -> str | None:
        default = self._settings.default_model
        if default is None:
            return names[0] if len(names) == 1 else None
        if default not in names:
            raise StartError(f"the default model {default!r} is not among {', '.join(names)}")
        return default

    def _options(self, manifest: Manifest) -> Options:
        settings = self._settings
        return Options(
            device=settings.device,
            threads=threads_per_run(settings, manifest.model.size),
            precision=settings.precision,
            buckets=tuple(size for size in settings.buckets if size <= settings.max_batch),
            crossover=settings.crossover,
            gpu_memory=settings.gpu_memory,
        )

    def _assemble(self, manifest: Manifest, runtime: Runtime, parity: Parity) -> Model:
        """Put a batcher before the runtime, and an endpoint for each protocol before the batcher."""
        settings, metrics = self._settings, self._metrics
        labels = (manifest.name, str(manifest.version))
        batcher = Batcher(
            runtime.run,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            max_delay=settings.max_delay,
            max_wait=settings.max_wait,
            observe=metrics.for_batcher(*labels, lambda: batcher.queued_rows),
        )
        count_rows = Ranges(manifest.features).count_bytes
        limits = RequestLimits(settings.max_body, settings.timeout, settings.compression)

        def endpoint(protocol: str, codec: Codec) -> Endpoint:
            requests = metrics.for_endpoint(*labels, protocol, count_rows)
            return Endpoint(
                Resources(codec, self._admission, batcher, limits, self._pool, self._memory, metrics, requests)
            )

        return Model(
            manifest,
            runtime,
            parity,
            batcher,
            friendly=endpoint("friendly", FriendlyCodec(manifest, settings.max_rows)),
            oip=endpoint("oip", OipCodec(manifest, settings.max_rows)),
            max_rows=settings.max_rows,
        )


def _nothing_to_serve(folder: Path) -> str:
    """Say why `folder` has no models, and what to do."""
    text = f"no models to serve: {folder} holds no <name>/<version>/"
    if any(folder.iterdir()):
        return text
    return (
        f"{text}; it is empty: train into it with foldserve-train fit, or mount the folder of your bundles "
        "(Docker makes a missing one, empty and owned by root)"
    )


def _nothing_serves(models: Mapping[str, Mapping[int, Model | Refused]]) -> str:
    """Say why no model serves. The text names some of the models, each with the reason for its newest version."""
    reasons = [
        f"no version of {name} may be served: {found.reason}"
        for name, versions in models.items()
        for found in list(versions.values())[:1]
        if isinstance(found, Refused)
    ]
    reasons += [f"the folder of {name} can't be read" for name, versions in models.items() if not versions]
    more = f"; and {len(reasons) - _MOST_REASONS} more models" if len(reasons) > _MOST_REASONS else ""
    return "; ".join(reasons[:_MOST_REASONS]) + more
