"""The whole composition: settings -> metrics, repository, endpoints -> routes. HTTP is here, in routes/ and in wire.py.

`wire.py` answers predictions before they come this far; whatever else is asked comes through here.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from foldserve.service import errors
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.repository import Repository, open_repository
from foldserve.service.http.routes import friendly, oip
from foldserve.service.http.routes.common import ErrorBody, register_names, response
from foldserve.service.metrics import CONTENT_TYPE, Metrics
from foldserve.service.protocols.reply import failure, refusal
from foldserve.service.settings import Settings

WEB = Path(__file__).parent.parent / "web"


def create_app(settings: Settings) -> FastAPI:
    """Load every model, then build the app. Raises `FoldserveError` when there is nothing to serve.

    Its `state` has what the server needs besides: `repository`, `metrics` (or None), `endpoints` by their paths, and
    `draining`, which makes it unready.
    """
    metrics = Metrics() if settings.metrics else None
    repository = open_repository(settings, metrics)
    version = installed_version("foldserve")
    register_names()
    app = FastAPI(
        title="foldserve",
        version=version,
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
    app.state.metrics = metrics
    app.state.endpoints = _endpoints(repository)
    app.state.draining = False
    app.include_router(friendly.router(repository))

    def ready() -> bool:
        return not (app.state.draining or repository.lost)

    app.include_router(oip.router(repository, metrics, ready, ("foldserve", version)))
    if metrics is not None:
        _add_metrics(app, metrics)
    _add_pages(app)
    return app


def _endpoints(repository: Repository) -> dict[bytes, Endpoint]:
    """Map the path of every prediction that needs no decoding to its endpoint."""
    found = {}
    for name in repository.names():
        numbers = [None, *repository.versions(name)]
        for number in numbers:
            try:
                model = repository.find(name, number)
            except errors.ModelNotReady:
                continue
            versioned = f"{name}/versions/{number}" if number else name
            found[f"/v1/models/{versioned}:predict".encode()] = model.friendly
            found[f"/v2/models/{versioned}/infer".encode()] = model.oip
    if repository.default is not None:
        found[b"/predict"] = repository.find().friendly
    return found


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", tags=["health"], summary="Prometheus's text format", response_class=Response)
    async def scrape() -> Response:
        return Response(metrics.scrape(), media_type=CONTENT_TYPE.decode())


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=WEB), name="static")

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        # A browser gets the documentation; KServe's clients ask here whether the server is alive.
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("docs")
        return JSONResponse({"status": "alive", "docs": "/docs"})

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


async def _refused(request: Request, error: errors.RequestError) -> Response:
    metrics: Metrics | None = request.app.state.metrics
    if metrics is not None:
        metrics.reject(error)
    return response(refusal(error))


async def _http_error(_: Request, error: HTTPException) -> Response:
    """Answer what the router refuses. Its own texts are fixed ones: `Not Found`, `Method Not Allowed`."""
    answer = response(failure(error.status_code, error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _left(_: Request, __: ClientDisconnect) -> Response:
    """Answer nobody: the client left before its body was whole, which is no news for a log."""
    return Response()


async def _failed(_: Request, __: Exception) -> Response:
    """Answer what nobody foresaw; the traceback is in the log, not in the answer."""
    return response(failure(500, "internal error"))
