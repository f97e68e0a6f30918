"""Tests the REST interface of the real server over HTTP. The tests of refused bodies are in test_refusals.py."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_digits

from foldserve.service import bundle, errors
from foldserve.service.protocols.reply import STATUS
from tests.service.support import (
    MARKER,
    PATIENCE,
    Answer,
    Served,
    oracle,
    receive,
    request,
    serving,
    write_damaged_second,
    write_square_root,
)

MAX_BODY = 4 * 2**20
MAX_ROWS = 5000

# The values are integers, as in the table. float32 holds these integers exactly.
ROWS = load_digits().data[::30].astype(np.float32)
PREDICT = "/v1/models/digits:predict"


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models digits/1, diabetes/1 and roots/1, and with digits/2, which has a flipped byte."""
    models = Path(shutil.copytree(trained, tmp_path_factory.mktemp("app") / "models"))
    write_damaged_second(models, "digits")
    write_square_root(models)
    return models


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    flags = ("--device", "cpu", "--default-model", "digits", "--max-body", MAX_BODY, "--max-rows", MAX_ROWS)
    with serving(folder, folder.parent / "log", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE, trust_env=False) as found:
        yield found


@pytest.fixture(scope="module")
def expected(digits: bundle.Bundle) -> np.ndarray:
    """The outputs that ONNX Runtime alone computes for `ROWS`."""
    return oracle(digits.model)(ROWS)


@pytest.fixture(autouse=True)
def the_next_good_request_gets_200(client: httpx.Client, expected: np.ndarray) -> Iterator[None]:
    yield
    answer = client.post(PREDICT, json={"instances": ROWS[:1].tolist()})
    assert answer.status_code == 200
    assert answer.json()["predictions"] == expected[:1].argmax(1).tolist()


def error(answer: httpx.Response | Answer, status: int) -> str:
    """Check that an answer is an error in the common form and does not repeat the input. Return the error's text."""
    found = answer.status_code if isinstance(answer, httpx.Response) else answer.status
    content = answer.json()
    assert found == status, content
    assert answer.headers["content-type"] == "application/json"
    assert list(content) == ["error"]
    assert isinstance(content["error"], str)
    assert MARKER not in content["error"]
    assert "\n" not in content["error"]
    return str(content["error"])


