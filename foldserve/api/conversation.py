"""The conversation of a client with a server: requests, answers, retries and refusals.

A client first asks the server for the manifest of the model. The client uses the manifest to convert the table to
float32 rows. The client sends the rows in the raw protocol, because it is the fastest. Each request names the version
of the manifest. Even if the active version changes, the server uses the version that the request names.

A generator yields the steps of a call: requests, waits and computations. This module builds HTTP requests and reads
responses. The module opens no connection and runs no model.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import ValidationError

from foldserve.api.errors import (
    AccessDenied,
    ClientError,
    DeadlineExceeded,
    ModelNotFound,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
)
from foldserve.api.extras import require
from foldserve.api.rows import RowReader
from foldserve.service.bundle import Manifest

require("httpx", extra="client")

import httpx  # noqa: E402

if TYPE_CHECKING:
    from foldserve.service.arrays import Outputs, Rows

_RAW = {"content-type": "application/octet-stream", "accept": "application/octet-stream"}
# The maximum size of one request, in bytes. A server accepts requests of up to 64 MiB by default.
_MOST_BYTES = 8 * 2**20
_ERRORS: dict[int, type[ClientError]] = {
    **dict.fromkeys((400, 413, 414, 415, 422), RequestRefused),
    **dict.fromkeys((401, 403, 421), AccessDenied),
    404: ModelNotFound,
    504: DeadlineExceeded,
}
_BUSY = (429, 503)

Result = TypeVar("Result")
Steps = Generator["Call | Wait | Callable[[], Any]", Any, Result]
"""The steps of one call. A step is a request, a wait, or a computation; its result is sent to the generator."""


@dataclass(frozen=True)
class Retries:
    """Limits how often and how long a client waits for a busy server. A busy server answers 503 or 429 with
    Retry-After.

    attempts: the largest number of retries of one request. most_wait: the maximum total time, in seconds, that one call
    waits before its retries. The client repeats a request only if enough of this time is left for the wait before the
    repetition.
    """

    attempts: int = 4
    most_wait: float = 30.0


@dataclass(frozen=True)
class Call:
    """A request to the server. path: the path of the URL, with the query if there is one."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes | None = None


@dataclass(frozen=True)
class Wait:
    """A wait before a retry."""

    seconds: float


@dataclass(frozen=True)
class _Known:
    """The facts about one version of a model. asked: the time at which the server answered, by the monotonic clock."""

    reader: RowReader
    most_rows: int
    asked: float

    @property
    def path(self) -> str:
        manifest = self.reader.manifest
        return f"/v1/models/{manifest.name}/versions/{manifest.version}"


class _Budget:
    """The time that is left for one call. deadline: the time limit of the call in seconds; None for no limit."""

    def __init__(self, retries: Retries, deadline: float | None) -> None:
        self._end = None if deadline is None else time.monotonic() + deadline
        self.attempts = retries.attempts
        self.wait = retries.most_wait

    def headers(self) -> dict[str, str]:
        """Return the HTTP header that tells the server how much time is left.

        Raises `DeadlineExceeded` if the deadline has passed.
        """
        if self._end is None:
            return {}
        left = round((self._end - time.monotonic()) * 1000)
        if left < 1:
            raise DeadlineExceeded("the deadline passed before all rows were answered")
        return {"x-request-timeout-ms": str(left)}

    def allows(self, wait: float) -> bool:
        """Return whether the budget allows a wait of `wait` seconds. If the budget allows it, subtract `wait` from the
        budget.
        """
        if wait > self.wait or (self._end is not None and time.monotonic() + wait >= self._end):
            return False
        self.wait -= wait
        return True


