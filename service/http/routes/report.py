"""The route for the report that training wrote into a bundle. The report is HTML that a browser shows in a sandbox."""

from __future__ import annotations

from fastapi import APIRouter, Response

from foldserve.service import bundle, errors
from foldserve.service.access.keys import Scope
from foldserve.service.engine.repository import Repository
from foldserve.service.http.routes.common import error_responses, parse_version, requires

# The report has styles and inline images, but no scripts and no links to other files. Because a bundle may come from a
# person who is not trusted, these headers forbid the browser to run scripts of the report, or to treat the report as a
# page of this server.
_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def router(repository: Repository) -> APIRouter:
    """Create the route."""
    routes = APIRouter()

    @routes.get(
        "/v1/models/{model:name}/versions/{version}/report",
        tags=["models"],
        summary="The report of the training of one version, as HTML",
        response_class=Response,
        responses=error_responses(errors.UnknownModel, errors.ModelNotReady),
    )
    @requires(Scope.PREDICT)
    def report(model: str, version: str) -> Response:  # not `async`, so that FastAPI reads the file on a thread
        found = repository.find(model, parse_version(version))
        try:
            text = bundle.read_report(found.folder)
        except errors.BundleError as error:
            raise errors.UnknownModel("the report of this version can't be read") from error
        if text is None:
            raise errors.UnknownModel("this version has no report")
        return Response(text, media_type="text/html", headers=_HEADERS)

    return routes
