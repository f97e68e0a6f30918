"""What the routes of both protocols share: bodies within their limit, versions in paths, errors in OpenAPI."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import ClientDisconnect

from foldserve.service import errors
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.protocols.reply import STATUS, Reply


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: str


class _NameConvertor(StringConvertor):
    """A model's name in a path. It ends before a colon, so that `name:predict` is no name, and GET on it is a 405."""

    regex = "[^/:]+"


def register_names() -> None:
    """Let paths say {model:name}."""
    register_url_convertor("name", _NameConvertor())


def version_number(text: str) -> int:
    """Read a version in a path. Raises `UnknownModel`."""
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise errors.UnknownModel("unknown version of this model")
    return int(text)


def documented(*kinds: type[errors.RequestError]) -> dict[int | str, dict[str, Any]]:
    """Give OpenAPI's entries for these errors; several may have one status."""
    statuses = sorted({STATUS[kind][0] for kind in kinds})
    return {
        status: {
            "model": ErrorBody,
            "description": " Or: ".join(STATUS[kind][1] for kind in kinds if STATUS[kind][0] == status),
        }
        for status in statuses
    }


def prediction(content: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Describe a route that predicts: the media types that it reads, what it answers, and every error."""
    return {
        "tags": ["predict"],
        "responses": {200: answer, **documented(*STATUS)},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def response(reply: Reply) -> Response:
    """Turn a reply into Starlette's response, which adds the length."""
    made = Response(reply.body, reply.status)
    made.raw_headers.extend(reply.headers)
    return made


async def limited(request: Request, cap: int) -> bytes:
    """Read a body of at most `cap` bytes. Raises `TooLarge` before more than that is kept."""
    too_large = errors.TooLarge(f"the body is larger than {cap} bytes")
    if int(request.headers.get("content-length", 0)) > cap:  # the HTTP parser has refused anything but digits
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > cap:
            raise too_large
    return bytes(body)


async def predicted(request: Request, endpoint: Endpoint) -> Response:
    """Hand a request's body to the endpoint, and give its reply; nothing is computed for a client that has left."""
    body = await limited(request, endpoint.limits.max_body)
    answer = asyncio.ensure_future(endpoint.answer(dict(request.headers.raw), body))
    left = asyncio.ensure_future(request.receive())  # after the body nothing comes but that the client has left
    await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    if not answer.done():
        answer.cancel()
        raise ClientDisconnect
    return response(answer.result())
