"""A codec that passes a sample of its requests and answers to a log.

Without a log, endpoints use the codec itself. So requests cost nothing more if there is no log. This module does not
use files.
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
    """Takes the samples of one version of a model. Any thread may call `add`."""

    def add(self, request_id: str | None, rows: Rows, outputs: Outputs) -> None:
        """Take one answered request. This call never blocks."""


class Log(Protocol):
    """A log of predictions."""

    def open(self, manifest: Manifest) -> Recorder:
        """Return the recorder of one version of a model."""


@dataclass(frozen=True)
class Sampling:
    """A log, and the share of the requests that it gets."""

    log: Log
    share: float


class SampledCodec:
    """Reads requests with `codec`. Passes a random share of the answered requests to `recorder`."""

    def __init__(self, codec: Codec, recorder: Recorder, share: float) -> None:
        self._codec = codec
        self._recorder = recorder
        self._share = share

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Read one request, as `Codec.decode` does."""
        request = self._codec.decode(headers, body, fast_only=fast_only)
        if random.random() < self._share:  # noqa: S311 # nosec B311
            self._record(request, headers)
        return request

    def _record(self, request: DecodedRequest, headers: Headers) -> None:
        """Pass the request to the recorder once it is answered."""
        # The function below must not refer to `request`: a cycle of references would keep the arrays in memory.
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
