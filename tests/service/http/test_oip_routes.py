"""Tests the Open Inference Protocol over HTTP: metadata, repository index, inference, statistics, compressed bodies."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from foldserve.service import bundle
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
)

MAX_BODY = 2**20
MAX_ROWS = 500
LENGTH = "Inference-Header-Content-Length"
MODEL = "/v2/models/digits"
INFER = f"{MODEL}/infer"
# The values are integers, as in the table. float32 holds these integers exactly. The response to the rows below is
# large enough to be compressed.
ROWS = np.random.default_rng(0).integers(0, 17, (40, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of digits/1 and diabetes/1. The server refuses digits/2, which has a flipped byte."""
    folder = tmp_path_factory.mktemp("oip")
    models = Path(shutil.copytree(trained, folder / "models"))
    write_damaged_second(models, "digits")
    with serving(models, folder / "log", "--device", "cpu", "--max-body", MAX_BODY, "--max-rows", MAX_ROWS) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE, trust_env=False) as found:
        yield found


@pytest.fixture(scope="module")
def expected(digits: bundle.Bundle) -> np.ndarray:
    """The outputs of ONNX Runtime alone for `ROWS`."""
    return oracle(digits.model)(ROWS)


def infer_request(rows: np.ndarray = ROWS, **more: Any) -> dict[str, Any]:
    tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return {**more, "inputs": [tensor]}


def binary_request(rows: np.ndarray = ROWS) -> tuple[bytes, bytes]:
    """Return a request's JSON and the bytes that follow the JSON. The request asks for a binary response."""
    content = rows.astype("<f4").tobytes()
    tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(content)}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode(), content


def values_of(answer: dict[str, Any]) -> np.ndarray:
    (tensor,) = answer["outputs"]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def error(answer: httpx.Response | Answer, status: int) -> str:
    """Check that an answer is an error in the common form and does not repeat the input. Return the error's text."""
    content = answer.json()
    assert (answer.status_code if isinstance(answer, httpx.Response) else answer.status) == status, content
    assert answer.headers["content-type"] == "application/json"
    assert list(content) == ["error"]
    assert MARKER not in content["error"]
    return str(content["error"])


# --- metadata and health ---------------------------------------------------------------------------------------------


def test_the_server_names_itself_and_its_extensions(client: httpx.Client) -> None:
    found = client.get("/v2").json()
    assert list(found) == ["name", "version", "extensions"]
    assert found["name"] == "foldserve"
    assert isinstance(found["version"], str)
    assert {"binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"} <= set(
        found["extensions"]
    )


@pytest.mark.parametrize("name", ["live", "ready"])
def test_the_server_is_live_and_ready(name: str, client: httpx.Client) -> None:
    answer = client.get(f"/v2/health/{name}")
    assert (answer.status_code, answer.json()) == (200, {name: True})


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_metadata_names_the_tensors_their_types_and_shapes(path: str, client: httpx.Client) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found = answer.json()
    assert (found["name"], found["versions"], found["platform"]) == ("digits", ["1"], "onnxruntime_onnx")
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 64]}]
    assert found["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]


def test_metadata_of_a_regression_has_one_output(client: httpx.Client) -> None:
    found = client.get("/v2/models/diabetes").json()
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 10]}]
    assert found["outputs"] == [{"name": "value", "datatype": "FP32", "shape": [-1, 1]}]


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_a_verified_model_is_ready(path: str, client: httpx.Client) -> None:
    answer = client.get(f"{path}/ready")
    assert (answer.status_code, answer.json()) == (200, {"name": "digits", "ready": True})


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_the_configuration_leaves_the_batch_out_of_the_dimensions(path: str, client: httpx.Client) -> None:
    found = client.get(f"{path}/config").json()
    assert (found["name"], found["platform"], found["backend"]) == ("digits", "onnxruntime_onnx", "onnxruntime")
    assert (type(found["max_batch_size"]), found["max_batch_size"]) == (int, MAX_ROWS)
    assert found["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [64]}]
    assert found["output"] == [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10]}]


