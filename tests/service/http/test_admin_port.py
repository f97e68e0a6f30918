"""Tests metrics and administration on a separate port. A server without keys warns if other machines can reach it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from foldserve.service.access.keys import Scope, create_key
from tests.service.support import (
    Answer,
    Served,
    assert_refused_in_one_line,
    foldserve,
    serving,
    write_square_root,
)

OPEN = ("/", "/docs", "/v2/health/live", "/v2/health/ready", "/static/docs.js")
MAIN = ("/v2", "/openapi.json", "/v1/models/roots", "/v2/models/roots", "/v2/models/roots/ready")
APART = ("/metrics", "/v2/models/stats", "/v2/models/roots/stats", "POST /v2/repository/index")
PREDICTIONS = ("POST /predict", "POST /%70redict", "POST /v1/models/roots:predict", "POST /v1/models/roots%3Apredict")
BODY = b'{"instances": [[1, 3]]}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_square_root(models)
    return models


@pytest.fixture(scope="module", params=[1, 2])
def both(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Served]]:
    """The main port and the admin port of a server, once with one worker and once with two."""
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(folder, log, "--device", "cpu", "--admin-port", 0, "--workers", request.param) as served:
        assert served.process.stdout
        second = served.process.stdout.readline()
        found = re.fullmatch(r"metrics and administration are on http://127\.0\.0\.1:(\d+)\n", second)
        assert found, second
        yield served, replace(served, port=int(found[1]))


def ask(server: Served, path: str, *headers: str) -> Answer:
    method, _, path = path.rpartition(" ")
    body = b"" if not method or "index" in path else BODY
    return server.send(method or "GET", path, *headers, body=body)


def test_each_port_has_its_own_routes_and_both_have_the_open_routes(both: tuple[Served, Served]) -> None:
    main, admin = both
    for path in OPEN:
        assert {ask(main, path).status, ask(admin, path).status} <= {200, 307}, path
    for path in (*MAIN, *PREDICTIONS):
        assert ask(main, path).status == 200, path
        answer = ask(admin, path)
        assert (answer.status, answer.json()) == (404, {"error": "Not Found"}), path
    for path in APART:
        answer = ask(main, path)
        assert (answer.status, answer.json()) == (404, {"error": "Not Found"}), path
        assert ask(admin, path).status == 200, path


def test_the_metrics_count_the_requests_of_the_main_port(both: tuple[Served, Served]) -> None:
    main, admin = both

    def count() -> float:
        text = ask(admin, "/metrics").body.decode()
        counts = re.findall(r'foldserve_requests_total{.*status="200".*} (\S+)', text)
        return sum(map(float, counts))

    before = count()
    for _ in range(5):
        assert ask(main, "POST /predict").status == 200
    # Each worker publishes its counts only once a second, so counts of earlier requests may arrive late.
    while count() < before + 5:
        assert admin.process.poll() is None


def test_keys_guard_the_second_port_too(folder: Path, tmp_path: Path) -> None:
    keys = {scope: create_key(scope.value, [scope], None) for scope in (Scope.METRICS, Scope.PREDICT)}
    (tmp_path / "keys").write_text("\n".join(line for _, line in keys.values()))
    flags = ("--device", "cpu", "--admin-port", 0, "--keys", tmp_path / "keys")
    with serving(folder, tmp_path / "log", *flags) as served:
        assert served.process.stdout
        found = re.search(r":(\d+)\n", served.process.stdout.readline())
        assert found
        admin = replace(served, port=int(found[1]))
        assert ask(admin, "/metrics").status == 401
        assert ask(admin, "/metrics", f"X-API-Key: {keys[Scope.METRICS][0]}").status == 200
        assert ask(admin, "/metrics", f"X-API-Key: {keys[Scope.PREDICT][0]}").status == 403
        assert ask(served, "/metrics", f"X-API-Key: {keys[Scope.METRICS][0]}").status == 404
        assert ask(admin, "/metrics", "Host: evil.example").status == 400  # this request has two Host headers


def test_both_ports_stop_together(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path / "log", "--device", "cpu", "--admin-port", 0) as served, served.connect():
        served.process.terminate()
        assert served.process.wait(60) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_one_port_for_both_is_refused(folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    done = foldserve("serve", "--models", folder, "--device", "cpu", "--port", port, "--admin-port", port)
    assert_refused_in_one_line(done, f"--port and --admin-port are both {port}")


EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        pytest.param((), False, marks=pytest.mark.slow),
        pytest.param(("--host", "localhost"), False, marks=pytest.mark.slow),
        pytest.param(("--host", EVERYWHERE), True, marks=pytest.mark.slow),
        (("--admin-port", 0, "--admin-host", EVERYWHERE), True),
        (("--host", EVERYWHERE, "--keys", "{keys}"), False),
    ],
)
def test_a_server_without_keys_warns_if_other_machines_can_reach_it(
    flags: tuple[object, ...], warned: bool, folder: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(create_key("any", [Scope.PREDICT], None)[1])
    given = [str(flag).format(keys=keys) for flag in flags]
    with serving(folder, tmp_path / "log", "--device", "cpu", "--workers", 2, *given):
        lines = [line for line in (tmp_path / "log").read_text().splitlines() if "may use this server" in line]
    assert len(lines) == warned
    assert all(" WARNING " in line and "--keys" in line and EVERYWHERE in line for line in lines)
