"""Tests the access log of a real server, and the formats of the log. Each line of the JSON format is parsed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.access.keys import Scope, create_key
from tests.service.support import PATIENCE, Answer, Served, receive, request, serving, stop, write_square_root

HOT, APP, INFER = "/predict", "/%70redict", "/v2/models/roots/infer"
ROWS = b'{"instances": [[1, 3], [4, 5]]}'
BAD = b'{"instances": [[1]]}'
MADE = r"[0-9a-f]{16}"
FAULTY = "tests.service.serve_with_faults"
JSON = ("--access-log", "--log-format", "json")
STEPS = {"wait_ms", "parse_ms", "queue_ms", "run_ms", "encode_ms"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged") / "models"
    folder.mkdir()
    write_square_root(folder)
    return folder


def tensor(identity: str | None = None) -> bytes:
    inputs = [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 3]}]
    return json.dumps({"inputs": inputs} | ({} if identity is None else {"id": identity})).encode()


def access_lines(log: Path) -> list[dict[str, Any]]:
    """Parse all lines of a log, and return the lines of the access log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    return [line for line in lines if line["logger"] == "foldserve.access"]


class Logged:
    """A server with an access log, and the requests of one test."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.sent: list[Answer] = []
        self._known = len(server.log.read_text().splitlines())

    def send(self, raw: bytes) -> Answer:
        with self.server.connect() as connection:
            connection.sendall(raw)
            self.sent.append(receive(connection))
        return self.sent[-1]

    def text(self) -> list[str]:
        """Wait until the access log has one line for each sent request, and return these lines."""
        hung = time.monotonic() + PATIENCE
        while True:
            lines = self.server.log.read_text().splitlines()[self._known :]
            found = [line for line in lines if "foldserve.access" in line]
            if len(found) >= len(self.sent):
                return found
            assert time.monotonic() < hung, "a line is missing"

    def lines(self) -> list[dict[str, Any]]:
        return list(map(json.loads, self.text()))


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models, tmp_path_factory.mktemp("json") / "log", *JSON) as running:
        yield running


@pytest.fixture(scope="module")
def console(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models, tmp_path_factory.mktemp("console") / "log", "--access-log") as running:
        yield running


@pytest.fixture(scope="module")
def silent(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models, tmp_path_factory.mktemp("silent") / "log") as running:
        yield running


@pytest.fixture
def logged(server: Served) -> Iterator[Logged]:
    """Records the requests to a server that logs in JSON. At the end, checks that each request has one line in the
    log.
    """
    requests = Logged(server)
    yield requests
    assert len(requests.text()) == len(requests.sent)


def test_a_line_has_the_request_its_model_and_its_times_on_every_way(logged: Logged) -> None:
    for path, body in ((HOT, ROWS), (APP, ROWS), (INFER, tensor()), ("/v2/%6dodels/roots/infer", tensor())):
        assert logged.send(request("POST", path, "X-Request-Id: order-7", body=body)).status == 200
    lines = logged.lines()
    assert len(lines) == 4
    for line, answer, path in zip(lines, logged.sent, (HOT, APP, INFER, "/v2/%6dodels/roots/infer"), strict=True):
        assert answer.headers["x-request-id"] == line["request_id"] == "order-7"
        assert (line["method"], line["url"], line["status"], line["skipped"]) == ("POST", path, 200, 0)
        assert line["message"] == f"POST {path} 200"
        assert (line["model"], line["version"]) == ("roots", "1")
        assert (line["protocol"], line["rows"]) == (("oip", 1) if "v2" in path else ("friendly", 2))
        assert line["batch_rows"] == line["rows"]
        assert all(line[step] >= 0 for step in STEPS)
        assert sum(line[step] for step in STEPS) <= line["ms"] + 0.01
        assert re.fullmatch(r"127\.0\.0\.1:\d+", line["client"])
        assert "reason" not in line


REFUSED = {
    "invalid_input": (request("POST", HOT, body=BAD), 400),
    "invalid_input on the app's path": (request("POST", APP, body=BAD), 400),
    "unknown_model": (request("POST", "/v1/models/other:predict", body=ROWS), 404),
    "too_large": (request("POST", HOT, "Content-Length: 5000"), 413),
    "head_too_large": (request("GET", "/docs", "X: " + "x" * 3000), 431),
    "invalid_http": (b"POST " + b"\r\n\r\n", 400),
    "deadline_passed": (request("POST", HOT, "X-Request-Timeout-Ms: 0", body=ROWS), 504),
    "missing_key": (request("POST", HOT, "X-API-Key: wrong", body=ROWS), 401),
    "missing_key on the app's path": (request("POST", APP, "X-API-Key: wrong", body=ROWS), 401),
}


def test_each_refused_request_has_one_line_with_its_reason(models: Path, tmp_path: Path) -> None:
    key, line = create_key("all", (Scope.PREDICT,), None)
    (tmp_path / "keys").write_text(line)
    flags = (*JSON, "--max-head", 2048, "--max-body", 4096, "--keys", tmp_path / "keys")
    with serving(models, tmp_path / "log", *flags) as server:
        logged = Logged(server)
        for raw, status in REFUSED.values():
            raw = raw if b"X-API-Key" in raw else raw.replace(b"Host: test", f"Host: test\r\nX-API-Key: {key}".encode())
            assert logged.send(raw).status == status
        lines = logged.lines()
    assert [(line["reason"], line["status"]) for line in lines] == [
        (name.partition(" ")[0], status) for name, (_, status) in REFUSED.items()
    ]
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in logged.sent]
    assert key not in server.log.read_text()


def test_other_requests_have_a_line_too(logged: Logged) -> None:
    for path in ("/v2/health/live", "/metrics", "/nowhere"):
        logged.send(request("GET", path))
    assert [(line["url"], line["status"]) for line in logged.lines()] == [
        ("/v2/health/live", 200),
        ("/metrics", 200),
        ("/nowhere", 404),
    ]


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_client_that_leaves_before_its_response_has_a_line(path: str, models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *JSON, "--max-delay", 10, "--max-batch", 2) as server:
        queued = re.compile(rb"foldserve_queued_rows\{[^}]*\} 1\.0")
        with server.connect() as connection:
            connection.sendall(request("POST", path, body=b'{"instances": [[1, 3]]}'))
            while not queued.search(server.send("GET", "/metrics").body):
                assert server.process.poll() is None
        while queued.search(server.send("GET", "/metrics").body):
            assert server.process.poll() is None
        stop(server.process)
    (line,) = [line for line in access_lines(server.log) if line.get("url") == path]
    assert line["status"] == 499
    assert {"rows", "queue_ms"} <= line.keys()
    assert "run_ms" not in line


UNSAFE = [
    "a b",
    "a\tb",
    'a"b',
    "a\\nb",
    "é",
    "\x1b[31m".replace("\x1b", "%1b") + "[",
    "x" * 129,
    "${jndi:ldap://x}",
    "",
]


@pytest.mark.parametrize("path", [HOT, APP])
def test_an_unsafe_identifier_is_replaced_and_a_safe_one_is_kept(path: str, logged: Logged) -> None:
    for value in UNSAFE:
        logged.send(request("POST", path, f"X-Request-Id: {value}", body=ROWS))
    longest = "A1-._:/+=@" * 12 + "12345678"
    logged.send(request("POST", path, f"X-Request-Id: {longest}", body=ROWS))
    ids = [line["request_id"] for line in logged.lines()]
    assert ids == [answer.headers["x-request-id"] for answer in logged.sent]
    assert all(re.fullmatch(MADE, made) for made in ids[:-1])
    assert len(set(ids)) == len(ids)
    assert ids[-1] == longest


def test_the_identifier_of_a_body_has_its_own_field_if_it_is_safe(logged: Logged) -> None:
    for identity in ("order-8", "two words", "\u00fc", "x" * 129):
        answer = logged.send(request("POST", INFER, "X-Request-Id: order-7", body=tensor(identity)))
        assert answer.json()["id"] == identity
        assert answer.headers["x-request-id"] == "order-7"
    assert [line.get("id") for line in logged.lines()] == ["order-8", None, None, None]


@pytest.mark.parametrize("log_format", ["server", "console"])
def test_a_url_can_not_add_a_line_or_a_control_character(log_format: str, request: pytest.FixtureRequest) -> None:
    urls = [b'/a"b', b"/%0d%0aINFO", "/\u0085\u2028".encode(), b"/\xff\xfe", b"/" + b"a" * 5000, b"/a\\n"]
    logged = Logged(request.getfixturevalue(log_format))
    for url in urls:
        logged.send(b"GET " + url + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    lines = logged.text()
    assert len(lines) == len(urls)
    assert all(line.isascii() and line.isprintable() and len(line) < 3000 for line in lines)


def test_while_busy_lines_are_skipped_and_counted_but_no_error_is(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *JSON, "--access-log-rate", 2) as server, server.connect() as connection:
        for body in [ROWS, ROWS, ROWS, BAD] * 20:
            connection.sendall(request("POST", HOT, body=body))
            assert receive(connection).status in {200, 400}
        stop(server.process)
    lines = access_lines(server.log)
    assert sum(line.get("status") == 400 for line in lines) == 20
    answered = sum(line.get("status") == 200 for line in lines)
    assert 2 <= answered < 60
    assert answered + sum(line["skipped"] for line in lines) == 60


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT[3:35]
# Values of the header traceparent, and whether the server continues the trace of the client. The rules are in W3C Trace
# Context, level 2, section 3.2.
TRACEPARENTS = {
    PARENT: True,
    PARENT[:-2] + "00": True,
    PARENT[:-2] + "03": True,
    "cc" + PARENT[2:]: True,
    "cc" + PARENT[2:] + "-what-the-future-brings": True,
    PARENT + "-extra": False,
    "ff" + PARENT[2:]: False,
    "cc" + PARENT[2:] + ".x": False,
    PARENT.upper().replace("00-", "00-", 1): False,
    PARENT.replace("0af", "0xf"): False,
    PARENT.replace(TRACE, "0" * 32): False,
    PARENT.replace("b7ad6b7169203331", "0" * 16): False,  # pragma: allowlist secret
    PARENT[:-1]: False,
    PARENT[3:]: False,
    "": False,
    f"{PARENT}\r\ntraceparent: {PARENT}": False,
    f"{PARENT}\r\nTraceParent: 00-{'1' * 32}-{'2' * 16}-01": False,
}


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_valid_traceparent_goes_on_and_an_invalid_one_is_ignored(path: str, logged: Logged) -> None:
    for value in TRACEPARENTS:
        assert logged.send(request("POST", path, f"traceparent: {value}", body=ROWS)).status == 200
    lines = logged.lines()
    assert {value: line["trace_id"] == TRACE for value, line in zip(TRACEPARENTS, lines, strict=True)} == TRACEPARENTS
    for line in lines:
        assert re.fullmatch("[0-9a-f]{32}", line["trace_id"])
        assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    assert len({line["span_id"] for line in lines}) == len(lines)


def test_the_console_has_the_same_fields(console: Served) -> None:
    logged = Logged(console)
    logged.send(request("POST", HOT, "X-Request-Id: order-7", body=ROWS))
    (line,) = logged.text()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO foldserve\.access: 127\.0\.0\.1:\d+ - \"POST /predict\" 200 "
        r"request_id=order-7 trace_id=\w{32} span_id=\w{16} ms=[\d.]+ model=roots version=1 protocol=friendly rows=2 "
        r"wait_ms=[\d.]+ parse_ms=[\d.]+ queue_ms=[\d.]+ run_ms=[\d.]+ encode_ms=[\d.]+ batch_rows=2",
        line,
    )


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_line_of_an_error_has_the_identifier_of_its_request(log_format: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("{}")
    flags = ("--access-log", "--log-format", log_format, "--faults", tmp_path / "faults")
    with serving(models, tmp_path / "log", *flags, program=FAULTY) as server:
        (tmp_path / "part").write_text('{"fail": 1}')
        (tmp_path / "part").rename(tmp_path / "faults")
        answer = Logged(server).send(request("POST", HOT, "X-Request-Id: order-7", body=ROWS))
        assert answer.status == 500
        stop(server.process)
    (line,) = [line for line in server.log.read_text().splitlines() if "the model failed to run; cause" in line]
    assert json.loads(line)["request_id"] == "order-7" if log_format == "json" else line.endswith(" id=order-7")


def test_a_request_in_pieces_has_a_run_from_its_first_piece_to_its_last(models: Path, tmp_path: Path) -> None:
    body = json.dumps({"instances": [[1, 3]] * 64}).encode()
    with serving(models, tmp_path / "log", *JSON, "--max-batch", 1) as server:
        logged = Logged(server)
        assert logged.send(request("POST", HOT, body=body)).status == 200
        (line,) = logged.lines()
    assert (line["rows"], line["batch_rows"]) == (64, 1)
    assert line["run_ms"] > line["queue_ms"]


def test_without_the_log_a_safe_identifier_is_repeated_and_none_is_made(silent: Served) -> None:
    for path in (HOT, APP):
        assert silent.send("POST", path, "X-Request-Id: order-7", body=ROWS).headers["x-request-id"] == "order-7"
        assert "x-request-id" not in silent.send("POST", path, "X-Request-Id: two words", body=ROWS).headers
        assert "x-request-id" not in silent.send("POST", path, body=ROWS).headers
    assert "access" not in silent.log.read_text()


def test_the_document_describes_the_headers_of_predictions(silent: Served) -> None:
    paths = silent.send("GET", "/openapi.json").json()["paths"]
    predictions = [operations["post"] for path, operations in paths.items() if re.search("predict|infer", path)]
    assert len(predictions) == 5
    for operation in predictions:
        described = {each["name"]: each["schema"] for each in operation["parameters"] if each["in"] == "header"}
        assert described["X-Request-Priority"]["enum"] == ["normal", "high"]
        assert described["X-Request-Timeout-Ms"]["type"] == "integer"
        assert described["X-Request-Id"] == {"type": "string"}
