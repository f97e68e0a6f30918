"""The routes for drift and quality, /v1/models/{model}/drift and /v1/models/{model}/feedback.

The routes compute nothing themselves.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from foldserve.service import errors
from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.http.drift_page import HEADERS, drift_page
from foldserve.service.http.routes.common import error_responses, parse_version, read_body, requires
from foldserve.service.quality.document import Drift
from foldserve.service.quality.feedback import FeedbackAnswer

_MAX_BODY = 2**22  # bytes

_FEEDBACK = {
    "type": "object",
    "required": ["feedback"],
    "additionalProperties": False,
    "properties": {
        "feedback": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["request_id", "labels"],
                "additionalProperties": False,
                "properties": {
                    "request_id": {
                        "type": "string",
                        "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$",
                        "description": "The X-Request-Id of the prediction.",
                    },
                    "labels": {
                        "type": "array",
                        "minItems": 1,
                        "description": "A label for each row of the request; null if it is not known yet.",
                        "items": {"type": ["boolean", "number", "string", "null"]},
                    },
                },
            },
        }
    },
}
_FEEDBACK_EXAMPLE = {
    "feedback": [
        {"request_id": "order-17", "labels": [3]},
        {"request_id": "batch-2026-01-31", "labels": [0, None, 7]},
    ]
}
_DRIFT: dict[int | str, dict[str, Any]] = {
    200: {"model": Drift, "content": {"text/html": {"schema": {"type": "string"}}}},
    **error_responses(errors.UnknownModel, errors.ModelNotReady, errors.DeadlinePassed),
}


def router(service: Service) -> APIRouter:
    """Create the routes."""
    routes = APIRouter()
    _add_drift(routes, service)
    _add_feedback(routes, service)
    return routes


def _add_drift(routes: APIRouter, service: Service) -> None:
    @routes.get(
        "/v1/models/{model:name}/drift",
        tags=["models"],
        summary="The drift of the live rows, and the quality on live labels",
        responses=_DRIFT,
    )
    @requires(Scope.METRICS)
    async def drift(request: Request, model: str) -> Response:
        return _answer(request, await service.quality.drift(model))

    @routes.get(
        "/v1/models/{model:name}/versions/{version}/drift",
        tags=["models"],
        summary="The drift and the quality of one version",
        responses=_DRIFT,
    )
    @requires(Scope.METRICS)
    async def version_drift(request: Request, model: str, version: str) -> Response:
        return _answer(request, await service.quality.drift(model, parse_version(version)))

    @routes.delete(
        "/v1/models/{model:name}/drift",
        tags=["models"],
        summary="Begin the window of the drift and the quality again, for all versions",
        status_code=204,
        responses=error_responses(errors.UnknownModel, errors.MissingScope, errors.DeadlinePassed),
    )
    @requires(Scope.ADMIN)
    async def reset(model: str) -> None:
        if service.guard is None:
            raise errors.MissingScope("without API keys (--keys) the drift can't be reset", Scope.ADMIN.value)
        await service.quality.reset(model)


def _add_feedback(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/models/{model:name}/feedback",
        tags=["models"],
        summary="Send the labels of earlier predictions",
        response_model=FeedbackAnswer,
        responses=error_responses(
            errors.InvalidInput,
            errors.UnknownModel,
            errors.ModelNotReady,
            errors.TooLarge,
            errors.MemoryFull,
            errors.DeadlinePassed,
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _FEEDBACK, "example": _FEEDBACK_EXAMPLE}},
            }
        },
    )
    @requires(Scope.PREDICT)
    async def feedback(request: Request, model: str) -> FeedbackAnswer:
        service.repository.model(model)  # refuse an unknown model before the body is read
        return await service.quality.label(model, await read_body(request, _MAX_BODY, service.memory))


def _answer(request: Request, drift: Drift) -> Response:
    """Return the drift as JSON, or as an HTML page if a browser asks."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(drift_page(drift), media_type="text/html", headers=HEADERS)
    return Response(drift.model_dump_json(), media_type="application/json", headers={"Vary": "Accept"})
