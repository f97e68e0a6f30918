"""What goes back to a client: an answer, or a refusal from the one table of errors and statuses.

It knows statuses and headers as numbers and bytes, and no framework: the hot path and FastAPI's routes share it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from foldserve.service import errors

log = logging.getLogger("foldserve")

# A request's headers, their names in lower case.
Headers = Mapping[bytes, bytes]

JSON = (b"content-type", b"application/json")

# Every error that a request can meet: its status, and its line in the documentation. A test fails when one is missing.
STATUS: dict[type[errors.RequestError], tuple[int, str]] = {
    errors.InvalidHttp: (400, "The request is not HTTP as this server speaks it."),
    errors.InvalidInput: (400, "The body is not rows of this model."),
    errors.UnknownModel: (404, "There is no such model or version."),
    errors.TooSlow: (408, "The request was not whole in time."),
    errors.TooLarge: (413, "The body is larger than `max_body`."),
    errors.UrlTooLong: (414, "The URL is too long."),
    errors.UnsupportedMedia: (415, "The body is of a media type, or compressed in a way, that is not read here."),
    errors.HeadTooLarge: (431, "The headers are larger than `max_head`."),
    errors.RuntimeFailure: (500, "The model did not run."),
    errors.DeviceLost: (500, "The device has failed; the server stops."),
    errors.NonFiniteOutput: (500, "The model gave a value that is not finite."),
    errors.ModelNotReady: (503, "The model is known, and none of its versions may be served."),
    errors.QueueFull: (503, "Too many rows wait for this model; Retry-After tells when to come back."),
    errors.DeviceOutOfMemory: (503, "The device has no room for this run; Retry-After tells when to come back."),
    errors.Draining: (503, "The server is stopping; Retry-After tells when to come back."),
    errors.DeadlinePassed: (504, "The deadline passed before the model could run."),
}


@dataclass(slots=True)
class Reply:
    """One whole answer; `content-length` is for whoever writes it out."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def refusal(error: errors.RequestError) -> Reply:
    """Tell the client of `error`, and the operator where the client is not to blame."""
    if isinstance(error, errors.RuntimeFailure):
        log.error("%s; cause: %r", error, error.__cause__)
    return failure(STATUS[type(error)][0], str(error), getattr(error, "retry_after", None))


def failure(status: int, text: str, retry_after: int | None = None) -> Reply:
    """Make an answer in the one shape of every error."""
    headers = (JSON,) if retry_after is None else (JSON, (b"retry-after", b"%d" % retry_after))
    return Reply(status, headers, orjson.dumps({"error": text}))
