"""The sync client and the async client get the answers of a loaded model from a real server.

The clients raise a named exception for every error.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio.from_thread
import httpx
import numpy as np
import pandas as pd
import polars as pl
import pytest

import foldserve
from foldserve.api.conversation import Retries
from foldserve.service import bundle as bundles
from foldserve.service.access.keys import Scope, create_key
from tests.api.conftest import PENGUINS
from tests.service.support import serving, write_square_root

NAME = "penguins"


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Sends requests to a server, and records the requests.

    url: the server that gets the requests. refusals: the responses or errors that the next requests get. If a request
    gets one of these refusals, the request does not reach a server.
    """

    def __init__(self, url: str) -> None:
        self._sync, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()
        self.url = httpx.URL(url)
        self.refusals: list[httpx.Response | httpx.TransportError] = []
        self.sent: list[httpx.Request] = []
        self.connections: set[Any] = set()

    def _refusal(self, request: httpx.Request) -> httpx.Response | None:
        self.sent.append(request)
        request.url = request.url.copy_with(host=self.url.host, port=self.url.port)
        if not self.refusals:
            return None
        refusal = self.refusals.pop(0)
        if isinstance(refusal, httpx.TransportError):
            raise refusal
        return refusal

    def _note(self, response: httpx.Response) -> httpx.Response:
        self.connections.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        return response

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._refusal(request) or self._note(self._sync.handle_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._refusal(request) or self._note(await self._async.handle_async_request(request))

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        await self._async.aclose()


Connect = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Return a function that makes a sync or an async client.

    The methods of both clients block, so that the same test can use either client. The attribute `wire` records the
    requests of the client.
    """
    with contextlib.ExitStack() as stack:

        def make(url: str, *, model: str | None = NAME, **options: Any) -> Any:
            wire = Wire(url)
            headers = {"authorization": f"Bearer {options.pop('api_key')}"} if "api_key" in options else {}
            settings = {"base_url": url, "transport": wire, "headers": headers}
            if request.param == "sync":
                client = stack.enter_context(foldserve.Client(model=model, http=httpx.Client(**settings), **options))
                return SimpleNamespace(
                    predict=client.predict,
                    predict_proba=client.predict_proba,
                    manifest=client.manifest,
                    wire=wire,
                )
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal())
            inner = foldserve.AsyncClient(model=model, http=httpx.AsyncClient(**settings), **options)
            stack.callback(portal.call, inner.aclose)
            return SimpleNamespace(
                predict=lambda table: portal.call(inner.predict, table),
                predict_proba=lambda table: portal.call(inner.predict_proba, table),
                manifest=lambda: portal.call(inner.manifest),
                wire=wire,
            )

        yield make


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with serving(bundle.path.parents[1], tmp_path_factory.mktemp("log") / "log", "--max-rows", 100) as found:
        yield found


@pytest.fixture(scope="module")
def strict(bundle, tmp_path_factory):
    """A server that needs a key, and allows bodies of 1 KiB."""
    place = tmp_path_factory.mktemp("strict")
    key, line = create_key("alice", [Scope.PREDICT], None)
    (place / "keys").write_text(line)
    with serving(bundle.path.parents[1], place / "log", "--keys", place / "keys", "--max-body", 1024) as found:
        yield SimpleNamespace(url=found.url, key=key)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A server whose model computes the square root. The output for a negative number is NaN."""
    place = tmp_path_factory.mktemp("roots")
    write_square_root(place / "models")
    with serving(place / "models", place / "log") as found:
        yield found


LABELS = {"Adelie": "c", "Chinstrap": "b", "Gentoo": "a"}


@pytest.fixture(scope="module")
def second(penguins, tmp_path_factory):
    """A server that has only version 2. The features and labels of version 2 are in a different order."""
    place = tmp_path_factory.mktemp("second")
    columns = ["species", *reversed(penguins.columns.drop("species"))]
    table = penguins[columns].assign(species=penguins["species"].map(LABELS))
    trained = foldserve.fit(table, "species", name=NAME, models=place / "models", epochs=10)
    manifest = trained.manifest.model_copy(update={"version": 2})
    bundles.write(place / "models", NAME, trained.model, lambda _: manifest)
    shutil.rmtree(trained.path)
    with serving(place / "models", place / "log") as found:
        yield found


def refusal(status: int, retry_after: str | None = None, text: str = "the server's text") -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(status, headers=headers, json={"error": text})


def test_frames_in_and_frames_out(connect, server, model, penguins):
    client = connect(server.url)
    pd.testing.assert_series_equal(client.predict(penguins), model.predict(penguins))
    found, expected = client.predict_proba(penguins), model.predict_proba(penguins)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    polars = pl.read_csv(PENGUINS, null_values="NA")
    assert client.predict(polars).to_list() == client.predict(polars.to_dicts()).tolist() == expected.idxmax(1).tolist()
    assert client.predict(penguins[:0]).tolist() == []
    assert client.manifest() == model.manifest


def test_a_large_frame_is_sent_in_chunks_on_one_connection(connect, server, model, penguins):
    client = connect(server.url, chunk_rows=1000)
    pd.testing.assert_frame_equal(client.predict_proba(penguins), model.predict_proba(penguins), rtol=1e-5)
    sizes = [len(request.content) // (4 * 7) for request in client.wire.sent if request.method == "POST"]
    assert sizes == [100, 100, 100, 44]  # the server allows 100 rows
    assert len(client.wire.connections) == 1
    client.predict(penguins[:5])
    # One GET asks for the manifest, and another GET asks for the limit of rows.
    assert [request.method for request in client.wire.sent].count("GET") == 2


def test_a_chunk_that_is_too_large_for_the_server_is_halved(connect, strict, model, penguins):
    client = connect(strict.url, api_key=strict.key)
    pd.testing.assert_frame_equal(client.predict_proba(penguins), model.predict_proba(penguins), rtol=1e-5)
    sizes = [len(request.content) for request in client.wire.sent if request.method == "POST"]
    assert max(sizes[-5:]) <= 1024 < sizes[0]


def test_a_busy_server_is_asked_again(connect, server, penguins):
    client = connect(server.url)
    client.wire.refusals = [refusal(503, "0"), refusal(429, "0"), httpx.RemoteProtocolError("closed")]
    assert len(client.predict(penguins[:3])) == 3
    assert len(client.wire.sent) == 3 + 3


@pytest.mark.parametrize(
    ("status", "retry_after", "retries", "sent"),
    [
        (503, "0", Retries(attempts=2), 3),
        (503, "31", Retries(), 1),
        (503, None, Retries(), 1),
        (429, "5", Retries(most_wait=4), 1),
    ],
    ids=["too often", "too long", "without Retry-After", "longer than the client waits"],
)
def test_a_server_that_stays_busy_is_an_error_with_its_text(
    connect, server, penguins, status, retry_after, retries, sent
):
    client = connect(server.url, retries=retries)
    client.wire.refusals = [refusal(status, retry_after) for _ in range(9)]
    with pytest.raises(foldserve.ServerBusy, match="the server's text") as error:
        client.predict(penguins)
    assert (error.value.status, error.value.retry_after) == (status, retry_after and float(retry_after))
    assert len(client.wire.sent) == sent


def test_no_wait_is_longer_than_the_deadline(connect, server, penguins):
    client = connect(server.url, deadline=5)
    client.wire.refusals = [refusal(503, "6")]
    with pytest.raises(foldserve.ServerBusy):
        client.predict(penguins)
    client.predict(penguins[:3])
    limits = [int(request.headers["x-request-timeout-ms"]) for request in client.wire.sent]
    assert all(0 < limit <= 5000 for limit in limits)
    with pytest.raises(foldserve.DeadlineExceeded, match="the deadline passed before all rows were answered"):
        connect(server.url, deadline=0).predict(penguins)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(400, foldserve.RequestRefused), (415, foldserve.RequestRefused), (422, foldserve.RequestRefused)],
        *[(401, foldserve.AccessDenied), (403, foldserve.AccessDenied), (404, foldserve.ModelNotFound)],
        *[(504, foldserve.DeadlineExceeded), (500, foldserve.ServerFailed), (302, foldserve.ServerFailed)],
    ],
)
def test_each_status_has_a_named_error_with_the_text_of_the_server(connect, server, penguins, status, kind):
    client = connect(server.url)
    client.wire.refusals = [refusal(status)]
    with pytest.raises(kind) as error:
        client.predict(penguins)
    assert (error.value.status, error.value.text, str(error.value)) == (
        status,
        "the server's text",
        f"{status}: the server's text",
    )
    assert isinstance(error.value, foldserve.ClientError)


