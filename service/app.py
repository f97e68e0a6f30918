"""The whole composition: settings -> repository -> routes. HTTP lives here and nowhere else.

An endpoint translates and delegates: bytes in, `codec.decode`, `runtime.run`, `codec.encode`, bytes out.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service import errors
from service.bundle import Manifest
from service.repository import Model, Repository, open_repository
from service.settings import Settings

# Every error that a request can meet, and its status. OpenAPI is made from it; a test fails when an error is missing.
STATUS: dict[type[errors.RequestError], tuple[int, str]] = {
    errors.InvalidInput: (400, "The body is not a list of rows of this model."),
    errors.UnknownModel: (404, "There is no such model or version."),
    errors.TooLarge: (413, "The body is larger than `max_body`."),
    errors.UnsupportedMedia: (415, "The body is not JSON, or is compressed."),
    errors.RuntimeFailure: (500, "The model did not run, or gave a value that is not finite."),
    errors.ModelNotReady: (503, "The model is known, and none of its versions may be served."),
}

log = logging.getLogger("foldserve")

WEB = Path(__file__).parent / "web"


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: str


class Instances(BaseModel):
    """What /predict reads: rows as arrays in the features' order, or as objects by feature name."""

    instances: list[list[float | None]] | list[dict[str, float | None]]


class Predictions(BaseModel):
    """What /predict answers. `probabilities` is there for classification, columns in the order of the labels."""

    model: str
    version: int
    predictions: list[bool | int | float | str]
    probabilities: list[list[float]] | None = None


class VersionStatus(BaseModel):
    """One version: `ready`, or `refused`; `why` it runs on this provider, or is not served."""

    version: int
    state: str
    provider: str | None = None
    why: str | None = None


class ModelStatus(BaseModel):
    """One model and all its versions."""

    name: str
    ready: bool
    versions: list[VersionStatus]


class _NameConvertor(StringConvertor):
    """A model's name in a path. It ends before a colon, so that `name:predict` is no name, and GET on it is a 405."""

    regex = "[^/:]+"


def create_app(settings: Settings) -> FastAPI:
    """Load every model, then build the app. Raises `FoldserveError` when there is nothing to serve."""
    repository = open_repository(settings)
    register_url_convertor("name", _NameConvertor())
    app = FastAPI(
        title="foldserve",
        version=installed_version("foldserve"),
        description="Batch-norm MLPs, folded and certified. `GET /v1/models/{model}/metadata` names the features.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False},
        # Also keeps FastAPI from documenting an answer of its own for what it would find invalid.
        responses={"default": {"model": ErrorBody, "description": "Any other error."}},
        exception_handlers={
            errors.RequestError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _left,
            Exception: _failed,
        },
    )
    app.state.repository = repository
    _add_predict(app, repository, settings)
    _add_models(app, repository)
    _add_health(app)
    _add_pages(app)
    return app


def _add_predict(app: FastAPI, repository: Repository, settings: Settings) -> None:
    shown = repository.find(repository.default or repository.names()[0]).manifest
    content = {
        "schema": Instances.model_json_schema(),
        "example": {"instances": [shown.golden.inputs[0]]},  # so that "Try it out" works as it stands
    }
    documented: dict[str, Any] = {
        "tags": ["predict"],
        "responses": {200: {"model": Predictions}, **_documented(*STATUS)},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": content}}},
    }

    # More at once than there are cores would only hold more bodies in memory.
    limiter = CapacityLimiter(len(os.sched_getaffinity(0)))

    async def answer(request: Request, name: str | None = None, version: int | None = None) -> Response:
        model = repository.find(name, version)
        body = await _read_body(request, settings.max_body)
        content = await to_thread.run_sync(_predict, model, body, limiter=limiter)
        return Response(content, media_type="application/json")

    @app.post("/predict", summary="Predict with the only, or the default, model", **documented)
    async def predict(request: Request) -> Response:
        return await answer(request)

    @app.post("/v1/models/{model:name}:predict", summary="Predict with the newest version", **documented)
    async def predict_model(request: Request, model: str) -> Response:
        return await answer(request, model)

    @app.post("/v1/models/{model:name}/versions/{version}:predict", summary="Predict with one version", **documented)
    async def predict_version(request: Request, model: str, version: str) -> Response:
        return await answer(request, model, _version(version))


