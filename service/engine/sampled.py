"""A codec that passes a sample of its requests and answers to the prediction log.

If there is no prediction log, endpoints use the original codec, so that requests take no extra time. This module does
not use files.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.engine.exchange import Codec
from foldserve.service.protocols.reply import Headers, Reply
from foldserve.service.protocols.request import DecodedRequest
from foldserve.service.telemetry.trace_context import safe_id

_REQUEST_ID = b"x-request-id"


class Recorder(Protocol):
    """Records the sampled requests of one version of a model. Any thread may call `add`."""

    def add(self, request_id: str | None, rows: Rows, outputs: Outputs) -> None:
        """Record one answered request. This call never blocks."""


class Log(Protocol):
    """The prediction log that all models share."""

    def open(self, manifest: Manifest) -> Recorder:
        """Return the recorder of one version of a model."""


@dataclass(frozen=True)
class Sampling:
    """A prediction log, and the share of the requests that the log gets."""

    log: Log
    share: float


class SampledCodec:
    """Decodes requests with `codec`, and passes a random share of the answered requests to `recorder`."""

    def __init__(self, codec: Codec, recorder: Recorder, share: float) -> None:
        self._codec = codec
        self._recorder = recorder
        self._share = share

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request in the same way as `Codec.decode`."""
        request = self._codec.decode(headers, body, fast_only=fast_only)
        if random.random() < self._share:  # noqa: S311 # nosec B311
            self._record(request, headers)
        return request

    def _record(self, request: DecodedRequest, headers: Headers) -> None:
        """Pass the request to the recorder when the request is answered."""
        # The function `record` must not refer to `request`, because a cycle of references would keep the arrays in
        # memory.
        encode, rows, recorder = request.encode, request.rows, self._recorder
        identity = (request.identity or "").encode("utf-8", "replace")
        request_id = safe_id(headers.get(_REQUEST_ID, b"").strip()) or safe_id(identity)

        def record(outputs: Outputs) -> Reply:
            reply = encode(outputs)
            recorder.add(request_id.decode() or None, rows, outputs)
            return reply

        request.encode = record

    def for_query(self, query: bytes, /) -> Codec:
        """Return the codec for requests whose URL has this query. Raises `InvalidInput` for a wrong query."""
        return SampledCodec(self._codec.for_query(query), self._recorder, self._share)
