"""The FastAPI app of one service: its routes, its error handlers and its pages.

`connection.py` answers most prediction requests itself. The app answers all requests that `connection.py` and
`late_app.py` do not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from copy import deepcopy
from functools import lru_cache
from http import HTTPStatus
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.routing import iter_route_contexts
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.errors import RequestError
from foldserve.service.http.guarded import describe_keys
from foldserve.service.http.page import add_page
from foldserve.service.http.routes import examples, explain, friendly, oip, quality, report, repository
from foldserve.service.http.routes.common import ErrorBody, register_name_convertor, requires, to_response
from foldserve.service.http.security import PAGE_HEADERS
from foldserve.service.metrics import Metrics
from foldserve.service.metrics.prometheus import CONTENT_TYPE, PrometheusMetrics
from foldserve.service.protocols.reply import failure, refusal
from foldserve.service.telemetry.record import note_error

WEB = Path(__file__).parent.parent / "web"


def create_app(service: Service) -> FastAPI:
    """Create the app that serves `service`."""
    version = installed_version("foldserve")
    register_name_convertor()
    app = FastAPI(
        title="foldserve",
        version=version,
        description="Batch-norm MLPs, folded and certified. `GET /v1/models/{model}/metadata` names the features.",
        openapi_url=None,  # for the OpenAPI document, `_add_pages` adds a route that needs a scope
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False},
        # Without a default response, FastAPI would describe a 422 response of its own.
        responses={"default": {"model": ErrorBody, "description": "Any other error."}},
        exception_handlers={
            RequestError: _request_error_handler(service.metrics),
            HTTPException: _http_error,
            ClientDisconnect: _client_disconnected,
            Exception: _internal_error,
        },
    )
    app.include_router(friendly.router(service.repository))
    app.include_router(explain.router(service.repository))
    app.include_router(oip.router(service, ("foldserve", version)))
    app.include_router(repository.router(service))
    app.include_router(report.router(service.repository))
    app.include_router(quality.router(service))
    if isinstance(service.metrics, PrometheusMetrics):
        _add_metrics(app, service, service.metrics)
    _add_pages(app, service)
    return app


def _add_metrics(app: FastAPI, service: Service, metrics: PrometheusMetrics) -> None:
    @app.get("/metrics", tags=["health"], summary="Metrics in Prometheus's text format", response_class=Response)
    @requires(Scope.METRICS)
    async def scrape() -> Response:
        await service.quality.refresh_metrics()
        metrics.flush()
        return Response(await asyncio.to_thread(metrics.text), media_type=CONTENT_TYPE.decode())


def _add_pages(app: FastAPI, service: Service) -> None:
    app.mount("/static", requires(Scope.OPEN)(StaticFiles(directory=WEB)), name="static")

    add_page(app, enabled=service.page)

    @app.get("/docs", include_in_schema=False)
    @requires(Scope.OPEN)
    async def docs() -> FileResponse:
        # The files of the page come from this server, because clients often can't reach a content delivery network.
        return FileResponse(WEB / "docs.html", headers=PAGE_HEADERS)

    @lru_cache(1)  # making the document takes long, and it changes only with the models
    def document(_: int) -> bytes:
        described = deepcopy(app.openapi())
        examples.describe(described, service.repository)
        return orjson.dumps(describe_keys(described, app) if service.guard is not None else described)

    @app.get("/openapi.json", include_in_schema=False)
    @requires(Scope.PREDICT)
    async def openapi() -> Response:
        return Response(document(service.repository.generation), media_type="application/json")


def _request_error_handler(metrics: Metrics) -> Callable[[Request, RequestError], Coroutine[Any, Any, Response]]:
    async def request_error(_: Request, error: RequestError) -> Response:
        metrics.count_rejected(error)
        note_error(error)
        return to_response(refusal(error))

    return request_error


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Return the response to an error of the router.

    The response may repeat the text of the error, because the router has only two error texts: `Not Found` and `Method
    Not Allowed`.
    """
    response = to_response(failure(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The router's Allow header lists only the methods of the first route with this path, so this function lists the
        # methods of all routes with this path. A mounted app has no list of methods, and has already set the Allow
        # header itself.
        found = (x for x in iter_route_contexts(request.app.routes) if x.matches(request.scope)[0] is not Match.NONE)
        if methods := {method for route in found for method in route.methods or ()}:
            response.headers["allow"] = ", ".join(sorted(methods))
    return response


async def _client_disconnected(_: Request, __: ClientDisconnect) -> Response:
    """Return an empty response and log nothing, because the client disconnected while it sent the body."""
    return Response()


async def _internal_error(_: Request, error: Exception) -> Response:
    """Answer an unexpected error. The traceback of the error goes to the log, not to the client."""
    note_error(error)
    return to_response(failure(500, "internal error"))