class Conversation:
    """The steps of all calls to one server. Client and AsyncClient pass their arguments to this class."""

    def __init__(
        self,
        *,
        model: str | None,
        version: int | None,
        deadline: float | None,
        retries: Retries,
        chunk_rows: int,
        refresh: float,
    ) -> None:
        if chunk_rows < 1:
            raise ValueError("chunk_rows must be at least 1")
        if version is not None and model is None:
            raise ValueError("a version needs the name of its model")
        self._model, self._version = model, version
        self._deadline, self._retries = deadline, retries
        self._chunk_rows, self._refresh = chunk_rows, refresh
        self._known: _Known | None = None

    def predict(self, table: Any) -> Steps[Any]:
        """Return the predicted label of each row, or its predicted value."""
        known, outputs = yield from self._outputs(table)
        return known.reader.labels(table, outputs)

    def predict_proba(self, table: Any) -> Steps[Any]:
        """Return the probability of each label."""
        known, outputs = yield from self._outputs(table)
        if not known.reader.manifest.labels:
            raise TypeError("a regression has no probabilities: use predict")
        return known.reader.probabilities(table, outputs)

    def manifest(self) -> Steps[Manifest]:
        """Return the current manifest of the model on the server."""
        known = yield from self._ask(_Budget(self._retries, self._deadline))
        return known.reader.manifest

    def _outputs(self, table: Any) -> Steps[tuple[_Known, Outputs]]:
        budget = _Budget(self._retries, self._deadline)
        known = self._known
        fresh = known is None or time.monotonic() - known.asked >= self._refresh
        if known is None or fresh:
            known = yield from self._ask(budget)
        try:
            return known, (yield from self._send_rows(known, table, budget))
        except ModelNotFound:
            if fresh or self._version is not None:
                raise
        known = yield from self._ask(budget)  # the server has unloaded this version since it sent the manifest
        return known, (yield from self._send_rows(known, table, budget))

    # --- the manifest -------------------------------------------------------------------------------------------------

    def _ask(self, budget: _Budget) -> Steps[_Known]:
        """Ask for the manifest and the limits of the model, and keep them."""
        model = self._model or (yield from self._default_model(budget))
        version = "" if self._version is None else f"/versions/{self._version}"
        found = yield from self._send(Call("GET", f"/v1/models/{model}{version}/metadata", {}), budget)
        try:
            manifest = Manifest.model_validate_json(found.content)
        except ValidationError as error:
            raise ServerFailed("the server has a manifest that this version of foldserve can't read") from error
        path = f"/v2/models/{manifest.name}/versions/{manifest.version}/config"
        config = _json((yield from self._send(Call("GET", path, {}), budget)))
        most_rows = config.get("max_batch_size") if isinstance(config, dict) else None
        if not isinstance(most_rows, int) or most_rows < 1:
            raise ServerFailed("the server does not say how many rows a request may have")
        self._known = _Known(RowReader(manifest), most_rows, time.monotonic())
        return self._known

    def _default_model(self, budget: _Budget) -> Steps[str]:
        listed = _json((yield from self._send(Call("GET", "/v1/models", {}), budget)))
        if not isinstance(listed, dict) or not isinstance(listed.get("models"), list):
            raise ServerFailed("the response is not a list of models")
        if isinstance(listed.get("default"), str):
            return str(listed["default"])
        names = ", ".join(str(each["name"]) for each in listed["models"])
        raise ModelNotFound(f"the server has no default model, give the name of a model: {names}")

    # --- the rows -----------------------------------------------------------------------------------------------------

    def _send_rows(self, known: _Known, table: Any, budget: _Budget) -> Steps[Outputs]:
        """Send the rows in chunks, one after the other. A chunk that is too large for the server is halved."""
        rows: Rows = yield partial(known.reader.read, table)
        width = known.reader.manifest.output.shape[1]
        outputs = np.empty((len(rows), width), np.float32)
        most = max(1, min(self._chunk_rows, known.most_rows, _MOST_BYTES // (4 * rows.shape[1])))
        start = 0
        while start < len(rows):
            chunk = rows[start : start + most]
            call = Call("POST", f"{known.path}:predict", _RAW, chunk.astype("<f4", copy=False).tobytes())
            try:
                response = yield from self._send(call, budget, first_row=start)
            except RequestRefused as refused:
                if refused.status != 413 or len(chunk) == 1:
                    raise
                most = max(1, len(chunk) // 2)
                continue
            if len(response.content) != 4 * width * len(chunk):
                raise ServerFailed(f"the response has {len(response.content)} bytes for {len(chunk)} rows")
            outputs[start : start + len(chunk)] = np.frombuffer(response.content, "<f4").reshape(-1, width)
            start += len(chunk)
        return outputs

    def _send(self, call: Call, budget: _Budget, first_row: int = 0) -> Steps[httpx.Response]:
        """Send one request, and repeat it while the server is busy.

        first_row: the index of the first row of this request in the whole table. The server knows only this request, so
        its error messages number the rows from 0.
        """
        for attempt in range(budget.attempts + 1):
            headers = {**call.headers, **budget.headers()}
            try:
                response: httpx.Response = yield Call(call.method, call.path, headers, call.content)
            except httpx.RemoteProtocolError as error:  # a server that restarts closes its idle connections
                if attempt == budget.attempts or not budget.allows(0):
                    raise ServerUnreachable(f"the server closed the connection: {error}") from error
                continue
            except httpx.TimeoutException as error:
                raise ServerUnreachable("the server did not answer in time") from error
            except httpx.TransportError as error:
                raise ServerUnreachable(f"no server answers: {error}") from error
            if response.status_code == 200:
                return response
            wait = _retry_after(response)
            if wait is None or attempt == budget.attempts or not budget.allows(wait):
                raise _error(response, first_row)
            yield Wait(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds to wait before a retry; None if a retry is useless.

    The wait is up to a quarter longer than the server asks for. The additional time is random, so that the clients of a
    busy server do not all come back at the same time.
    """
    text = response.headers.get("retry-after", "")
    if response.status_code not in _BUSY or not text.isascii() or not text.isdigit():
        return None
    return int(text) * (1 + random.random() / 4)  # noqa: S311 (no secret)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ServerFailed("the response is not JSON") from error


def _error(response: httpx.Response, first_row: int) -> ClientError:
    """Return the error for a response, with the server's text. Row numbers count from the first row of the table."""
    try:
        text = str(response.json()["error"])
    except (ValueError, TypeError, KeyError):
        text = response.reason_phrase or "no text"
    if first_row:
        text = re.sub(r"\brow (\d+)", lambda found: f"row {int(found[1]) + first_row}", text)
    status = response.status_code
    if status in _BUSY:
        after = response.headers.get("retry-after", "")
        return ServerBusy(text, status, float(after) if after.isdigit() else None)
    return _ERRORS.get(status, ServerFailed)(text, status)


def headers_of(api_key: str | None) -> dict[str, str]:
    """Return the headers that every request of a client has."""
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}
