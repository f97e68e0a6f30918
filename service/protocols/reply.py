"""Builds answers and refusals. This module contains the table that maps each error to a status.

The connection and FastAPI's routes share this module, so this module uses no framework. A status is an int, and headers
are bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from foldserve.service import errors

log = logging.getLogger("foldserve")

# The headers of a request, with names in lower case.
Headers = Mapping[bytes, bytes]

JSON = (b"content-type", b"application/json")

# The status of every request error, and its description in OpenAPI. A test fails if the class of a request error is not
# in this table.
STATUS: dict[type[errors.RequestError], tuple[int, str]] = {
    errors.InvalidHttp: (400, "The request is not HTTP that this server accepts."),
    errors.InvalidInput: (400, "The body is not rows of this model."),
    errors.LoadRefused: (400, "The version may not serve, for the reason that the error names."),
    errors.MissingKey: (401, "The request needs an API key, or its key is not valid."),
    errors.MissingScope: (403, "The API key is not for this part of the service."),
    errors.ForbiddenOrigin: (403, "A web page of another site sent the request."),
    errors.UnknownModel: (404, "There is no such model or version."),
    errors.TooSlow: (408, "The whole request did not arrive in time."),
    errors.ModelBusy: (409, "Another request is changing the model."),
    errors.TooLarge: (413, "The body is larger than `max_body`."),
    errors.UrlTooLong: (414, "The URL is too long."),
    errors.UnsupportedMedia: (415, "The server does not read this media type or content encoding."),
    errors.UnknownHost: (421, "The Host header has a name that is not this server's."),
    errors.NotExplainable: (422, "The graph of the model has a part that can't be explained."),
    errors.IncompleteExplanation: (422, "The contributions of a row do not add up to its output."),
    errors.NonFiniteOutput: (422, "The model gives a value that is not finite for a row, whose numbers are too large."),
    errors.RateExceeded: (429, "The API key has reached its rate; retry after Retry-After seconds."),
    errors.HeadTooLarge: (431, "The headers are larger than `max_head`."),
    errors.RuntimeFailure: (500, "The model did not run."),
    errors.DeviceLost: (500, "The device has failed; the server stops."),
    errors.ModelNotReady: (503, "The model is known, but no version of it is ready."),
    errors.QueueFull: (503, "Too many rows wait for this model; retry after Retry-After seconds."),
    errors.MemoryFull: (503, "Bodies of other requests fill the memory; retry after Retry-After seconds."),
    errors.DeviceOutOfMemory: (503, "The device has no memory for this run; retry after Retry-After seconds."),
    errors.Draining: (503, "The server is stopping; retry after Retry-After seconds."),
    errors.DeadlinePassed: (504, "The deadline passed before the model could run."),
}


@dataclass(slots=True)
class Reply:
    """A complete answer, except the header `content-length`, which is added when the answer is written."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def refusal(error: errors.RequestError) -> Reply:
    """Return the answer to a refused request, and log the cause of a `RuntimeFailure`."""
    if isinstance(error, errors.RuntimeFailure):
        log.error("%s; cause: %r", error, error.__cause__)
    reply = failure(STATUS[type(error)][0], str(error), getattr(error, "retry_after", None))
    if challenge := getattr(error, "challenge", None):
        reply.headers = (*reply.headers, (b"www-authenticate", challenge.encode()))
    return reply


def failure(status: int, text: str, retry_after: int | None = None) -> Reply:
    """Return an error answer. All error answers have the same JSON form."""
    headers = (JSON,) if retry_after is None else (JSON, (b"retry-after", b"%d" % retry_after))
    return Reply(status, headers, orjson.dumps({"error": text}))
