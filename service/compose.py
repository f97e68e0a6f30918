"""Creates one `Service` from the settings. No other module puts the parts of a server together.

This module creates each part of the service. This module does not depend on the HTTP framework, sockets or processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.service.access.guard import Guard
from foldserve.service.access.keys import Keyring
from foldserve.service.engine.deployment import Deployment
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.lifecycle import Lifecycle
from foldserve.service.engine.live_quality import LiveQuality
from foldserve.service.engine.loader import Loader
from foldserve.service.engine.pool import Pool
from foldserve.service.engine.repository import Repository
from foldserve.service.engine.sampled import Sampling
from foldserve.service.errors import StartError
from foldserve.service.live.control import Control, LocalControl
from foldserve.service.live.coordinator import create_coordinator
from foldserve.service.live.scan import layout_of
from foldserve.service.machine import cgroup
from foldserve.service.metrics import Metrics
from foldserve.service.metrics.prometheus import PrometheusMetrics
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.settings import Settings
from foldserve.service.telemetry.access_log import AccessLog
from foldserve.service.telemetry.record import Observer, Sink

if TYPE_CHECKING:
    from foldserve.service.prediction_log.log import PredictionLog
    from foldserve.service.telemetry.otel import Exporters

# Decoding holds Python's interpreter lock most of the time, so more threads would not decode faster, and each
# additional thread would delay the event loop.
_BODY_THREADS = 4
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Service:
    """The parts of one serving process.

    page: whether the server shows its web page at the path /.
    strict_readiness: whether the server is ready only if every model is ready.
    memory: the counter of the bytes that the bodies of all requests hold.
    observer: gets the record of each request; None if requests are neither logged nor traced.
    exporters: send traces and metrics to a collector; None if OpenTelemetry is off.
    guard: checks the API keys; None if every client may send requests.
    endpoints: maps the path of a prediction request to its endpoint. The path has no percent-encoding. Look each path
    up when its request arrives: the mapping may change while the server runs.
    quality: the drift and the quality of the models.
    deployment: changes the models of this process. control: decides which models serve, and executes commands.
    """

    repository: Repository
    endpoints: Mapping[bytes, Endpoint]
    metrics: Metrics
    lifecycle: Lifecycle
    observer: Observer | None
    exporters: Exporters | None
    guard: Guard | None
    memory: BodyMemory
    strict_readiness: bool
    page: bool
    quality: LiveQuality
    deployment: Deployment
    control: Control
    prediction_log: PredictionLog | None

    def close(self) -> None:
        """Write the last lines of the logs, and send the last messages to the collector.

        Call this method after the last request.

        This call may block for some seconds.
        """
        self.metrics.flush()
        if self.observer is not None:
            self.observer.close()
        if self.exporters is not None:
            self.exporters.close()
        if self.prediction_log is not None:
            self.prediction_log.close()

    @property
    def ready(self) -> bool:
        """Whether the server accepts new work. If readiness is strict, every model must also serve."""
        return self.lifecycle.ready and (self.repository.all_ready or not self.strict_readiness)


def compose(settings: Settings, control: Control | None = None) -> Service:
    """Load every model and create the service.

    control: decides which models serve; by default, a control in this process. Raises the exceptions of
    `Control.start`, and `StartError` if an optional part can't be used.
    """
    control = control or LocalControl(partial(create_coordinator, settings))
    metrics = PrometheusMetrics() if settings.metrics else Metrics()
    exporters = _exporters(settings, metrics)
    observer = _observer(settings, exporters)
    guard = _guard(settings, metrics)
    memory = BodyMemory(settings.max_memory or 2 * settings.max_body)
    pool = Pool(min(_BODY_THREADS, cgroup.threads()))
    prediction_log = _prediction_log(settings, metrics)
    sampling = Sampling(prediction_log, settings.prediction_log_share) if prediction_log is not None else None
    loader = Loader(settings, pool, memory, metrics, observed=observer is not None, sampling=sampling)
    repository = Repository()
    deployment = Deployment(loader, repository, metrics, layout_of(settings), settings.default_model)
    quality = LiveQuality(repository, control, metrics)
    control.start(deployment)
    return Service(
        repository=repository,
        endpoints=repository.endpoints,
        metrics=metrics,
        lifecycle=Lifecycle(device_lost=lambda: repository.device_lost),
        observer=observer,
        exporters=exporters,
        guard=guard,
        memory=memory,
        strict_readiness=settings.strict_readiness,
        page=settings.page,
        quality=quality,
        deployment=deployment,
        control=control,
        prediction_log=prediction_log,
    )


def _exporters(settings: Settings, metrics: Metrics) -> Exporters | None:
    """Start the exporters of OpenTelemetry.

    Raises `StartError` if the settings ask for exporters and the exporters can't be used.
    """
    if not settings.otel:
        return None
    # This import is here, not at the top of the file, because it is slow and needs the extra `otel`.
    from foldserve.service.telemetry.otel import start_exporters

    return start_exporters(settings.otel_rate, metrics)


def _observer(settings: Settings, exporters: Exporters | None) -> Observer | None:
    sinks: list[Sink] = []
    if exporters is not None and exporters.traces is not None:
        sinks.append(exporters.traces)
    if settings.access_log:
        sinks.append(AccessLog(settings.log_format, settings.access_log_rate))
    return Observer(sinks) if sinks else None


def _prediction_log(settings: Settings, metrics: Metrics) -> PredictionLog | None:
    """Start the log of predictions if the settings ask for this log.

    Raises `StartError` if pyarrow is not installed, or if the folder can't be used.
    """
    path = settings.prediction_log
    if path is None:
        return None
    try:
        # This import is here, not at the top of the file, because it is slow and needs pyarrow.
        from foldserve.service.prediction_log.log import Limits, PredictionLog
    except ImportError as error:
        raise StartError("--prediction-log needs pyarrow: pip install 'foldserve[score]'") from error
    age, interval = settings.prediction_log_days * _DAY_SECONDS, settings.prediction_log_interval
    limits = Limits(settings.prediction_log_size, age, interval)
    return PredictionLog(path, limits, settings.prediction_log_exclude, layout_of(settings).folder, metrics)


def _guard(settings: Settings, metrics: Metrics) -> Guard | None:
    if not settings.keys:
        return None
    # The rate limit of a key holds for all workers together, through files in the workers' metrics folder.
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    guard = Guard(Keyring(settings.keys, Path(folder) if folder else None))
    metrics.for_keys(guard.take_counts)
    return guard