def test_a_table_that_does_not_fit_is_refused_before_it_is_sent(connect, server, penguins):
    client = connect(server.url)
    with pytest.raises(foldserve.TableError, match="has no column 'sex'"):
        client.predict(penguins.drop(columns="sex"))
    assert not [request for request in client.wire.sent if request.method == "POST"]


def test_the_row_of_a_server_is_the_row_of_the_table(connect, roots):
    rows = np.ones((10, 2))
    rows[7] = -1
    client = connect(roots.url, model="roots", chunk_rows=3)
    with pytest.raises(foldserve.RequestRefused, match=r"422: the model gives .* not finite for row 7"):
        client.predict(rows)
    with pytest.raises(TypeError, match="a regression has no probabilities"):
        client.predict_proba(rows[:5])
    with pytest.raises(foldserve.ModelNotFound, match="404: "):
        connect(roots.url).predict(rows)


def test_a_key_is_sent_and_its_absence_is_named(connect, strict, penguins):
    assert len(connect(strict.url, api_key=strict.key).predict(penguins)) == len(penguins)
    with pytest.raises(foldserve.AccessDenied, match="401: "):
        connect(strict.url).predict(penguins)


def test_an_address_and_a_key_are_enough(strict, model, penguins):
    with foldserve.Client(strict.url, model=NAME, api_key=strict.key) as client:
        pd.testing.assert_series_equal(client.predict(penguins), model.predict(penguins))

    async def ask():
        async with foldserve.AsyncClient(strict.url, model=NAME, api_key=strict.key) as client:
            return await client.predict(penguins)

    pd.testing.assert_series_equal(asyncio.run(ask()), model.predict(penguins))