def by_name(rows: np.ndarray, manifest: bundle.Manifest) -> list[dict[str, float]]:
    return [dict(zip((f.name for f in manifest.features), row, strict=True)) for row in rows.tolist()]


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predict", PREDICT, "/v1/models/digits/versions/1:predict"])
def test_every_prediction_path_returns_the_labels_and_probabilities_of_onnx_runtime(
    path: str, client: httpx.Client, digits: bundle.Bundle, expected: np.ndarray
) -> None:
    answer = client.post(path, json={"instances": ROWS.tolist()})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert (content["model"], content["version"]) == ("digits", 1)
    assert content["predictions"] == [digits.manifest.labels[i] for i in expected.argmax(1)]
    assert np.array(content["probabilities"]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_arrays_and_objects_get_the_same_response_byte_for_byte(client: httpx.Client, digits: bundle.Bundle) -> None:
    by_array = client.post(PREDICT, json={"instances": ROWS.tolist()})
    named = [dict(sorted(row.items(), reverse=True)) for row in by_name(ROWS, digits.manifest)]
    assert client.post(PREDICT, json={"instances": named}).content == by_array.content


def test_a_regression_returns_values_and_no_probabilities(client: httpx.Client, diabetes: bundle.Bundle) -> None:
    rows = np.array(diabetes.manifest.golden.inputs, np.float32)
    content = client.post("/v1/models/diabetes:predict", json={"instances": rows.tolist()}).json()
    assert list(content) == ["model", "version", "predictions"]
    assert content["predictions"] == pytest.approx(oracle(diabetes.model)(rows)[:, 0].tolist(), rel=1e-4)


def test_an_older_version_answers_when_the_newer_one_is_broken(client: httpx.Client) -> None:
    assert client.post(PREDICT, json={"instances": ROWS.tolist()}).json()["version"] == 1


@pytest.mark.parametrize("spelling", [None, "application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_of_json_is_optional(spelling: str | None, client: httpx.Client) -> None:
    headers = {"Content-Type": spelling} if spelling else {}
    body = json.dumps({"instances": ROWS[:1].tolist()}).encode()
    assert client.post(PREDICT, content=body, headers=headers).status_code == 200


def test_a_chunked_body_is_read_like_any_other_body(client: httpx.Client, expected: np.ndarray) -> None:
    body = json.dumps({"instances": ROWS.tolist()}).encode()
    answer = client.post(PREDICT, content=(body[i : i + 100] for i in range(0, len(body), 100)))
    assert answer.json()["predictions"] == expected.argmax(1).tolist()


def test_the_largest_number_of_rows_is_answered_in_one_request(client: httpx.Client, digits: bundle.Bundle) -> None:
    rows = np.random.default_rng(0).integers(0, 17, (MAX_ROWS, 64)).astype(np.float32)
    content = client.post(PREDICT, json={"instances": rows.astype(int).tolist()}).json()
    wanted = oracle(digits.model)(rows)
    assert content["predictions"] == wanted.argmax(1).tolist()
    assert np.array(content["probabilities"]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_concurrent_requests_each_get_their_own_response(client: httpx.Client, digits: bundle.Bundle) -> None:
    callers, rounds = 32, 4
    together = threading.Barrier(callers, timeout=PATIENCE)
    run = oracle(digits.model)

    def call(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(rounds):
            rows = generator.uniform(0, 16, (1 + seed % 5, 64)).astype(np.float32)
            together.wait()
            answer = client.post(PREDICT, json={"instances": rows.tolist()})
            assert answer.status_code == 200
            assert np.array(answer.json()["probabilities"]) == pytest.approx(run(rows), rel=1e-4, abs=1e-5)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))


@pytest.mark.parametrize(("flags", "model"), [((), "diabetes"), (("--default-model", "digits"), "digits")])
def test_the_command_that_the_server_prints_works(
    flags: tuple[str, ...], model: str, trained: Path, tmp_path: Path
) -> None:
    with serving(trained, tmp_path / "log", *flags) as server:
        assert server.process.stdout
        assert server.process.stdout.readline() == "try:\n"
        example = shlex.split(server.process.stdout.readline())
        options = {flag: value for flag, value in pairwise(example) if flag.startswith("-")}
        (url,) = [word for word in example if word.startswith("http")]
        name, _, value = options["-H"].partition(": ")
        answer = httpx.post(url, content=options["-d"], headers={name: value}, timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.json()["model"] == model


# --- models and health -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/digits/metadata", "digits"),
        ("/v1/models/digits/versions/1/metadata", "digits"),
        ("/v1/models/diabetes/metadata", "diabetes"),
        ("/v1/models/roots/metadata", "roots"),
    ],
)
def test_metadata_is_the_manifest_without_its_seal(path: str, name: str, client: httpx.Client, folder: Path) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    manifest = json.loads((folder / name / "1" / "manifest.json").read_bytes())
    assert answer.json() == {field: value for field, value in manifest.items() if field != "seal"}


def test_the_status_of_a_model_lists_each_version(client: httpx.Client, folder: Path) -> None:
    answer = client.get("/v1/models/digits")
    assert answer.status_code == 200
    first, second = answer.json()["versions"]
    assert (answer.json()["name"], answer.json()["ready"]) == ("digits", True)
    assert first == {
        "version": 1,
        "state": "ready",
        "provider": "CPUExecutionProvider",
        "why": "requested",
        "note": None,
        "compared": None,
    }
    assert (second["version"], second["state"]) == (2, "refused")
    assert second["why"] == "model.onnx is not the certified one: its sha256 is not the manifest's"
    assert str(folder) not in answer.text  # only the operator may see the path


def test_the_list_has_the_status_of_every_model_and_names_the_default(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    names = [model["name"] for model in listed["models"]]
    assert names == sorted(names)
    assert {"digits", "diabetes", "roots"} <= set(names)
    assert listed["models"] == [client.get(f"/v1/models/{name}").json() for name in names]
    assert listed["default"] == client.post("/predict", json={"instances": [[0] * 64]}).json()["model"]


def test_the_process_is_live_and_ready(client: httpx.Client) -> None:
    for path, content in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/started", {"started": True}),
        ("/v2/health/ready", {"ready": True}),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, content)


# --- documentation ---------------------------------------------------------------------------------------------------

ROUTES = {
    ("post", "/predict"),
    ("post", "/v1/models/{model}:predict"),
    ("post", "/v1/models/{model}/versions/{version}:predict"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("get", "/v1/models/{model}/metadata"),
    ("get", "/v1/models/{model}/versions/{version}/metadata"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/started"),
    ("get", "/v2/health/ready"),
    ("get", "/v2"),
    ("get", "/v2/models/{model}"),
    ("get", "/v2/models/{model}/ready"),
    ("get", "/v2/models/{model}/config"),
    ("get", "/v2/models/{model}/stats"),
    ("get", "/v2/models/{model}/versions/{version}"),
    ("get", "/v2/models/{model}/versions/{version}/ready"),
    ("get", "/v2/models/{model}/versions/{version}/config"),
    ("get", "/v2/models/{model}/versions/{version}/stats"),
    ("get", "/v2/models/stats"),
    ("post", "/v2/models/{model}/infer"),
    ("post", "/v2/models/{model}/versions/{version}/infer"),
    ("post", "/v2/repository/index"),
    ("get", "/metrics"),
}


def operations(client: httpx.Client) -> dict[tuple[str, str], dict[str, Any]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {(method, path): found for path, methods in paths.items() for method, found in methods.items()}


def test_openapi_names_every_route(client: httpx.Client) -> None:
    found = operations(client)
    assert found.keys() >= ROUTES
    assert all(operation["summary"] for operation in found.values())


def test_openapi_documents_every_error_of_a_prediction_with_its_text(client: httpx.Client) -> None:
    for (method, path), operation in operations(client).items():
        if method == "post" and operation["tags"] == ["predict"]:
            for status, text in STATUS.values():
                assert text in operation["responses"][str(status)]["description"], path
            assert "requestBody" in operation


def test_openapi_documents_that_a_model_may_be_unknown_or_not_ready(client: httpx.Client) -> None:
    for (method, path), operation in operations(client).items():
        if path.endswith("/metadata") and method == "get":
            assert {"404", "503"} <= operation["responses"].keys(), path


def test_openapi_says_that_rows_and_tensors_are_not_empty(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    def schema(path: str) -> Any:
        return paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]

    choices = schema("/predict")["instances"]["anyOf"]
    assert [choice["minItems"] for choice in choices] == [1, 1]
    inputs = schema("/v2/models/{model}/infer")["inputs"]
    assert inputs["minItems"] == inputs["maxItems"] == 1


def test_openapi_has_one_shape_of_error(client: httpx.Client) -> None:
    for (_, path), operation in operations(client).items():
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)


def test_every_reference_in_openapi_resolves(client: httpx.Client) -> None:
    answer = client.get("/openapi.json")
    for reference in re.findall(r'"\$ref":\s*"([^"]+)"', answer.text):
        found = answer.json()
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


@pytest.mark.parametrize("path", ["/predict", "/v1/models/{model}:predict", "/v2/models/{model}/infer"])
def test_the_documented_example_of_a_prediction_works(path: str, client: httpx.Client) -> None:
    content = operations(client)["post", path]["requestBody"]["content"]["application/json"]
    example = content["example"] if path == "/predict" else content["examples"]["digits"]["value"]
    assert client.post(path.format(model="digits"), json=example).status_code == 200


def test_the_documentation_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(?:https?:)?//\w", page.text)
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {Path(part).suffix for part in parts} == {".js", ".css", ".png"}
    for part in parts:
        answer = client.get(f"/{part}")  # the links are relative to /docs
        assert answer.status_code == 200
        assert answer.content
    assert 'fetch("openapi.json"' in client.get("/static/docs.js").text


def test_the_root_tells_a_kserve_client_that_the_server_is_alive(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.json()["status"]) == (200, "alive")


# --- refused paths and methods ---------------------------------------------------------------------------------------


def test_the_table_of_statuses_has_a_row_for_every_request_error() -> None:
    def concrete(kind: type[errors.FoldserveError]) -> set[type[errors.FoldserveError]]:
        below = kind.__subclasses__()
        return set().union(*map(concrete, below)) if below else {kind}

    # RuntimeFailure has subclasses, but the code also raises RuntimeFailure directly.
    assert concrete(errors.RequestError) | {errors.RuntimeFailure} == set(STATUS)
    assert all(400 <= status < 600 and text for status, text in STATUS.values())


UNKNOWN_NAMES = [
    *(
        MARKER,
        "Digits",
        "digits2",
        "digits%20",
        "digits%2f",
        "..",
        "%2e%2e",
        "%2E%2E%2Fdigits",
        "%00",
        "digits%00",
        "%ff",
    ),
    *("..;", "..;/digits", "%c0%ae", "%e2%80%ae", "*", "{model}", "~", "a" * 5000),
]


@pytest.mark.parametrize("name", UNKNOWN_NAMES, ids=lambda name: name[:20])
def test_an_unknown_name_is_not_found(name: str, served: Served) -> None:
    for path in (f"/v1/models/{name}", f"/v1/models/{name}/metadata", f"/v1/models/{name}/versions/1/metadata"):
        error(served.send("GET", path), 404)
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/1"):
        for about in ("", "/ready", "/config", "/stats"):
            error(served.send("GET", path + about), 404)


@pytest.mark.parametrize(
    "version", ["3", "0", "01", "-1", "1.0", "+1", "1_0", "one", "%31%00", "%20", "1 ", "%d9%a1", "9" * 30]
)
def test_an_unknown_version_is_not_found(version: str, served: Served) -> None:
    version = version.replace(" ", "%20")
    text = "unknown version of this model"
    assert error(served.send("GET", f"/v1/models/digits/versions/{version}/metadata"), 404) == text
    for about in ("", "/ready", "/config", "/stats"):
        assert error(served.send("GET", f"/v2/models/digits/versions/{version}{about}"), 404) == text


@pytest.mark.parametrize(
    "path",
    [
        *(f"/{MARKER}", "/predict/", "//predict", "/v1", "/v1/models/", "/v1/models/digits/", "/docs/"),
        *("/v1/models/digits/versions", "/v1/models/digits/versions/1", "/redoc", "/static", "/static/", "/%2e%2e"),
        *("/static/swagger-ui", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%00"),
        *("/static//etc/passwd", "/static/%2fetc/passwd", f"/static/{'a' * 5000}", "/static/%ff", "/static/..;/app.py"),
    ],
    ids=lambda path: path[:30],
)
def test_an_unknown_path_is_not_found(path: str, served: Served) -> None:
    assert error(served.send("GET", path), 404) == "Not Found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("PUT", "/predict", "POST"),
        ("DELETE", PREDICT, "POST"),
        ("GET", PREDICT, "POST"),
        ("GET", "/v1/models/digits/versions/1:predict", "POST"),
        ("POST", "/v1/models/digits", "GET"),
        ("DELETE", "/v1/models/digits", "GET"),
        ("POST", "/v1/models/digits/metadata", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("GET", "/v2/models/digits/infer", "POST"),
        ("PUT", "/v2/models/digits/versions/1/infer", "POST"),
        ("POST", "/v2/models/digits", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("PATCH", "/docs", "GET"),
        ("POST", "/openapi.json", "GET"),
        ("POST", "/static/swagger-ui/swagger-ui.css", "GET"),
    ],
)
def test_a_wrong_method_gets_a_405_that_names_the_right_method(
    method: str, path: str, allowed: str, served: Served
) -> None:
    answer = served.send(method, path)
    assert error(answer, 405) == "Method Not Allowed"
    assert allowed in answer.headers["allow"].split(", ")


@pytest.mark.parametrize(
    "path", ["/v1/{}/metadata", "/v2/{}", "/v2/{}/ready", "/v2/{}/config", "/v2/{}/stats"], ids=lambda path: path
)
def test_a_refused_version_is_not_ready(path: str, client: httpx.Client) -> None:
    answer = client.get(path.format("models/digits/versions/2"))
    assert error(answer, 503) == "the model is not ready"


# --- refused bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media",
    ["text/plain", "text/json", "application/jsonp", "application/x-ndjson", "multipart/form-data", "json", ""],
)
@pytest.mark.parametrize("path", [PREDICT, "/v2/models/digits/infer"])
def test_an_unsupported_media_type_is_refused(path: str, media: str, client: httpx.Client) -> None:
    body = json.dumps({"instances": ROWS[:1].tolist()}).encode()
    text = error(client.post(path, content=body, headers={"Content-Type": media}), 415)
    assert text == "the Content-Type is neither application/json nor application/octet-stream"


def test_a_form_is_refused(client: httpx.Client) -> None:
    error(client.post(PREDICT, data={"instances": "1"}), 415)


@pytest.mark.parametrize(
    "encodings", [["br"], ["zstd"], ["compress"], ["gzip, br"], ["identity", "br"], ["*"], [MARKER]], ids=repr
)
def test_an_unsupported_content_encoding_is_refused(encodings: list[str], served: Served) -> None:
    body = gzip.compress(json.dumps({"instances": ROWS[:1].tolist()}).encode())
    error(served.send("POST", PREDICT, *(f"Content-Encoding: {encoding}" for encoding in encodings), body=body), 415)


def test_a_content_length_above_the_limit_is_refused_before_the_body_is_read(served: Served) -> None:
    # The client sends no byte of the body, so the server must answer without it.
    answer = served.send("POST", PREDICT, f"Content-Length: {MAX_BODY + 1}")
    assert error(answer, 413) == f"the body is larger than {MAX_BODY} bytes"


def test_a_chunked_body_is_refused_when_it_passes_the_limit(served: Served) -> None:
    chunk = b" " * 65536
    with served.connect() as connection:
        connection.sendall(request("POST", PREDICT, "Transfer-Encoding: chunked"))
        for _ in range(MAX_BODY // len(chunk) + 1):
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        # The client never sends the last chunk of the body.
        assert error(receive(connection), 413) == f"the body is larger than {MAX_BODY} bytes"


def test_a_body_of_the_largest_size_is_read(client: httpx.Client) -> None:
    body = json.dumps({"instances": ROWS[:1].tolist()}).encode()
    assert client.post(PREDICT, content=body.ljust(MAX_BODY)).status_code == 200
    error(client.post(PREDICT, content=body.ljust(MAX_BODY + 1)), 413)


def test_the_body_of_a_refused_request_is_never_parsed_as_a_request(served: Served) -> None:
    smuggled = request("GET", "/v2/health/live")
    body = smuggled * (MAX_BODY // len(smuggled) + 1)
    with served.connect() as connection:
        connection.sendall(request("POST", PREDICT, f"Content-Length: {len(body)}"))
        error(receive(connection), 413)
        try:
            connection.sendall(body + request("GET", "/v2/health/ready"))
            answer = receive(connection)
        except ConnectionError:
            return  # the server may close the connection instead of answering
        assert answer.json() == {"ready": True}


def test_bytes_that_are_not_http_get_a_400_and_the_connection_is_closed(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert receive(connection).status == 400
        assert connection.recv(1) == b""


def test_a_client_that_disconnects_during_its_body_does_no_harm(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(request("POST", PREDICT, "Content-Length: 100", body=b'{"instances"'))


def test_the_refusals_left_no_traceback_in_the_log(served: Served) -> None:
    # This test runs after the tests above, on the same server.
    assert "Traceback" not in served.log.read_text()


# --- shutdown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_with_status_0(number: signal.Signals, trained: Path, tmp_path: Path) -> None:
    with serving(trained, tmp_path / "log") as server:
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in server.log.read_text()


def accepted(server: Served, body: bytes) -> Any:
    """Send the head of a prediction request for diabetes. The server answers 100 when it waits for the body."""
    connection = server.connect()
    headers = ("Expect: 100-continue", f"Content-Length: {len(body)}")
    connection.sendall(request("POST", "/v1/models/diabetes:predict", *headers))
    assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
    return connection


def test_a_request_that_was_accepted_before_sigterm_is_answered(
    trained: Path, tmp_path: Path, diabetes: bundle.Bundle
) -> None:
    body = json.dumps({"instances": diabetes.manifest.golden.inputs}).encode()
    with serving(trained, tmp_path / "log") as server, accepted(server, body) as busy, server.connect() as idle:
        idle.sendall(request("GET", "/v2/health/live"))
        assert receive(idle).status == 200
        server.process.terminate()
        assert idle.recv(1) == b""  # the server has begun to drain, because it has closed the idle connection
        busy.sendall(body)
        answer = receive(busy)
        assert answer.status == 200
        assert len(answer.json()["predictions"]) == len(diabetes.manifest.golden.inputs)
        assert server.process.wait(PATIENCE) == 0


def test_an_unfinished_request_does_not_keep_the_process_alive(trained: Path, tmp_path: Path) -> None:
    flags = ("--drain-timeout", 0)
    with serving(trained, tmp_path / "log", *flags) as server, accepted(server, b"never sent"):
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0
