"""Turns a bundle into a model that can answer requests.

This module reads the bundle, and verifies the model on the device. If the model passes its checks, this module creates
its batchers and its endpoints. If the model fails a check, this module returns the reason for the refusal. This module
does not depend on requests or HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from foldserve.service import bundle
from foldserve.service.bundle import Manifest, Parity
from foldserve.service.engine.admission import Admission
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.exchange import Codec, RequestLimits, Resources
from foldserve.service.engine.live_rows import LiveRows
from foldserve.service.engine.observed import LastRun
from foldserve.service.engine.pool import Pool
from foldserve.service.engine.repository import Model, Unavailable
from foldserve.service.engine.sampled import SampledCodec, Sampling
from foldserve.service.engine.threads import threads_per_run
from foldserve.service.errors import BundleError
from foldserve.service.explain.codec import ExplanationCodec
from foldserve.service.explain.runner import ExplanationRunner
from foldserve.service.metrics import EXPLAIN, Metrics, ignore_batch
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.ranges import Ranges
from foldserve.service.quality.monitor import Monitor
from foldserve.service.quality.monitor import Options as MonitorOptions
from foldserve.service.runtime.load import Runtime, load
from foldserve.service.runtime.precision import widen
from foldserve.service.runtime.session import Options
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# The largest number of rows that are explained in one run, because the arrays for more rows would not fit into the
# cache of the processor.
_MAX_EXPLAINED = 64


class Loader:
    """Loads models with the settings of one process. All models share `pool`, `memory`, `metrics` and one `Admission`.

    observed: whether requests have records. sampling: the settings of the prediction log; None without a prediction
    log.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        memory: BodyMemory,
        metrics: Metrics,
        *,
        observed: bool = False,
        sampling: Sampling | None = None,
    ) -> None:
        self._settings = settings
        self._admission = Admission(settings.max_wait)
        self._pool = pool
        self._memory = memory
        self._metrics = metrics
        self._observed = observed
        self._sampling = sampling
        self._monitor_options = MonitorOptions(
            drift=settings.drift,
            seconds=3600 * settings.drift_window,
            remembered=settings.feedback_rows,
            executor=ThreadPoolExecutor(1, "drift"),
        )

    def load_version(self, path: Path, name: str, version: int, *, rename: bool = False) -> Model | Unavailable:
        """Load the bundle in the folder `path`.

        rename: whether to name the model `name` even if the manifest has another name. If `rename` is false, the folder
        must be <name>/<version>, with the name and version of the manifest. Raises `DeviceError` if the requested
        device is not available.
        """
        started = time.perf_counter()
        try:
            contents = bundle.read(path)
            manifest = contents.manifest
            if rename:
                manifest = manifest.model_copy(update={"name": name, "version": version})
            else:
                bundle.require_place(contents)
            runtime, parity = load(contents, self._options(manifest))
        except BundleError as error:
            return Unavailable(error.reason)
        if contents.warning:
            log.warning("%s/%d: %s", name, version, contents.warning)
        log.info(
            "%s/%d ready on %s: %s; the golden rows use %.2g of the tolerance",
            *(name, version, runtime.provider, runtime.why, parity.worst),
        )
        self._metrics.record_load(manifest, time.perf_counter() - started, parity, runtime.providers)
        return self._assemble(path, manifest, runtime, parity, contents.digest or "")

    def _options(self, manifest: Manifest) -> Options:
        settings = self._settings
        return Options(
            device=settings.device,
            threads=threads_per_run(settings, manifest.model.size),
            precision=settings.precision,
            buckets=tuple(size for size in settings.buckets if size <= settings.max_batch),
            crossover=settings.crossover,
            gpu_memory=settings.gpu_memory,
            max_batch=settings.max_batch,
        )

    def _assemble(self, path: Path, manifest: Manifest, runtime: Runtime, parity: Parity, digest: str) -> Model:
        """Create a batcher that calls the runtime, and an endpoint for each protocol.

        Each endpoint calls a batcher. This function has more than 50 lines, because it creates all parts of a model and
        connects them.
        """
        settings, metrics = self._settings, self._metrics
        labels = (manifest.name, str(manifest.version))
        golden = np.array(manifest.golden.inputs, np.float32)  # null becomes NaN
        live_rows = LiveRows(manifest.input.shape[1], manifest.output.shape[1], settings.live_rows)
        monitor = Monitor(manifest, self._monitor_options)
        watchers = [live_rows.add] if settings.live_rows else []
        if monitor.sampler is not None:
            watchers.append(monitor.sampler.add)
        observe = metrics.for_batcher(*labels, lambda: batcher.queued_rows)
        last_run = LastRun(observe) if self._observed else None
        batcher = Batcher(
            runtime.run,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            max_delay=settings.max_delay,
            max_wait=settings.max_wait,
            observe=last_run or observe,
            watchers=watchers,
            unobserved=golden[:1],
        )
        batcher.warm_up(golden)
        created: list[object] = [observe]  # the parts of the metrics that belong to this model
        count_rows = Ranges(manifest.features).count_bytes
        limits = RequestLimits(settings.max_body, settings.timeout, settings.compression)

        def endpoint(
            protocol: str, codec: Codec, batcher: Batcher = batcher, last_run: LastRun | None = last_run
        ) -> Endpoint:
            # The metrics count unusual values only in predictions, not in explanations.
            requests = metrics.for_endpoint(*labels, protocol, count_rows if protocol != EXPLAIN else lambda _: {})
            created.append(requests)
            shared = (codec, self._admission, batcher, limits, self._pool, self._memory, metrics, requests)
            predictions = monitor.predictions if protocol != EXPLAIN else None
            return Endpoint(Resources(*shared, labels=(*labels, protocol), predictions=predictions), last_run)

        friendly = FriendlyCodec(manifest, settings.max_rows)
        explanations = ExplanationRunner(path, manifest)
        last_explained = LastRun(ignore_batch) if self._observed else None
        explained = Batcher(
            explanations.run,
            max_batch=min(settings.max_batch, _MAX_EXPLAINED),
            max_queue=settings.max_queue,
            max_wait=settings.max_wait,
            observe=last_explained or ignore_batch,
        )
        explanation_codec = ExplanationCodec(manifest, friendly, lambda: explanations.method)
        logged = self._logged(manifest)

        return Model(
            manifest,
            runtime,
            parity,
            batcher,
            friendly=endpoint("friendly", logged(friendly)),
            oip=endpoint("oip", logged(OipCodec(manifest, settings.max_rows))),
            explain=endpoint(EXPLAIN, explanation_codec, explained, last_explained),
            max_rows=settings.max_rows,
            live_rows=live_rows,
            monitor=monitor,
            tolerance=widen(manifest.certificate.tolerance, settings.precision),
            digest=digest + manifest.model.sha256,
            folder=path,
            forget=lambda: metrics.forget(*labels, created),
        )

    def _logged(self, manifest: Manifest) -> Callable[[Codec], Codec]:
        """Return a function that wraps a codec.

        If there is a prediction log, the wrapped codec passes a sample of its requests to the log.
        """
        sampling = self._sampling
        if sampling is None:
            return lambda codec: codec
        recorder = sampling.log.open(manifest)
        return lambda codec: SampledCodec(codec, recorder, sampling.share)
