"""Tests requests from web pages of other sites.

The tests check Host, Origin, CORS and headers for browsers, on the fast path and in the app.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.support import MARKER, Answer, Served, receive, serving, write_square_root

PREDICT = "POST /v1/models/roots:predict"
APP = ("GET /v2/health/live", "GET /openapi.json", "GET /docs", "GET /nowhere")
BOTH_PATHS = (PREDICT, "GET /v2/health/live")
BODY = b'{"instances": [[1, 3]]}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_square_root(models)
    return models


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        folder, tmp_path_factory.mktemp("log") / "log", "--device", "cpu", env={"FOLDSERVE_ALLOWED_HOSTS": ""}
    ) as served:
        yield served


@pytest.fixture(scope="module")
def shared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that web pages of one other site may use."""
    flags = ("--allowed-hosts", "Models.example:8443,[fd00::1]", "--cors-origins", "https://app.example")
    with serving(folder, tmp_path_factory.mktemp("log") / "log", "--device", "cpu", *flags) as served:
        yield served


def ask(server: Served, line: str, *headers: str) -> Answer:
    """Send one request with exactly these headers. `{port}` in a header becomes the server's port."""
    body = BODY if line.startswith("POST") else b""
    lines = [f"{line} HTTP/1.1", *(header.format(port=server.port) for header in headers)]
    lines += [f"Content-Length: {len(body)}"] if body else []
    with server.connect() as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return receive(connection)


@pytest.mark.parametrize("line", BOTH_PATHS)
@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:{port}", "LOCALHOST", "localhost.", "127.0.0.1", "127.0.0.1:{port}", "[::1]", "[::1]:80"],
)
def test_on_loopback_its_own_names_are_accepted(server: Served, line: str, host: str) -> None:
    assert ask(server, line, f"Host: {host}").status == 200


@pytest.mark.parametrize("line", BOTH_PATHS)
@pytest.mark.parametrize(
    "host", [f"{MARKER}.example", f"{MARKER}.example:{{port}}", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
def test_on_loopback_another_host_is_refused(server: Served, line: str, host: str) -> None:
    """An attacker's host name may resolve to 127.0.0.1.

    Only the header Host shows the attack, because the attacker's page and the server have the same origin for a
    browser.
    """
    answer = ask(server, line, f"Host: {host}", f"Origin: http://{host}")
    assert answer.status == 421
    assert "--allowed-hosts" in answer.json()["error"]
    assert MARKER.encode() not in answer.body


def test_a_probe_in_http_1_0_needs_no_host(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
        assert receive(connection).status == 200


@pytest.mark.parametrize("line", BOTH_PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        ("Host: localhost", "Host: localhost"),
        ("Host: localhost", "host: evil.example"),
        ("Host: local host",),
        ("Host: localhost/evil",),
        ("Host: user@localhost",),
        ("Host: localhost:80:80",),
        ("Host: localhost:x",),
        ("Host: [::1",),
    ],
)
def test_two_host_headers_and_an_invalid_host_are_refused(server: Served, line: str, headers: tuple[str, ...]) -> None:
    assert ask(server, line, *headers).status == 400


@pytest.mark.parametrize("line", BOTH_PATHS)
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost", "http://127.0.0.1:{port}", "localhost:{port}", ""],
)
def test_a_page_of_another_origin_is_refused(server: Served, line: str, origin: str) -> None:
    answer = ask(server, line, "Host: localhost:{port}", f"Origin: {origin}")
    assert answer.status == 403
    assert "--cors-origins" in answer.json()["error"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("line", BOTH_PATHS)
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:{port}", "http://localhost:{port}"),
        ("LocalHost:{port}", "http://localhost:{port}"),
        ("localhost", "http://localhost:80"),
        ("localhost:443", "https://localhost"),  # a proxy in front of the server terminates TLS
    ],
)
def test_the_pages_of_the_server_itself_are_accepted(server: Served, line: str, host: str, origin: str) -> None:
    assert ask(server, line, f"Host: {host}", f"Origin: {origin}").status == 200


@pytest.mark.parametrize("line", BOTH_PATHS)
@pytest.mark.parametrize("host", ["models.example", "models.example:8443", "[fd00::1]:{port}", "localhost:{port}"])
def test_allowed_hosts_are_accepted_too(shared: Served, line: str, host: str) -> None:
    assert ask(shared, line, f"Host: {host}").status == 200
    assert ask(shared, line, "Host: other.example").status == 421


def test_any_host_can_be_allowed(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path / "log", "--device", "cpu", "--allowed-hosts", "*") as served:
        assert ask(served, PREDICT, "Host: other.example").status == 200


def test_on_other_addresses_than_loopback_every_host_is_accepted(folder: Path, tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--host", "0.0.0.0")  # noqa: S104
    with serving(folder, tmp_path / "log", *flags, env={"FOLDSERVE_ALLOWED_HOSTS": ""}) as served:
        assert ask(served, PREDICT, "Host: other.example").status == 200
        assert ask(served, PREDICT, "Host: other.example", "Origin: http://evil.example").status == 403


@pytest.mark.parametrize("line", [PREDICT, *APP])
def test_every_response_lets_a_page_of_an_allowed_origin_read_it(shared: Served, line: str) -> None:
    answer = ask(shared, line, "Host: localhost", "Origin: https://app.example")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "origin" in answer.headers["vary"].lower()
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in ask(shared, line, "Host: localhost").headers


def test_a_refused_body_lets_an_allowed_page_read_the_reason(shared: Served) -> None:
    with shared.connect() as connection:
        head = "Host: localhost\r\nOrigin: https://app.example\r\nContent-Length: 99999999999"
        connection.sendall(f"{PREDICT} HTTP/1.1\r\n{head}\r\n\r\n".encode())
        answer = receive(connection)
    assert answer.status == 413
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_a_preflight_of_an_allowed_origin_is_answered(shared: Served) -> None:
    line = PREDICT.replace("POST", "OPTIONS")
    wanted = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type")
    answer = ask(shared, line, "Host: localhost", "Origin: https://app.example", *wanted)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert ask(shared, line, "Host: localhost", "Origin: https://evil.example", *wanted).status == 403


@pytest.mark.parametrize("line", [PREDICT, *APP, "GET /static/docs.js", "POST /nowhere", "DELETE /predict"])
def test_no_response_may_be_taken_for_another_type(server: Served, line: str) -> None:
    for headers in (("Host: localhost",), ("Host: evil.example",), ("Host: a b",)):
        assert ask(server, line, *headers).headers["x-content-type-options"] == "nosniff"


def test_the_page_of_the_documentation_loads_only_files_of_this_server(server: Served) -> None:
    answer = ask(server, "GET /docs", "Host: localhost")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    page = answer.body.decode()
    assert "<script>" not in page
    assert "http" not in page
    script = ask(server, "GET /static/docs.js", "Host: localhost")
    assert script.headers["content-type"].startswith("text/javascript")
    assert json.loads(ask(server, "GET /openapi.json", "Host: localhost").body)["info"]["title"] == "foldserve"