# --- the repository --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": false}', b'{"more": 1}'], ids=repr)
def test_the_index_has_every_version_and_its_state(body: bytes, client: httpx.Client) -> None:
    answer = client.post("/v2/repository/index", content=body)
    assert answer.status_code == 200
    assert [(found["name"], found["version"], found["state"]) for found in answer.json()] == [
        ("diabetes", "1", "READY"),
        ("digits", "1", "READY"),
        ("digits", "2", "UNAVAILABLE"),
    ]
    assert [bool(found["reason"]) for found in answer.json()] == [False, False, True]


def test_the_index_of_ready_models_leaves_out_the_others(client: httpx.Client) -> None:
    found = client.post("/v2/repository/index", json={"ready": True}).json()
    assert [(model["name"], model["version"]) for model in found] == [("diabetes", "1"), ("digits", "1")]


@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b'{"ready": 1}', b'{"ready": null}', b'{"ready": "true"}'])
def test_an_index_request_with_another_body_is_refused(body: bytes, client: httpx.Client) -> None:
    text = error(client.post("/v2/repository/index", content=body), 400)
    assert text == 'the body is not an object whose "ready" is true or false'


def test_an_index_request_that_is_not_json_or_too_large_is_refused(client: httpx.Client) -> None:
    assert "not valid JSON" in error(client.post("/v2/repository/index", content=MARKER), 400)
    assert "larger than" in error(client.post("/v2/repository/index", content=b" " * (MAX_BODY // 2)), 413)


# --- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INFER, f"{MODEL}/versions/1/infer"])
def test_a_json_request_returns_the_outputs_of_onnx_runtime(
    path: str, client: httpx.Client, expected: np.ndarray
) -> None:
    found = client.post(path, json=infer_request(id="x")).json()
    assert (found["model_name"], found["model_version"], found["id"]) == ("digits", "1", "x")
    assert (found["outputs"][0]["name"], found["outputs"][0]["datatype"]) == ("probabilities", "FP32")
    assert values_of(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_binary_request_gets_a_binary_response(client: httpx.Client, expected: np.ndarray) -> None:
    head, content = binary_request()
    answer = client.post(INFER, content=head + content, headers={LENGTH: str(len(head))})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    end = int(answer.headers[LENGTH])
    (tensor,) = json.loads(answer.content[:end])["outputs"]
    assert tensor["parameters"] == {"binary_data_size": expected.nbytes}
    values = np.frombuffer(answer.content[end:], "<f4").reshape(tensor["shape"])
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rows_without_json_get_a_binary_response(client: httpx.Client, expected: np.ndarray) -> None:
    headers = {LENGTH: "0", "Content-Type": "application/octet-stream"}
    answer = client.post(INFER, content=ROWS.astype("<f4").tobytes(), headers=headers)
    values = np.frombuffer(answer.content[int(answer.headers[LENGTH]) :], "<f4").reshape(expected.shape)
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_both_protocols_give_the_same_floats(client: httpx.Client) -> None:
    friendly = client.post("/v1/models/digits:predict", json={"instances": ROWS.tolist()}).json()["probabilities"]
    assert (
        values_of(client.post(INFER, json=infer_request()).json()).tolist() == np.array(friendly, np.float32).tolist()
    )


@pytest.mark.parametrize("length", ["99999999999", "-1", "ten", "+1", "1.0"])
def test_an_invalid_json_length_is_refused_and_the_connection_stays_usable(length: str, served: Served) -> None:
    good = json.dumps(infer_request(ROWS[:1])).encode()
    with served.connect() as connection:
        connection.sendall(request("POST", INFER, f"{LENGTH}: {length}", body=good))
        assert "not a length within the body" in error(receive(connection), 400)
        connection.sendall(request("POST", INFER, body=good))
        assert receive(connection).status == 200


# --- statistics ------------------------------------------------------------------------------------------------------


def statistics(client: httpx.Client, path: str = f"{MODEL}/stats") -> dict[str, Any]:
    (found,) = client.get(path).json()["model_stats"]
    return dict(found)


def test_statistics_count_a_request_before_its_response_is_sent(served: Served) -> None:
    def ask(connection: Any, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        connection.sendall(request(method, path, body=body))
        answer = receive(connection)
        assert answer.status == 200
        return dict(answer.json())

    with served.connect() as connection:
        (before,) = ask(connection, "GET", f"{MODEL}/stats")["model_stats"]
        for count in range(1, 6):
            ask(connection, "POST", INFER, json.dumps(infer_request(ROWS[:3])).encode())
            (after,) = ask(connection, "GET", f"{MODEL}/stats")["model_stats"]
            assert after["inference_count"] == before["inference_count"] + 3 * count
            assert after["execution_count"] == before["execution_count"] + count
            assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + count


@pytest.mark.parametrize("path", [f"{MODEL}/stats", f"{MODEL}/versions/1/stats"])
def test_statistics_are_integers_with_the_names_of_the_protocol(path: str, client: httpx.Client) -> None:
    client.post(INFER, json=infer_request())
    found = statistics(client, path)
    assert (found["name"], found["version"]) == ("digits", "1")
    for name in ("last_inference", "inference_count", "execution_count"):
        assert type(found[name]) is int
        assert found[name] > 0
    of = found["inference_stats"]
    assert {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"} <= of.keys()
    for spent in of.values():
        assert {name: type(value) for name, value in spent.items()} == {"count": int, "ns": int}
        assert min(spent.values()) >= 0
    assert of["compute_input"]["count"] == of["compute_infer"]["count"] == of["compute_output"]["count"]
    assert of["compute_infer"]["count"] == of["success"]["count"] > 0
    assert of["success"]["ns"] > 0
    assert of["compute_infer"]["ns"] > 0


def test_statistics_count_both_protocols_together_and_failures_apart(client: httpx.Client) -> None:
    before = statistics(client)
    client.post("/v1/models/digits:predict", json={"instances": ROWS[:2].tolist()})
    error(client.post(INFER, content=b"{}"), 400)
    error(client.post("/v1/models/digits:predict", content=b"{}"), 400)
    after = statistics(client)
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"] + 2


def test_statistics_of_one_model_are_not_those_of_another(client: httpx.Client, diabetes: bundle.Bundle) -> None:
    before = statistics(client)
    golden = np.array(diabetes.manifest.golden.inputs, np.float32)
    assert client.post("/v2/models/diabetes/infer", json=infer_request(golden)).status_code == 200
    assert statistics(client)["inference_count"] == before["inference_count"]
    found = client.get("/v2/models/stats").json()["model_stats"]
    assert sorted((model["name"], model["version"]) for model in found) == [("diabetes", "1"), ("digits", "1")]
    assert next(model for model in found if model["name"] == "diabetes")["inference_count"] >= len(golden)


# --- compressed bodies -----------------------------------------------------------------------------------------------

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
PATHS = ["/v1/models/digits:predict", INFER]
encodings = pytest.mark.parametrize("encoding", list(ENCODINGS))
# The app answers a path with an escaped letter. The connection itself answers the other two paths.
paths = pytest.mark.parametrize("path", [*PATHS, *(path.replace("digits", "%64igits") for path in PATHS)])


def good(path: str, rows: np.ndarray = ROWS) -> bytes:
    return json.dumps({"instances": rows.tolist()} if "predict" in path else infer_request(rows)).encode()


@encodings
@paths
def test_a_compressed_request_gets_the_same_response(path: str, encoding: str, served: Served) -> None:
    body = good(path)
    plain = served.send("POST", path, body=body)
    assert plain.status == 200
    for name in (encoding, encoding.upper(), f"identity, {encoding}"):
        answer = served.send("POST", path, f"Content-Encoding: {name}", body=ENCODINGS[encoding](body))
        assert (answer.status, answer.body) == (200, plain.body)


def test_a_request_may_be_compressed_twice(served: Served) -> None:
    body = gzip.compress(zlib.compress(good(INFER)))
    assert served.send("POST", INFER, "Content-Encoding: deflate, gzip", body=body).status == 200


@paths
def test_a_large_answer_is_compressed_for_a_client_that_accepts_gzip(path: str, served: Served) -> None:
    plain = served.send("POST", path, body=good(path))
    assert "content-encoding" not in plain.headers
    answer = served.send("POST", path, "Accept-Encoding: br, deflate, gzip;q=0.5", body=good(path))
    assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")
    assert answer.headers["vary"].lower() == "accept-encoding"
    assert len(answer.body) < len(plain.body)
    assert gzip.decompress(answer.body) == plain.body


@pytest.mark.parametrize("accepted", ["", "br", "deflate", "identity", "gzip;q=0", "deflate;q=0, gzip;q=0.0", MARKER])
@paths
def test_an_answer_is_not_compressed_for_a_client_that_does_not_accept_gzip(
    path: str, accepted: str, served: Served
) -> None:
    answer = served.send("POST", path, f"Accept-Encoding: {accepted}", body=good(path))
    assert answer.status == 200
    assert "content-encoding" not in answer.headers
    assert answer.json()


@paths
def test_a_small_answer_is_not_compressed(path: str, served: Served) -> None:
    answer = served.send("POST", path, "Accept-Encoding: gzip", body=good(path, ROWS[:1]))
    assert answer.status == 200
    assert "content-encoding" not in answer.headers


@encodings
def test_the_json_length_is_that_before_compression_in_request_and_response(
    encoding: str, served: Served, expected: np.ndarray
) -> None:
    head, content = binary_request()
    headers = (f"{LENGTH}: {len(head)}", f"Content-Encoding: {encoding}", "Accept-Encoding: gzip")
    answer = served.send("POST", INFER, *headers, body=ENCODINGS[encoding](head + content))
    assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")
    body = gzip.decompress(answer.body)
    end = int(answer.headers[LENGTH.lower()])
    (tensor,) = json.loads(body[:end])["outputs"]
    values = struct.unpack(f"<{expected.size}f", body[end:])
    assert np.reshape(values, tensor["shape"]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@paths
def test_a_decompression_bomb_is_refused_at_the_limit(path: str, served: Served) -> None:
    zeros = bytes(16 * MAX_BODY)
    for encoding, body in (
        ("gzip", gzip.compress(zeros, 1)),
        ("deflate", zlib.compress(zeros, 1)),
        ("gzip, gzip", gzip.compress(gzip.compress(zeros, 1))),
    ):
        answer = served.send("POST", path, f"Content-Encoding: {encoding}", body=body)
        assert error(answer, 413) == f"the body is larger than {MAX_BODY} bytes once it is decompressed"


@encodings
def test_a_body_of_the_largest_size_after_decompression_is_read(encoding: str, served: Served) -> None:
    body = good(INFER).ljust(MAX_BODY)
    headers = f"Content-Encoding: {encoding}"
    assert served.send("POST", INFER, headers, body=ENCODINGS[encoding](body)).status == 200
    error(served.send("POST", INFER, headers, body=ENCODINGS[encoding](body + b" ")), 413)


@encodings
@paths
def test_a_body_that_is_not_in_its_encoding_is_refused(path: str, encoding: str, served: Served) -> None:
    whole = ENCODINGS[encoding](good(path))
    for body in (b"", good(path), whole[:-1], whole + MARKER.encode(), whole[:20] + b"\xff" * 20 + whole[40:]):
        answer = served.send("POST", path, f"Content-Encoding: {encoding}", body=body)
        assert error(answer, 400) == "the body is not in its Content-Encoding"


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "*", "gzip, br", "br, gzip", "gzip;q=1", MARKER])
@paths
def test_an_unsupported_content_encoding_is_refused(path: str, encoding: str, served: Served) -> None:
    answer = served.send("POST", path, f"Content-Encoding: {encoding}", body=gzip.compress(good(path)))
    assert error(answer, 415) == "the Content-Encoding is not gzip, deflate or identity"


def test_the_requests_left_no_traceback_and_no_warning_in_the_log(served: Served) -> None:
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "Warning" not in log
