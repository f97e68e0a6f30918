"""The Open Inference Protocol's routes: health, metadata, inference, configuration, statistics, repository index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from foldserve.service import errors
from foldserve.service.engine.repository import Model, Repository
from foldserve.service.http.routes.common import documented, limited, predicted, prediction, version_number
from foldserve.service.metrics import Metrics
from foldserve.service.protocols import oip_documents
from foldserve.service.protocols.rows import parse_json

_SMALL = 2**16  # bytes; of an index request

_EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")
_STATISTICS = "statistics"


class InferTensor(BaseModel):
    """One tensor of a request or an answer; with binary data, `parameters` has `binary_data_size` and no `data`."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferRequest(BaseModel):
    """What infer reads. `parameters` may hold `timeout` (microseconds) and `binary_data_output`."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InferTensor]
    outputs: list[dict[str, Any]] | None = None


class InferResponse(BaseModel):
    """What infer answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]


def router(
    repository: Repository, metrics: Metrics | None, ready: Callable[[], bool], server: tuple[str, str]
) -> APIRouter:
    """Make the routes. ready: whether new work is taken. server: its name and version."""
    routes = APIRouter()
    # Without metrics there are no statistics, and a client that is told of them asks for them.
    _add_server(routes, ready, server, _EXTENSIONS if metrics is None else (*_EXTENSIONS, _STATISTICS))
    if metrics is not None:
        _add_statistics(routes, repository, metrics)  # before the models, so that /v2/models/stats is none of them
    _add_models(routes, repository)
    _add_infer(routes, repository)
    _add_repository(routes, repository)
    return routes


def _add_server(
    routes: APIRouter, ready: Callable[[], bool], server: tuple[str, str], extensions: tuple[str, ...]
) -> None:
    name, version = server

    @routes.get("/v2", tags=["server"], summary="The server, and the extensions of the protocol that it has")
    async def metadata() -> dict[str, Any]:
        return {"name": name, "version": version, "extensions": list(extensions)}

    # The port is not listened on before every model has been proven.
    @routes.get("/v2/health/live", tags=["health"], summary="The process answers")
    async def is_live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/v2/health/ready", tags=["health"], summary="Every model has given its golden outputs")
    async def is_ready() -> JSONResponse:
        return JSONResponse({"ready": ready()}, 200 if ready() else 503)


def _add_models(routes: APIRouter, repository: Repository) -> None:
    refused = documented(errors.UnknownModel, errors.ModelNotReady)

    def of_model(path: str, summary: str, about: Callable[[Model], Any]) -> None:
        """Add a GET at `path` under the newest version of a model, and under a named one."""

        @routes.get("/v2/models/{model:name}" + path, tags=["models"], summary=summary, responses=refused)
        async def newest(model: str) -> dict[str, Any]:
            found: dict[str, Any] = about(repository.find(model))
            return found

        @routes.get(
            "/v2/models/{model:name}/versions/{version}" + path, tags=["models"], summary=summary, responses=refused
        )
        async def named(model: str, version: str) -> dict[str, Any]:
            found: dict[str, Any] = about(repository.find(model, version_number(version)))
            return found

    def metadata(model: Model) -> dict[str, Any]:
        ready = [str(n) for n, found in repository.versions(model.manifest.name).items() if isinstance(found, Model)]
        return oip_documents.metadata(model.manifest, ready, provider=model.runtime.provider, why=model.runtime.why)

    of_model("", "Names, types and shapes of the tensors, and what runs it", metadata)

    def ready(model: Model) -> dict[str, Any]:
        if model.runtime.lost:
            raise errors.ModelNotReady("the model is not ready")
        return {"name": model.manifest.name, "ready": True}

    of_model("/ready", "The model has given its golden outputs", ready)
    of_model(
        "/config", "The model configuration extension", lambda m: oip_documents.configuration(m.manifest, m.max_rows)
    )


def _add_infer(routes: APIRouter, repository: Repository) -> None:
    row = repository.find(repository.default or repository.names()[0]).manifest
    tensor = {"name": row.input.name, "shape": [1, len(row.features)], "datatype": "FP32", "data": row.golden.inputs[0]}
    schema = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    del schema["$defs"]  # InferTensor, which InferResponse puts among the components
    content = {
        "application/json": {"schema": schema, "example": {"inputs": [tensor]}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    described = prediction(content, {"model": InferResponse})

    @routes.post("/v2/models/{model:name}/infer", summary="Infer with the newest version", **described)
    async def infer(request: Request, model: str) -> Response:
        return await predicted(request, repository.find(model).oip)

    @routes.post("/v2/models/{model:name}/versions/{version}/infer", summary="Infer with one version", **described)
    async def infer_version(request: Request, model: str, version: str) -> Response:
        return await predicted(request, repository.find(model, version_number(version)).oip)


def _add_repository(routes: APIRouter, repository: Repository) -> None:
    @routes.post("/v2/repository/index", tags=["models"], summary="Every version of every model, and its state")
    async def index(request: Request) -> list[dict[str, str]]:
        body = await limited(request, _SMALL)
        wanted = parse_json(body) if body else {}
        only_ready = wanted.get("ready", False) if isinstance(wanted, dict) else None
        if type(only_ready) is not bool:
            raise errors.InvalidInput('the body is not an object whose "ready" is true or false')
        return [
            {"name": name, "version": str(version), "state": "READY", "reason": ""}
            if isinstance(found, Model)
            else {"name": name, "version": str(version), "state": "UNAVAILABLE", "reason": found.reason}
            for name in repository.names()
            for version, found in sorted(repository.versions(name).items())
            if isinstance(found, Model) or not only_ready
        ]

    @routes.post("/v2/repository/models/{model:name}/load", include_in_schema=False)
    @routes.post("/v2/repository/models/{model:name}/unload", include_in_schema=False)
    async def control(model: str) -> None:
        repository.versions(model)
        raise errors.InvalidInput("models are loaded when the server starts, and then alone")


def _add_statistics(routes: APIRouter, repository: Repository, metrics: Metrics) -> None:
    refused = documented(errors.UnknownModel, errors.ModelNotReady)

    def of(*models: Model) -> dict[str, Any]:
        totals = metrics.totals([(model.manifest.name, str(model.manifest.version)) for model in models])
        return {
            "model_stats": [oip_documents.statistics(m.manifest, done) for m, done in zip(models, totals, strict=True)]
        }

    @routes.get("/v2/models/stats", tags=["models"], summary="The statistics extension, of all models")
    async def of_all() -> dict[str, Any]:
        return of(*repository.live())

    @routes.get(
        "/v2/models/{model:name}/stats",
        tags=["models"],
        summary="The statistics of the newest version",
        responses=refused,
    )
    async def of_newest(model: str) -> dict[str, Any]:
        return of(repository.find(model))

    @routes.get(
        "/v2/models/{model:name}/versions/{version}/stats",
        tags=["models"],
        summary="The statistics of one version",
        responses=refused,
    )
    async def of_version(model: str, version: str) -> dict[str, Any]:
        return of(repository.find(model, version_number(version)))
