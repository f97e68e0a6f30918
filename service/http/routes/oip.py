"""The routes of the Open Inference Protocol: health, metadata, inference, configuration, statistics, repository index.

This module defines the paths and the JSON forms of the protocol. The routes compute nothing themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from foldserve.service import errors
from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.engine.repository import Model, Repository
from foldserve.service.http.health import live, ready, started
from foldserve.service.http.routes.common import (
    answer,
    error_responses,
    parse_version,
    prediction_docs,
    requires,
    to_response,
)
from foldserve.service.metrics.prometheus import PrometheusMetrics
from foldserve.service.protocols import oip_documents


class InferTensor(BaseModel):
    """One tensor of a request or response.

    A binary tensor has `binary_data_size` in `parameters`, and has no `data`.
    """

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferRequest(BaseModel):
    """The body of an infer request. `parameters` may have `timeout`, in microseconds, and `binary_data_output`."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: Annotated[list[InferTensor], Field(min_length=1, max_length=1)]
    outputs: list[dict[str, Any]] | None = None


class InferResponse(BaseModel):
    """The response to an infer request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]


def router(service: Service, server: tuple[str, str]) -> APIRouter:
    """Create the routes. server: the name and the version of the server."""
    routes = APIRouter()
    repository, metrics = service.repository, service.metrics
    if isinstance(metrics, PrometheusMetrics):  # the statistics are computed from the metrics
        _add_server(routes, service, server, oip_documents.extensions(statistics=True))
        # this route is added first, because otherwise "stats" in the path would be read as a model name
        _add_statistics(routes, repository, metrics)
    else:
        _add_server(routes, service, server, oip_documents.extensions(statistics=False))
    _add_models(routes, repository)
    _add_infer(routes, repository)
    return routes


def _add_server(routes: APIRouter, service: Service, server: tuple[str, str], extensions: list[str]) -> None:
    name, version = server

    @routes.get("/v2", tags=["server"], summary="The name and version of the server, and its protocol extensions")
    @requires(Scope.PREDICT)
    async def metadata() -> dict[str, Any]:
        return {"name": name, "version": version, "extensions": extensions}

    # On the listeners of `foldserve serve`, `late_app.py` answers the health paths. Until the models are loaded for the
    # first time, `startup.py` answers the health paths.
    health: dict[str, Any] = {"tags": ["health"], "response_model": dict[str, bool]}

    @routes.get("/v2/health/live", summary="The process answers", **health)
    @requires(Scope.OPEN)
    async def is_live() -> Response:
        return to_response(live(service))

    @routes.get("/v2/health/started", summary="The models were loaded once", **health)
    @requires(Scope.OPEN)
    async def has_started() -> Response:
        return to_response(started(service))

    @routes.get("/v2/health/ready", summary="Every model has reproduced its golden outputs", **health)
    @requires(Scope.OPEN)
    async def is_ready() -> Response:
        return to_response(ready(service))


def _add_models(routes: APIRouter, repository: Repository) -> None:
    refused = error_responses(errors.UnknownModel, errors.ModelNotReady)

    def add(path: str, summary: str, describe: Callable[[Model], dict[str, Any]]) -> None:
        """Add two GET routes that end with `path`: for the active version of a model, and for a given version."""

        @routes.get("/v2/models/{model:name}" + path, tags=["models"], summary=summary, responses=refused)
        @requires(Scope.PREDICT)
        async def newest(model: str) -> dict[str, Any]:
            return describe(repository.find(model))

        @routes.get(
            "/v2/models/{model:name}/versions/{version}" + path, tags=["models"], summary=summary, responses=refused
        )
        @requires(Scope.PREDICT)
        async def named(model: str, version: str) -> dict[str, Any]:
            return describe(repository.find(model, parse_version(version)))

    def metadata(model: Model) -> dict[str, Any]:
        versions = repository.versions(model.manifest.name)
        ready = [str(number) for number, found in versions.items() if isinstance(found, Model)]
        return oip_documents.metadata(model.manifest, ready, provider=model.runtime.provider, why=model.runtime.why)

    add("", "Names, types and shapes of the tensors, and the execution provider", metadata)

    def is_ready(model: Model) -> dict[str, Any]:
        if model.runtime.lost:
            raise errors.ModelNotReady("the model is not ready")
        return {"name": model.manifest.name, "ready": True}

    add("/ready", "The model has reproduced its golden outputs", is_ready)
    add("/config", "The model configuration extension", lambda m: oip_documents.configuration(m.manifest, m.max_rows))


def _add_infer(routes: APIRouter, repository: Repository) -> None:
    schema = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    del schema["$defs"]  # `InferResponse` has already added `InferTensor` to the components
    content = {
        "application/json": {"schema": schema},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    docs = prediction_docs(content, {"model": InferResponse})

    @routes.post("/v2/models/{model:name}/infer", summary="Infer with the newest version", **docs)
    @requires(Scope.PREDICT)
    async def infer(request: Request, model: str) -> Response:
        return await answer(request, lambda: repository.oip(model))

    @routes.post("/v2/models/{model:name}/versions/{version}/infer", summary="Infer with one version", **docs)
    @requires(Scope.PREDICT)
    async def infer_version(request: Request, model: str, version: str) -> Response:
        return await answer(request, lambda: repository.oip(model, parse_version(version)))


def _add_statistics(routes: APIRouter, repository: Repository, metrics: PrometheusMetrics) -> None:
    refused = error_responses(errors.UnknownModel, errors.ModelNotReady)

    async def statistics(*models: Model) -> dict[str, Any]:
        metrics.flush()
        names = [(model.manifest.name, str(model.manifest.version)) for model in models]
        totals = await asyncio.to_thread(metrics.totals, names)
        return {"model_stats": [oip_documents.statistics(m.manifest, t) for m, t in zip(models, totals, strict=True)]}

    @routes.get("/v2/models/stats", tags=["models"], summary="The statistics of all models")
    @requires(Scope.METRICS)
    async def of_all() -> dict[str, Any]:
        return await statistics(*repository.ready_models())

    @routes.get(
        "/v2/models/{model:name}/stats",
        tags=["models"],
        summary="The statistics of the newest version",
        responses=refused,
    )
    @requires(Scope.METRICS)
    async def of_newest(model: str) -> dict[str, Any]:
        return await statistics(repository.find(model))

    @routes.get(
        "/v2/models/{model:name}/versions/{version}/stats",
        tags=["models"],
        summary="The statistics of one version",
        responses=refused,
    )
    @requires(Scope.METRICS)
    async def of_version(model: str, version: str) -> dict[str, Any]:
        return await statistics(repository.find(model, parse_version(version)))
