"""Tests the service as an ASGI app inside another program's server: its routes, its refusals, its start and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from foldserve.service.errors import SettingsError, StartError
from foldserve.service.http.embedded import EmbeddedService
from foldserve.service.settings import Settings
from tests.service.support import write_square_root

GOOD = {"instances": [[1, 3], [4, 5]]}


@asynccontextmanager
async def serving(service: EmbeddedService, root_path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """Follow the lifespan protocol, as a server does. Yields an HTTP client of the app."""
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(service({"type": "lifespan"}, received.get, sent.put))
    await received.put({"type": "lifespan.startup"})
    assert await sent.get() == {"type": "lifespan.startup.complete"}
    transport = httpx.ASGITransport(service, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://foldserve.example") as client:
        yield client
    await received.put({"type": "lifespan.shutdown"})
    assert await sent.get() == {"type": "lifespan.shutdown.complete"}
    await life


def run(act: Callable[[httpx.AsyncClient], Awaitable[None]], models: Path, prefix: str = "", **settings: Any) -> None:
    """Serve a folder of models, and call `act` with a client of the service."""

    async def both() -> None:
        async with serving(EmbeddedService(Settings(models=models, **settings)), prefix) as client:
            await act(client)

    asyncio.run(both())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_square_root(tmp_path)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "/scores"])
def test_it_answers_predictions_and_health_below_any_prefix(models: Path, prefix: str) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        answer = await client.post(f"{prefix}/predict", json=GOOD)
        assert answer.json()["predictions"] == [2, 3]
        tensor = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [1, 3, 4, 5]}
        answer = await client.post(f"{prefix}/v2/models/roots/infer", json={"inputs": [tensor]})
        assert answer.json()["outputs"][0]["data"] == [2, 3]
        assert (await client.get(f"{prefix}/v2/health/ready")).status_code == 200
        # If several processes ran behind a balancer, a request to one of the paths below would reach only one of them.
        assert (await client.get(f"{prefix}/metrics")).status_code == 404
        assert (await client.post(f"{prefix}/v2/repository/models/roots/unload")).status_code == 404

    run(act, models, prefix)


def test_it_refuses_the_requests_that_a_server_refuses(models: Path) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        for status, request in {
            400: {"json": {"instances": [[1]]}},
            413: {"content": b" " * 1025},
            415: {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
            421: {"json": GOOD, "headers": {"Host": "other.example"}},
            403: {"json": GOOD, "headers": {"Origin": "https://other.example"}},
        }.items():
            answer = await client.post("/predict", **request)
            assert (answer.status_code, answer.json().keys()) == (status, {"error"})

    run(act, models, max_body=1024, allowed_hosts=("foldserve.example",))


def test_each_request_has_a_line_in_the_access_log(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        answer = await client.post("/predict?warnings=true", json=GOOD, headers={"X-Request-Id": "one"})
        assert answer.headers["X-Request-Id"] == "one"
        await client.get("/v2/health/live")

    run(act, models, access_log=True, log_format="json")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["url"], line["status"]) for line in lines] == [
        ("/predict?warnings=true", 200),
        ("/v2/health/live", 200),
    ]


def test_a_damaged_model_is_refused_before_the_start(tmp_path: Path) -> None:
    write_square_root(tmp_path)
    (tmp_path / "roots" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(StartError, match="no version of roots may be served"):
        EmbeddedService(Settings(models=tmp_path))


@pytest.mark.parametrize("setting", ["port", "tls_cert", "workers"])
def test_settings_of_the_other_server_are_refused(models: Path, setting: str) -> None:
    with pytest.raises(SettingsError, match=f"setting '{setting}': it has no effect inside another server; remove it"):
        EmbeddedService(Settings(models=models, **{setting: 1 if setting != "tls_cert" else Path("file")}))
