"""Turns a folder of bundles into models that serve: read, verify on the device, put a batcher and endpoints before it.

It keeps the reason of each version that it refuses. It does not know requests or HTTP.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from foldserve.service import bundle
from foldserve.service.bundle import Manifest, Parity
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.exchange import Codec, RequestLimits, Resources
from foldserve.service.engine.pool import Pool
from foldserve.service.engine.repository import Model, Refused, Repository
from foldserve.service.engine.threads import threads_per_run
from foldserve.service.errors import BundleError, StartError
from foldserve.service.metrics import Metrics
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.runtime.load import Runtime, load
from foldserve.service.runtime.session import Options
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")


class Loader:
    """Loads models with one process's settings. All of them share `pool` and `metrics`."""

    def __init__(self, settings: Settings, pool: Pool, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._metrics = metrics

    def load_repository(self) -> Repository:
        """Load every version of every model in the settings' folder.

        A refused version is logged, and the others serve. Raises `StartError` if the folder is missing or holds no
        model, if no version of a model may be served, or if the default model is missing; `DeviceError` if the
        requested device is not available.
        """
        folder = self._settings.models
        try:
            models = self._load_folder(folder)
        except OSError as error:
            raise StartError(f"can't read {error.filename}: {error.strerror}") from error
        if not models:
            raise StartError(f"no models to serve: {folder} holds no <name>/<version>/")
        for name, versions in models.items():
            refused = {number: found for number, found in versions.items() if isinstance(found, Refused)}
            if len(refused) == len(versions):
                raise StartError(f"no version of {name} may be served: {next(iter(refused.values())).reason}")
            for number, found in refused.items():
                log.error("refused %s: %s", folder / name / str(number), found.reason)
        return Repository(models, self._default(list(models)))

    def load_version(self, path: Path) -> Model | Refused:
        """Load the bundle in <models>/<name>/<version>.

        Raises `DeviceError` if the requested device is not available.
        """
        started = time.perf_counter()
        name, version = path.parent.name, path.name
        try:
            contents = bundle.read(path)
            manifest = contents.manifest
            if (manifest.name, str(manifest.version)) != (name, version):
                raise BundleError(f"the manifest is of {manifest.name}/{manifest.version}", path)
            runtime, parity = load(contents, self._options(manifest))
        except BundleError as error:
            return Refused(error.reason)
        log.info(
            "%s/%s ready on %s: %s; the golden rows use %.2g of the tolerance",
            *(name, version, runtime.provider, runtime.why, parity.worst),
        )
        categorical = [feature.name for feature in manifest.features if feature.kind == "categorical"]
        seconds = time.perf_counter() - started
        self._metrics.record_load(name, version, seconds, parity, runtime.providers, categorical)
        return self._assemble(manifest, runtime, parity)

    def _load_folder(self, folder: Path) -> dict[str, dict[int, Model | Refused]]:
        if not folder.is_dir():
            raise StartError(f"no models to serve: {folder} is not a directory")
        return {
            entry.name: {number: self.load_version(entry / str(number)) for number in reversed(numbers)}
            for entry in sorted(folder.iterdir())
            if bundle.NAME.fullmatch(entry.name) and entry.is_dir() and (numbers := bundle.versions(entry))
        }

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
            observe=metrics.for_batcher(*labels, lambda: batcher.queued_rows),
        )
        limits = RequestLimits(settings.max_body, settings.timeout, settings.compression)

        def endpoint(protocol: str, codec: Codec) -> Endpoint:
            requests = metrics.for_endpoint(*labels, protocol)
            return Endpoint(Resources(codec, batcher, limits, self._pool, metrics, requests))

        return Model(
            manifest,
            runtime,
            parity,
            batcher,
            friendly=endpoint("friendly", FriendlyCodec(manifest, settings.max_rows)),
            oip=endpoint("oip", OipCodec(manifest, settings.max_rows)),
            max_rows=settings.max_rows,
        )