def _predict(model: Model, body: bytes) -> bytes:
    return model.codec.encode(model.runtime.run(model.codec.decode(body)))


def _version(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise errors.UnknownModel("unknown version of this model")
    return int(text)


async def _read_body(request: Request, cap: int) -> bytes:
    """Read the body up to `cap` bytes. Raises `UnsupportedMedia`, or `TooLarge` before more than that is kept."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise errors.UnsupportedMedia("the body is read as application/json only: send that as the Content-Type")
    if any(encoding.lower() != "identity" for encoding in request.headers.getlist("content-encoding")):
        raise errors.UnsupportedMedia("a compressed body is not read here")
    too_large = errors.TooLarge(f"the body is larger than {cap} bytes")
    if int(request.headers.get("content-length", 0)) > cap:  # the HTTP parser has refused anything but digits
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > cap:
            raise too_large
    return bytes(body)


def _add_models(app: FastAPI, repository: Repository) -> None:
    not_found = _documented(errors.UnknownModel)
    not_ready = _documented(errors.UnknownModel, errors.ModelNotReady)

    @app.get(
        "/v1/models/{model:name}",
        tags=["models"],
        summary="A model's versions and their states",
        responses=not_found,
    )
    async def status(model: str) -> ModelStatus:
        versions = [
            VersionStatus(version=number, state="ready", provider=found.runtime.provider, why=found.runtime.why)
            if isinstance(found, Model)
            else VersionStatus(version=number, state="refused", why=found.reason)
            for number, found in sorted(repository.versions(model).items())
        ]
        return ModelStatus(name=model, ready=any(v.state == "ready" for v in versions), versions=versions)

    @app.get("/v1/models/{model:name}/metadata", tags=["models"], summary="The manifest", responses=not_ready)
    async def metadata(model: str) -> Manifest:
        return repository.find(model).manifest

    @app.get(
        "/v1/models/{model:name}/versions/{version}/metadata",
        tags=["models"],
        summary="One version's manifest",
        responses=not_ready,
    )
    async def version_metadata(model: str, version: str) -> Manifest:
        return repository.find(model, _version(version)).manifest


def _add_health(app: FastAPI) -> None:
    # Both answer only once every model has been proven: the port is not listened on before.
    @app.get("/v2/health/live", tags=["health"], summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["health"], summary="Every model has given its golden outputs")
    async def ready() -> dict[str, bool]:
        return {"ready": True}


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=WEB), name="static")

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        # The page's own files are served from here: a server often has no way to a content delivery network.
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="foldserve",
            swagger_js_url="static/swagger-ui/swagger-ui-bundle.js",
            swagger_css_url="static/swagger-ui/swagger-ui.css",
            swagger_favicon_url="static/swagger-ui/favicon-32x32.png",
        )


def _documented(*kinds: type[errors.RequestError]) -> dict[int | str, dict[str, Any]]:
    return {STATUS[kind][0]: {"model": ErrorBody, "description": STATUS[kind][1]} for kind in kinds}


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps({"error": text}), status, headers, media_type="application/json")


async def _refused(_: Request, error: errors.RequestError) -> Response:
    if isinstance(error, errors.RuntimeFailure):  # the client is not to blame: the operator needs the cause
        log.error("%s; cause: %s", error, error.__cause__)
    return _error(STATUS[type(error)][0], str(error))


async def _http_error(_: Request, error: HTTPException) -> Response:
    """Answer what the router refuses. Its own texts are fixed ones: `Not Found`, `Method Not Allowed`."""
    return _error(error.status_code, error.detail, error.headers)


async def _left(_: Request, __: ClientDisconnect) -> Response:
    """Answer nobody: the client left before its body was whole, which is no news for a log."""
    return Response()


async def _failed(_: Request, __: Exception) -> Response:
    """Answer what nobody foresaw; the traceback is in the log, not in the answer."""
    return _error(500, "internal error")
