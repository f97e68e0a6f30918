"""Clients of a foldserve server: they take a table and return predictions.

`Client` and `AsyncClient` execute the steps of a conversation with httpx. The server's URL paths are in
conversation.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from foldserve.api.conversation import Call, Conversation, Result, Retries, Steps, Wait, headers_of
from foldserve.api.extras import require

require("httpx", extra="client")

import anyio  # noqa: E402  (a dependency of httpx)
import httpx  # noqa: E402

if TYPE_CHECKING:
    from types import TracebackType

    from foldserve.service.bundle import Manifest

_RETRIES = Retries()


class Client:
    """A client of a server. A client reuses its connections, and several threads may use one client.

        with foldserve.Client("http://127.0.0.1:8000", model="penguins") as client:
            client.predict(frame)

    url: the address of the server. model: the name of the model; by default, the server's only or default model.
    version: the version of the model; by default, the active version. api_key: the API key, if the server needs a key.
    deadline: the seconds that one call may take; the server drops rows that can't run in time. timeout: if no byte
    arrives on a connection for this number of seconds, the client closes the connection. retries: limits how often and
    how long the client waits for a busy server. chunk_rows: the largest number of rows in one request; a larger table
    is sent in several requests. refresh: after this number of seconds, the client asks again for the active version.
    http: an httpx client with other settings, such as certificates; its `base_url` is the address of the server.

    A call raises `InvalidInput` or `TableError` for a table that does not fit the model. `InvalidInput` and
    `TableError` are subclasses of `ValueError`. If the server sends no predictions, the call raises a `ClientError`
    with the status and the text of the server.
    """

    def __init__(
        self,
        url: str = "",
        *,
        model: str | None = None,
        version: int | None = None,
        api_key: str | None = None,
        deadline: float | None = None,
        timeout: float = 30.0,
        retries: Retries = _RETRIES,
        chunk_rows: int = 8192,
        refresh: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        self._steps = Conversation(
            model=model, version=version, deadline=deadline, retries=retries, chunk_rows=chunk_rows, refresh=refresh
        )
        self._http = http or httpx.Client(base_url=url, headers=headers_of(api_key), timeout=timeout)

    def predict(self, table: Any) -> Any:
        """Return the label of each row, or the value of each row in a regression, as `Model.predict` does."""
        return self._drive(self._steps.predict(table))

    def predict_proba(self, table: Any) -> Any:
        """Return the probability of each label, as `Model.predict_proba` does."""
        return self._drive(self._steps.predict_proba(table))

    def manifest(self) -> Manifest:
        """Return the manifest of the active version: features, labels, metrics and provenance."""
        return self._drive(self._steps.manifest())

    def _drive(self, steps: Steps[Result]) -> Result:
        act: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                step = act()
            except StopIteration as done:
                result: Result = done.value
                return result
            try:
                found = self._do(step)
            except Exception as error:  # noqa: BLE001 (the steps handle it)
                act = partial(steps.throw, error)
            else:
                act = partial(steps.send, found)

    def _do(self, step: Call | Wait | Callable[[], Any]) -> Any:
        if isinstance(step, Call):
            return self._http.request(step.method, step.path, headers=step.headers, content=step.content)
        return time.sleep(step.seconds) if isinstance(step, Wait) else step()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The client for asyncio. The arguments are the same as for `Client`, but `http` is an `httpx.AsyncClient`.

        async with foldserve.AsyncClient("http://127.0.0.1:8000", model="penguins") as client:
            await client.predict(frame)

    The client reads each table in a thread, so that a large table does not block the event loop.
    """

    def __init__(
        self,
        url: str = "",
        *,
        model: str | None = None,
        version: int | None = None,
        api_key: str | None = None,
        deadline: float | None = None,
        timeout: float = 30.0,
        retries: Retries = _RETRIES,
        chunk_rows: int = 8192,
        refresh: float = 60.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._steps = Conversation(
            model=model, version=version, deadline=deadline, retries=retries, chunk_rows=chunk_rows, refresh=refresh
        )
        self._http = http or httpx.AsyncClient(base_url=url, headers=headers_of(api_key), timeout=timeout)

    async def predict(self, table: Any) -> Any:
        """Return the label of each row, or the value of each row in a regression, as `Model.predict` does."""
        return await self._drive(self._steps.predict(table))

    async def predict_proba(self, table: Any) -> Any:
        """Return the probability of each label, as `Model.predict_proba` does."""
        return await self._drive(self._steps.predict_proba(table))

    async def manifest(self) -> Manifest:
        """Return the manifest of the active version: features, labels, metrics and provenance."""
        return await self._drive(self._steps.manifest())

    async def _drive(self, steps: Steps[Result]) -> Result:
        act: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                step = act()
            except StopIteration as done:
                result: Result = done.value
                return result
            try:
                found = await self._do(step)
            except Exception as error:  # noqa: BLE001 (the steps handle it)
                act = partial(steps.throw, error)
            else:
                act = partial(steps.send, found)

    async def _do(self, step: Call | Wait | Callable[[], Any]) -> Any:
        if isinstance(step, Call):
            return await self._http.request(step.method, step.path, headers=step.headers, content=step.content)
        if isinstance(step, Wait):
            return await anyio.sleep(step.seconds)
        return await anyio.to_thread.run_sync(step)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
