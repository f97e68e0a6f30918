"""Tests API keys on a real server.

The tests try every route and prediction path without a key, and with a key of each scope.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from foldserve.service.access.keys import KeyLine, Scope, create_key
from foldserve.service.compose import Service, compose
from foldserve.service.http.app import create_app
from foldserve.service.http.guarded import declared_scope
from foldserve.service.settings import Settings
from tests.service.support import (
    MARKER,
    PATIENCE,
    Answer,
    Served,
    assert_refused_in_one_line,
    foldserve,
    receive,
    request,
    serving,
    write_square_root,
)

SCOPES = (Scope.PREDICT, Scope.METRICS, Scope.ADMIN)
BODY = b'{"instances": [[1, 3]]}'
HOT = ("/predict", "/v1/models/roots:predict", "/v1/models/roots/versions/1:predict")
PARTS = {"{model}": "roots", "{version}": "1", "{path:path}": "swagger-ui/swagger-ui.css"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_square_root(models)
    return models


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    return compose(Settings(models=folder, device="cpu"))


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[str, str]]:
    """Return a key for each scope, and the line of each key for the server's file. The name of a key is its scope.

    The key `all` has every scope. The key `slow` may send one request in 1000 s.
    """
    made = {scope.value: create_key(scope.value, [scope], None) for scope in SCOPES}
    return made | {"all": create_key("all", SCOPES, None), "slow": create_key("slow", SCOPES, 0.001)}


@pytest.fixture(scope="module")
def server(
    folder: Path, keys: dict[str, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("keys")
    file = place / "keys"
    file.write_text("\n".join(line for _, line in keys.values()))
    with serving(folder, place / "log", "--device", "cpu", "--keys", file) as served:
        yield served


def routes(service: Service) -> list[tuple[str, str, Scope | None]]:
    """List the (method, path, scope) of every route, and of every path that the connection answers without a route."""
    found: list[tuple[str, str, Scope | None]] = [("POST", path.decode(), Scope.PREDICT) for path in service.endpoints]
    for route in iter_route_contexts(create_app(service).routes):
        methods = route.methods or {"GET"}
        path = (route.path or "") + ("/{path:path}" if route.methods is None else "")
        path = re.sub(r"\{model(:name)?\}", "roots", path)
        for part, value in PARTS.items():
            path = path.replace(part, value)
        found += [(method, path, declared_scope(route)) for method in sorted(methods)]
    return found


def send(server: Served, method: str, path: str, *headers: str) -> Answer:
    return server.send(method, path, *headers, body=BODY if method == "POST" else b"")


def bearer(key: tuple[str, str]) -> str:
    return f"Authorization: Bearer {key[0]}"


def test_every_route_has_declared_a_scope(service: Service) -> None:
    found = routes(service)
    assert len(found) > 30
    assert [(method, path) for method, path, scope in found if scope is None] == []
    assert {(method, path) for method, path, scope in found if scope is Scope.OPEN} == {
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/page/{folder}/{name}"),
        ("GET", "/static/swagger-ui/swagger-ui.css"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/health/started"),
    }


def test_the_page_about_access_names_the_scopes_and_a_line_of_a_file(service: Service) -> None:
    page = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
    table = dict(re.findall(r"^\| (?:`(\w+)`|no key needed) \| (.*) \|$", page, re.M))
    assert table.keys() == {"", *(scope.value for scope in SCOPES)}
    open_paths = {
        path.replace("swagger-ui/swagger-ui.css", "...").replace("{folder}/{name}", "...")
        for _, path, scope in routes(service)
        if scope is Scope.OPEN
    }
    assert set(re.findall("`(.+?)`", table[""])) == open_paths
    (line,) = re.findall(r'^\{"name".*$', page, re.M)
    assert KeyLine.model_validate_json(line).scopes == (Scope.PREDICT,)


def test_no_route_answers_without_a_key(service: Service, server: Served) -> None:
    for method, path, scope in routes(service):
        for headers in ((), (f"Authorization: Bearer {MARKER}",), (f"X-API-Key: {MARKER}",)):
            answer = send(server, method, path, *headers)
            if scope is Scope.OPEN:
                assert answer.status in {200, 404}, path  # 404: the name of the page's folder is wrong in this path
            else:
                assert answer.status == 401, path
                assert answer.json().keys() == {"error"}
                assert answer.headers["www-authenticate"].startswith('Bearer realm="foldserve"')
                assert ("invalid_token" in answer.headers["www-authenticate"]) is bool(headers)
                assert MARKER.encode() not in answer.body


def test_every_route_answers_only_with_its_own_scope(
    service: Service, server: Served, keys: dict[str, tuple[str, str]]
) -> None:
    for method, path, scope in routes(service):
        for other in SCOPES:
            answer = send(server, method, path, bearer(keys[other.value]))
            if scope in (other, Scope.OPEN):
                assert answer.status not in {401, 403, 405, 429}, path
            else:
                assert answer.status == 403, path
                assert scope
                assert f'scope="{scope.value}"' in answer.headers["www-authenticate"]
                assert answer.json() == {"error": f"this API key lacks the scope {scope.value}"}
        assert send(server, method, path, bearer(keys["all"])).status not in {401, 403, 405}, path


def test_a_path_in_another_spelling_is_guarded_too(server: Served, keys: dict[str, tuple[str, str]]) -> None:
    spellings = ("/%6detrics", "/metrics?x=1", "http://test/metrics", "/v1/models/roots%3Apredict", "/metrics#x")
    for path in spellings:
        method = "GET" if path == "/v2/models/roots" else "POST"
        assert send(server, method, path).status == 401, path
        wrong = keys["metrics" if "predict" in path else "predict"]
        assert send(server, method, path, bearer(wrong)).status in {403, 404}, path


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/unknown", "/v1/models/unknown:predict", "//metrics"])
def test_without_a_key_unknown_paths_look_like_known_paths(
    path: str, server: Served, keys: dict[str, tuple[str, str]]
) -> None:
    assert send(server, "GET", path).status == 401
    assert send(server, "GET", path, bearer(keys["predict"])).status in {404, 405}


@pytest.mark.parametrize("path", [*HOT, "/v1/models/roots%3Apredict"])
def test_both_headers_and_any_case_of_the_scheme_are_read(
    path: str, server: Served, keys: dict[str, tuple[str, str]]
) -> None:
    key = keys["predict"][0]
    for header in (f"X-API-Key: {key}", f"x-api-key:  {key} ", f"Authorization: bearer {key}"):
        assert send(server, "POST", path, header).status == 200
    # A proxy may need the header Authorization for itself.
    assert send(server, "POST", path, "Authorization: Basic eDp5", f"X-API-Key: {key}").status == 200
    for header in (f"Authorization: {key}", f"Authorization: Basic {key}", "Authorization:", f"Cookie: key={key}"):
        assert send(server, "POST", path, header).status == 401
    assert send(server, "POST", f"{path}{'&' if '?' in path else '?'}api_key={key}").status == 401


def test_a_refused_key_keeps_the_connection_if_the_request_is_whole(
    server: Served, keys: dict[str, tuple[str, str]]
) -> None:
    with server.connect() as connection:
        for key, status in (("metrics", 403), ("predict", 200), ("admin", 403), ("all", 200)):
            connection.sendall(request("POST", "/predict", bearer(keys[key]), body=BODY))
            assert receive(connection).status == status


def test_a_body_without_a_key_is_refused_before_it_has_arrived(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(request("POST", "/predict", "Content-Length: 1000000", "Expect: 100-continue"))
        assert receive(connection).status == 401


@pytest.mark.parametrize("path", ["/predict", "/%70redict", "/v2/models/roots"])
def test_a_rate_is_kept_on_every_path(path: str, folder: Path, tmp_path: Path) -> None:
    key = create_key("slow", [Scope.PREDICT], 0.01)
    (tmp_path / "keys").write_text(key[1])
    with serving(folder, tmp_path / "log", "--device", "cpu", "--keys", tmp_path / "keys") as served:
        method = "GET" if path == "/v2/models/roots" else "POST"
        assert send(served, method, path, bearer(key)).status == 200
        answer = send(served, method, path, bearer(key))
        assert answer.status == 429
        assert 90 <= int(answer.headers["retry-after"]) <= 100
        assert answer.json() == {"error": "this API key has reached its rate"}
        assert send(served, "GET", "/v2/health/ready").status == 200


def test_workers_share_a_rate(folder: Path, tmp_path: Path) -> None:
    key = create_key("slow", [Scope.PREDICT], 0.2)
    (tmp_path / "keys").write_text(key[1])
    flags = ("--device", "cpu", "--workers", 2, "--keys", tmp_path / "keys")
    with serving(folder, tmp_path / "log", *flags) as served:
        began = time.monotonic()
        statuses = [send(served, "POST", "/predict", bearer(key)).status for _ in range(40)]
        allowed = 1 + int((time.monotonic() - began) * 0.2)
    assert 1 <= statuses.count(200) <= allowed
    assert statuses.count(200) + statuses.count(429) == 40


def test_keys_are_counted_by_name(server: Served, keys: dict[str, tuple[str, str]]) -> None:
    def count(name: str, outcome: str) -> float:
        text = send(server, "GET", "/metrics", bearer(keys["all"])).body.decode()
        found = re.search(rf'foldserve_key_requests_total{{key="{name}",outcome="{outcome}"}} (\S+)', text)
        assert found
        return float(found[1])

    def rejected(reason: str) -> float:
        text = send(server, "GET", "/metrics", bearer(keys["all"])).body.decode()
        found = re.search(rf'foldserve_rejected_total{{reason="{reason}"}} (\S+)', text)
        return float(found[1]) if found else 0

    before = [count("predict", outcome) for outcome in ("accepted", "forbidden")]
    missing = rejected("missing_key")
    for path in ("/predict", "/%70redict", "/metrics"):
        send(server, "GET" if path == "/metrics" else "POST", path, bearer(keys["predict"]))
    send(server, "POST", "/predict")
    send(server, "POST", "/%70redict")
    assert [count("predict", outcome) for outcome in ("accepted", "forbidden")] == [before[0] + 2, before[1] + 1]
    assert rejected("missing_key") == missing + 2
    send(server, "GET", "/v2", bearer(keys["slow"]))
    send(server, "GET", "/v2", bearer(keys["slow"]))
    assert count("slow", "limited") >= 1
    for key, _ in keys.values():
        assert key not in send(server, "GET", "/metrics", bearer(keys["all"])).body.decode()
        assert key not in server.log.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_running_server_reads_changed_keys(workers: int, folder: Path, tmp_path: Path) -> None:
    old, new = (create_key(name, [Scope.PREDICT], None) for name in ("old", "new"))
    file = tmp_path / "keys"
    file.write_text(old[1])
    with serving(folder, tmp_path / "log", "--device", "cpu", "--workers", workers, "--keys", file) as served:
        assert send(served, "POST", "/predict", bearer(old)).status == 200
        (tmp_path / "next").write_text(new[1])
        (tmp_path / "next").replace(file)
        deadline = time.monotonic() + PATIENCE
        row = 0
        while row < 20 and time.monotonic() < deadline:  # the loop ends when every worker has read the file
            row = row + 1 if send(served, "POST", "/predict", bearer(old)).status == 401 else 0
        assert row == 20
        assert send(served, "POST", "/predict", bearer(new)).status == 200


def test_the_description_says_which_routes_need_a_key(server: Served, keys: dict[str, tuple[str, str]]) -> None:
    document = json.loads(send(server, "GET", "/openapi.json", bearer(keys["predict"])).body)
    assert document["components"]["securitySchemes"].keys() == {"bearer", "header"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) is not path.startswith("/v2/health/"), path


def test_a_bad_file_of_keys_is_a_refusal_to_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("nonsense")
    for workers in (1, 2):
        flags = ("--models", folder, "--device", "cpu", "--port", 0, "--workers", workers)
        assert_refused_in_one_line(foldserve("serve", *flags, "--keys", tmp_path / "keys"), "line 1, is not an API key")
        assert_refused_in_one_line(foldserve("serve", *flags, "--keys", tmp_path / "none"), "can't read the API keys")
