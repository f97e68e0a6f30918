"""Functions that the routes of all protocols share: bodies within their limit, versions in paths, errors in OpenAPI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import ClientDisconnect

from foldserve.service import errors
from foldserve.service.access.keys import Scope
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.live.policy import LABEL
from foldserve.service.protocols.body import Body, BodyMemory
from foldserve.service.protocols.reply import STATUS, Reply
from foldserve.service.telemetry.record import current_record

_Handler = TypeVar("_Handler")


class ErrorBody(BaseModel):
    """The JSON form of all errors."""

    error: str


class _NameConvertor(StringConvertor):
    """The name of a model in a path.

    A name can't contain a colon, so `name:predict` in a path matches only the POST route for predictions, and a GET
    request for such a path gets a 405.
    """

    regex = "[^/:]+"


def register_name_convertor() -> None:
    """Allow `{model:name}` in the paths of routes."""
    register_url_convertor("name", _NameConvertor())


def requires(scope: Scope) -> Callable[[_Handler], _Handler]:
    """Return a decorator that declares the scope that clients need for a route handler or a mounted app."""

    def declare(handler: _Handler) -> _Handler:
        handler.required_scope = scope  # type: ignore[attr-defined]
        return handler

    return declare


def parse_version(text: str) -> int | str:
    """Read the version in a path: a number or a label. Raises `UnknownModel`."""
    if LABEL.fullmatch(text):
        return text
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise errors.UnknownModel("unknown version of this model")
    return int(text)


def error_responses(*kinds: type[errors.RequestError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of the given errors. Several errors may share one status."""
    statuses = sorted({STATUS[kind][0] for kind in kinds})
    return {
        status: {
            "model": ErrorBody,
            "description": " Or: ".join(STATUS[kind][1] for kind in kinds if STATUS[kind][0] == status),
        }
        for status in statuses
    }


_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Identifies the request in the response and in the log. A value is ignored unless it has 1 to "
        "128 of the characters A-Z a-z 0-9 . _ : / + = @ -",
        "schema": {"type": "string"},
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "description": "Milliseconds in which the model must begin to run the rows; afterwards the response is a 504.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
    {
        "name": "X-Request-Priority",
        "in": "header",
        "description": "Under load, requests of high priority run first. The last tenth of the queue is for them.",
        "schema": {"type": "string", "enum": ["normal", "high"], "default": "normal"},
    },
]


def prediction_docs(
    content: dict[str, Any], response: dict[str, Any], query: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Describe a prediction route in OpenAPI: headers, query, media types of the body, response and errors."""
    return {
        "tags": ["predict"],
        "responses": {200: response, **error_responses(*STATUS)},
        "openapi_extra": {
            "parameters": [*_HEADERS, *query],
            "requestBody": {"required": True, "content": content},
        },
    }


def to_response(reply: Reply) -> Response:
    """Turn a reply into a Starlette response. Starlette adds the Content-Length."""
    response = Response(reply.body, reply.status)
    response.raw_headers.extend(reply.headers)
    return response


async def read_body(request: Request, limit: int, memory: BodyMemory) -> Body:
    """Read a body of at most `limit` bytes. Raises `TooLarge` as soon as more than `limit` bytes have arrived.

    Raises `MemoryFull` if all bodies together take too much memory.
    """
    too_large = errors.TooLarge(f"the body is larger than {limit} bytes")
    length = int(request.headers.get("content-length", 0))  # the HTTP parser allows only digits in this header
    if length > limit:
        raise too_large
    memory.check_room(length)
    body = memory.new_body()
    try:
        async for chunk in request.stream():
            body.add(chunk)
            if len(body) > limit:
                raise too_large
    except BaseException:
        body.discard()
        raise
    return body


async def answer(request: Request, find: Callable[[], Endpoint]) -> Response:
    """Return the endpoint's reply to a request. If the client disconnects, its prediction is cancelled.

    find: a function that returns the endpoint. `find` is called again when the body is complete, because the model may
    have changed. Raises `ClientDisconnect`.
    """
    query = request.scope["query_string"]
    endpoint = find().for_query(query)
    body = [await read_body(request, endpoint.max_body, endpoint.memory)]
    # The body is kept in a list and taken out with `pop`, so that no variable refers to the body. If a variable
    # referred to the body, the traceback of an error would keep the body in memory.
    answering = find().for_query(query).answer(dict(request.headers.raw), body.pop(), current_record.get())
    reply = asyncio.ensure_future(answering)
    disconnect = asyncio.ensure_future(request.receive())  # after the body, `receive` returns only a disconnect
    await asyncio.wait({reply, disconnect}, return_when=asyncio.FIRST_COMPLETED)
    disconnect.cancel()
    if not reply.done():
        reply.cancel()
        raise ClientDisconnect
    return to_response(reply.result())
