"""The routes of the friendly protocol: /predict, and /v1/models with states and manifests.

The routes compute nothing themselves.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from foldserve.service import errors
from foldserve.service.access.keys import Scope
from foldserve.service.bundle import Manifest
from foldserve.service.engine.repository import Model, Repository
from foldserve.service.http.routes.common import answer, error_responses, parse_version, prediction_docs, requires
from foldserve.service.protocols.answers import ARROW_TYPE, RAW_TYPE
from foldserve.service.protocols.friendly import JSON_TYPE

_BYTES = {"schema": {"type": "string", "format": "binary"}}


Value = float | bool | str | None
Label = bool | int | float | str


class Instances(BaseModel):
    """The body of /predict: rows as arrays in the order of the features, or as objects by feature name.

    A category is written as its own string or number, a boolean as true or false, a missing value as null.
    """

    instances: (
        Annotated[list[Annotated[list[Value], Field(min_length=1)]], Field(min_length=1)]
        | Annotated[list[Annotated[dict[str, Value], Field(min_length=1)]], Field(min_length=1)]
    )


class UnusualValue(BaseModel):
    """A warning about one value. If `row` is missing, the warning is about a whole column of the request."""

    row: int | None = None
    column: str | None = None
    warning: str


class Predictions(BaseModel):
    """The response of /predict. A classification has `probabilities`, with the classes in the order of the labels.

    With `named`, the probabilities of a row are an object from class names to probabilities. With `top` but without
    `named`, `classes` has the label for each probability of each row. The answer has `warnings` only if the request
    asks for warnings.
    """

    model: str
    version: int
    predictions: list[Label]
    classes: list[list[Label]] | None = None
    probabilities: list[list[float]] | list[dict[str, float]] | None = None
    warnings: list[UnusualValue] | None = None


class VersionStatus(BaseModel):
    """One version. `state` is `ready`, `failing`, `loading`, `refused` or `unloaded`.

    For a version that is ready, `why` tells why this execution provider was chosen, and `note` is a remark. For any
    other version, `why` tells why the version has this state. `compared` contains the measurements from the comparison
    with the previous active version.
    """

    version: int
    state: str
    provider: str | None = None
    why: str | None = None
    note: str | None = None
    compared: dict[str, Any] | None = None


class ModelStatus(BaseModel):
    """One model and all its versions.

    `current` is the active version. `labels` maps the names of versions to their numbers.
    """

    name: str
    ready: bool
    current: int | None
    labels: dict[str, int]
    versions: list[VersionStatus]


class ModelList(BaseModel):
    """All models. default: the name of the model that answers /predict; None if no model answers /predict."""

    models: list[ModelStatus]
    default: str | None


_QUERY = (
    {
        "name": "named",
        "in": "query",
        "description": "Whether the probabilities are objects by class name; only for a model with classes",
        "schema": {"type": "boolean", "default": False},
    },
    {
        "name": "top",
        "in": "query",
        "description": "The number of classes of each row, with the largest probability first; only with classes",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    },
    {
        "name": "warnings",
        "in": "query",
        "description": "Whether the answer names the values that training has not seen",
        "schema": {"type": "boolean", "default": False},
    },
)


def router(repository: Repository) -> APIRouter:
    """Create the routes."""
    routes = APIRouter()
    _add_predict(routes, repository)
    _add_models(routes, repository)
    return routes


def _add_predict(routes: APIRouter, repository: Repository) -> None:
    content = {JSON_TYPE.decode(): {"schema": Instances.model_json_schema()}, RAW_TYPE.decode(): _BYTES}
    response = {"model": Predictions, "content": {RAW_TYPE.decode(): _BYTES, ARROW_TYPE.decode(): _BYTES}}
    docs = prediction_docs(content, response, _QUERY)

    @routes.post("/predict", summary="Predict with the only, or the default, model", **docs)
    @requires(Scope.PREDICT)
    async def predict(request: Request) -> Response:
        return await answer(request, lambda: repository.friendly(None))

    @routes.post("/v1/models/{model:name}:predict", summary="Predict with the newest version", **docs)
    @requires(Scope.PREDICT)
    async def predict_model(request: Request, model: str) -> Response:
        return await answer(request, lambda: repository.friendly(model))

    @routes.post("/v1/models/{model:name}/versions/{version}:predict", summary="Predict with one version", **docs)
    @requires(Scope.PREDICT)
    async def predict_version(request: Request, model: str, version: str) -> Response:
        return await answer(request, lambda: repository.friendly(model, parse_version(version)))


def _add_models(routes: APIRouter, repository: Repository) -> None:
    not_found = error_responses(errors.UnknownModel)
    described = {200: {"model": Manifest}, **error_responses(errors.UnknownModel, errors.ModelNotReady)}

    @routes.get("/v1/models", tags=["models"], summary="All models, with their versions and states")
    @requires(Scope.PREDICT)
    async def models() -> ModelList:
        return ModelList(models=[_status(repository, name) for name in repository.names()], default=repository.default)

    @routes.get(
        "/v1/models/{model:name}",
        tags=["models"],
        summary="A model's versions and their states",
        responses=not_found,
    )
    @requires(Scope.PREDICT)
    async def status(model: str) -> ModelStatus:
        return _status(repository, model)

    @routes.get("/v1/models/{model:name}/metadata", tags=["models"], summary="The manifest", responses=described)
    @requires(Scope.PREDICT)
    async def metadata(model: str) -> Response:
        return _manifest(repository.find(model))

    @routes.get(
        "/v1/models/{model:name}/versions/{version}/metadata",
        tags=["models"],
        summary="One version's manifest",
        responses=described,
    )
    @requires(Scope.PREDICT)
    async def version_metadata(model: str, version: str) -> Response:
        return _manifest(repository.find(model, parse_version(version)))


def _status(repository: Repository, model: str) -> ModelStatus:
    found = repository.model(model)
    versions = [
        VersionStatus(
            version=number,
            state="ready",
            provider=version.runtime.provider,
            why=version.runtime.why,
            note=found.notes.get(number),
            compared=found.compared.get(number),
        )
        if isinstance(version, Model) and (failure := repository.failure(version)) is None
        else VersionStatus(version=number, state="failing", provider=version.runtime.provider, why=failure)
        if isinstance(version, Model)
        else VersionStatus(version=number, state=version.state, why=version.reason, compared=found.compared.get(number))
        for number, version in sorted(found.by_number.items())
    ]
    ready = any(version.state == "ready" for version in versions)
    return ModelStatus(name=model, ready=ready, current=found.current, labels=dict(found.labels), versions=versions)


def _manifest(model: Model) -> Response:
    return Response(model.manifest_json, media_type="application/json")
