"""Creates one `Service` from the settings. No other module puts the parts of a server together.

This module knows how to create each part. It does not know the HTTP framework, sockets or processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foldserve.service.access.guard import Guard
from foldserve.service.access.keys import Keyring
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.lifecycle import Lifecycle
from foldserve.service.engine.loader import Loader
from foldserve.service.engine.pool import Pool
from foldserve.service.engine.repository import Repository
from foldserve.service.errors import ModelNotReady
from foldserve.service.machine import cgroup
from foldserve.service.metrics import Metrics
from foldserve.service.metrics.prometheus import PrometheusMetrics
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.settings import Settings

# Decoding holds the interpreter most of the time. So more threads are not faster, and each thread delays the event
# loop.
_BODY_THREADS = 4


@dataclass(frozen=True)
class Service:
    """The parts of one serving process.

    strict_readiness: whether the server is ready only if every model is ready.
    memory: counts the bodies of all requests.
    guard: checks the API keys; None if every client may send requests.
    endpoints: by the path of a prediction request, without percent-encoding. Look each path up when its request
    arrives: the mapping may change while the server runs.
    """

    repository: Repository
    endpoints: Mapping[bytes, Endpoint]
    metrics: Metrics
    lifecycle: Lifecycle
    guard: Guard | None
    memory: BodyMemory
    strict_readiness: bool

    @property
    def ready(self) -> bool:
        """Whether the server accepts new work. If readiness is strict, every model must also serve."""
        return self.lifecycle.ready and (self.repository.all_ready or not self.strict_readiness)


def compose(settings: Settings) -> Service:
    """Load every model and create the service. Raises the exceptions of `Loader.load_repository`."""
    metrics = PrometheusMetrics() if settings.metrics else Metrics()
    guard = _guard(settings, metrics)
    memory = BodyMemory(settings.max_memory or 2 * settings.max_body)
    repository = Loader(settings, Pool(min(_BODY_THREADS, cgroup.threads())), memory, metrics).load_repository()
    return Service(
        repository=repository,
        endpoints=endpoints_by_path(repository),
        metrics=metrics,
        lifecycle=Lifecycle(device_lost=lambda: repository.device_lost),
        guard=guard,
        memory=memory,
        strict_readiness=settings.strict_readiness,
    )


def _guard(settings: Settings, metrics: Metrics) -> Guard | None:
    if not settings.keys:
        return None
    # The workers share the rates of the keys through files in the folder of their metrics.
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    guard = Guard(Keyring(settings.keys, Path(folder) if folder else None))
    metrics.for_keys(guard.take_counts)
    return guard


def endpoints_by_path(repository: Repository) -> dict[bytes, Endpoint]:
    """Map the path of each prediction to the endpoint of its model. A refused version has no path."""
    endpoints = {}
    for name in repository.names():
        for number in (None, *repository.versions(name)):
            try:
                model = repository.find(name, number)
            except ModelNotReady:
                continue
            versioned = f"{name}/versions/{number}" if number else name
            endpoints[f"/v1/models/{versioned}:predict".encode()] = model.friendly
            endpoints[f"/v2/models/{versioned}/infer".encode()] = model.oip
    if repository.default is not None and repository.is_ready(repository.default):
        endpoints[b"/predict"] = repository.find().friendly
    return endpoints