def test_a_new_version_is_asked_with_its_own_schema(connect, server, second, penguins):
    client = connect(server.url)
    before = client.predict(penguins)
    client.wire.url = httpx.URL(second.url)
    assert (client.predict(penguins) == before.map(LABELS)).mean() > 0.97
    assert client.manifest().version == 2
    with pytest.raises(foldserve.ModelNotFound):
        connect(second.url, version=1).predict(penguins)


def test_without_a_name_the_default_model_answers(connect, server, penguins):
    client = connect(server.url, model=None)
    client.predict(penguins[:3])
    assert client.manifest().name == NAME
    client.wire.refusals = [httpx.Response(200, json={"default": None, "models": [{"name": "a"}, {"name": "b"}]})]
    with pytest.raises(foldserve.ModelNotFound, match="no default model, give the name of a model: a, b"):
        client.manifest()


def test_a_client_asks_again_which_version_serves(connect, server, penguins):
    client = connect(server.url, refresh=0)
    client.predict(penguins[:3])
    client.predict(penguins[:3])
    assert [request.method for request in client.wire.sent] == ["GET", "GET", "POST"] * 2


def test_a_server_that_is_not_there_is_named(connect, penguins):
    client = connect("http://127.0.0.1:1")
    with pytest.raises(foldserve.ServerUnreachable, match="no server answers"):
        client.predict(penguins)
    client.wire.refusals = [httpx.RemoteProtocolError("closed")] * 9
    with pytest.raises(foldserve.ServerUnreachable, match="the server closed the connection"):
        client.predict(penguins)
    client.wire.refusals = [httpx.ReadTimeout("late")]
    with pytest.raises(foldserve.ServerUnreachable, match="the server did not answer in time"):
        client.predict(penguins)


def test_a_response_that_is_not_of_a_foldserve_server_is_named(connect, server, penguins):
    client = connect(server.url)
    client.wire.refusals = [httpx.Response(200, text="<html>")]
    with pytest.raises(foldserve.ServerFailed, match="a manifest that this version of foldserve can't read"):
        client.predict(penguins)
    client.wire.refusals = [httpx.Response(502, text="<html>")]
    with pytest.raises(foldserve.ServerFailed, match="502: Bad Gateway"):
        client.predict(penguins)
    client.predict(penguins[:3])
    client.wire.refusals = [httpx.Response(200, content=b"short")]
    with pytest.raises(foldserve.ServerFailed, match="the response has 5 bytes for 3 rows"):
        client.predict(penguins[:3])
