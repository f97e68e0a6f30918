"""Tests the real server with tritonclient's HTTP clients, sync and asyncio."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import Server, pixels

MISSING = "tritonclient is not installed here: make test-clients"
triton = pytest.importorskip("tritonclient.http", reason=MISSING)
aio = pytest.importorskip("tritonclient.http.aio", reason=MISSING)
ml_dtypes = pytest.importorskip("ml_dtypes", reason=MISSING)

TYPES = {
    **{"INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64},
    **{"UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64},
    **{"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16},
}
BINARY = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


def tensor(rows: np.ndarray, *, datatype: str = "FP32", name: str = "input", binary: bool = True) -> Any:
    given = triton.InferInput(name, list(rows.shape), datatype)
    given.set_data_from_numpy(rows.astype(TYPES.get(datatype, rows.dtype)), binary_data=binary)
    return given


def wanted(name: str = "probabilities", **options: Any) -> Any:
    return triton.InferRequestedOutput(name, **options)


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(server.address) as made:
        yield made


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(triton.InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status(), caught.value.message()


# --- health and metadata ---------------------------------------------------------------------------------------------


def test_the_server_is_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()


@pytest.mark.parametrize(
    ("model", "version", "ready"),
    [
        *[("digits", "", True), ("digits", "1", True), ("roots", "1", True), ("roots", "2", True)],
        *[("digits", "2", False), ("roots", "3", False), ("nobody", "", False), ("nobody", "1", False)],
    ],
)
def test_only_a_known_model_and_version_is_ready(client, model, version, ready):
    assert client.is_model_ready(model, version) is ready


def test_the_server_lists_its_extensions(client):
    answer = client.get_server_metadata()
    assert answer["name"] == "foldserve"
    assert answer["version"]
    assert {"binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"} == set(
        answer["extensions"]
    )


def test_the_metadata_has_versions_and_tensors(client):
    answer = client.get_model_metadata("digits")
    assert (answer["name"], answer["versions"]) == ("digits", ["1"])
    assert answer["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 64]}]
    assert answer["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
    assert sorted(client.get_model_metadata("roots", "1")["versions"]) == ["1", "2"]


def test_the_configuration_has_dimensions_without_the_batch(client):
    answer = client.get_model_config("digits", "1")
    assert answer["name"] == "digits"
    assert answer["max_batch_size"] >= 1024
    assert answer["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [64]}]
    assert answer["output"] == [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10]}]


def test_the_repository_index_lists_every_version(client):
    index = client.get_model_repository_index()
    assert {(one["name"], one["version"], one["state"]) for one in index} == {
        *[("digits", "1", "READY"), ("roots", "1", "READY"), ("roots", "2", "READY")],
        *[(name, "1", "READY") for name in ("gaps", "wide", "table", "mixed")],
    }


def test_the_statistics_grow_by_the_sent_rows(client):
    def counts() -> list[int]:
        (stats,) = client.get_inference_statistics("digits", "1")["model_stats"]
        kinds = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        return [stats["inference_count"], *(stats["inference_stats"][kind]["count"] for kind in kinds)]

    before = counts()
    for size in (1, 2, 7):
        client.infer("digits", [tensor(pixels(size))])
    assert np.subtract(counts(), before).tolist() == [10, 3, 3, 3, 3, 3]


def test_the_statistics_count_refused_requests_as_failed(client):
    def failed() -> int:
        return client.get_inference_statistics("digits")["model_stats"][0]["inference_stats"]["fail"]["count"]

    before = failed()
    refused(client.infer, "digits", [tensor(pixels(1)[:, :63])])
    assert failed() == before + 1


def test_without_a_model_name_the_statistics_are_those_of_all_models(client):
    listed = {(stats["name"], stats["version"]) for stats in client.get_inference_statistics()["model_stats"]}
    once = {(name, "1") for name in ("digits", "gaps", "wide", "table", "mixed")}
    assert listed == {("roots", "1"), ("roots", "2"), *once}


# --- infer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs", [None, {"binary_data": True}, {"binary_data": False}], ids=["any", "binary", "json"]
)
@BINARY
def test_binary_and_json_rows_get_binary_or_json_answers(client, server, binary, outputs):
    rows = pixels(5)
    named = None if outputs is None else [wanted(**outputs)]
    answer = client.infer("digits", [tensor(rows, binary=binary)], outputs=named)
    server.assert_right(answer.as_numpy("probabilities"), rows)
    assert ("data" in answer.get_output("probabilities")) is (outputs == {"binary_data": False})


@BINARY
def test_a_thousand_rows_come_back_in_their_order(client, server, binary):
    rows = pixels(1024)
    answer = client.infer("digits", [tensor(rows, binary=binary)], outputs=[wanted(binary_data=binary)])
    server.assert_right(answer.as_numpy("probabilities"), rows)


def test_the_answer_has_the_id_of_the_request_and_the_name_of_the_model(client):
    answer = client.infer("digits", [tensor(pixels(1))], request_id="Straße 7").get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("Straße 7", "digits", "1")
    assert "id" not in client.infer("digits", [tensor(pixels(1))]).get_response()


def test_the_newest_version_answers_by_default_and_any_version_by_its_number(client, server):
    rows = np.array([[1, 3], [4, 5]], np.float32)
    for asked, version in (("", 2), ("1", 1), ("2", 2)):
        answer = client.infer("roots", [tensor(rows)], model_version=asked)
        assert answer.get_response()["model_version"] == str(version)
        server.assert_right(answer.as_numpy("value"), rows, "roots", version)


# tritonclient can't send BF16 as JSON.
@pytest.mark.parametrize(("datatype", "binary"), [(t, b) for t in TYPES for b in (True, False) if t != "BF16" or b])
def test_every_numeric_datatype_is_read(client, server, datatype, binary):
    rows = pixels(3)
    answer = client.infer("digits", [tensor(rows, datatype=datatype, binary=binary)])
    server.assert_right(answer.as_numpy("probabilities"), rows)


@BINARY
def test_booleans_are_ones_and_zeros(client, server, binary):
    rows = pixels(3) > 8
    answer = client.infer("digits", [tensor(rows, datatype="BOOL", binary=binary)])
    server.assert_right(answer.as_numpy("probabilities"), rows)


def test_a_missing_value_is_nan_in_binary(client, server):
    rows = np.array([[np.nan, 3], [1, 3]], np.float32)
    server.assert_right(client.infer("gaps", [tensor(rows)]).as_numpy("value"), rows, "gaps")


@BINARY
@pytest.mark.parametrize("answered", ["gzip", "deflate", None])
@pytest.mark.parametrize("sent", ["gzip", "deflate", None])
def test_requests_and_answers_may_be_compressed(client, server, sent, answered, binary):
    rows = pixels(100)
    answer = client.infer(
        "digits",
        [tensor(rows, binary=binary)],
        outputs=[wanted(binary_data=binary)],
        request_compression_algorithm=sent,
        response_compression_algorithm=answered,
    )
    server.assert_right(answer.as_numpy("probabilities"), rows)


def test_a_large_answer_is_compressed_and_the_client_can_read_it(server):
    rows = pixels(1024)
    body, length = triton.InferenceServerClient.generate_request_body([tensor(rows)])
    headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": "gzip"}
    connection = http.client.HTTPConnection(server.address, timeout=60)
    connection.request("POST", "/v2/models/digits/infer", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.headers["Content-Encoding"] == "gzip"
    result = triton.InferenceServerClient.parse_response_body(
        content, header_length=int(answer.headers["Inference-Header-Content-Length"]), content_encoding="gzip"
    )
    server.assert_right(result.as_numpy("probabilities"), rows)
    assert len(content) < result.as_numpy("probabilities").nbytes


def test_the_client_reads_the_answer_to_a_raw_request(server):
    rows = pixels(3)
    connection = http.client.HTTPConnection(server.address, timeout=60)
    connection.request("POST", "/v2/models/digits/infer", rows.tobytes(), {"Inference-Header-Content-Length": "0"})
    answer = connection.getresponse()
    length = int(answer.headers["Inference-Header-Content-Length"])
    result = triton.InferenceServerClient.parse_response_body(answer.read(), header_length=length)
    connection.close()
    server.assert_right(result.as_numpy("probabilities"), rows)


def test_a_long_timeout_changes_nothing(client, server):
    rows = pixels(2)
    answer = client.infer("digits", [tensor(rows)], timeout=5_000_000)
    server.assert_right(answer.as_numpy("probabilities"), rows)


def test_a_timeout_that_has_passed_is_refused(client):
    status, text = refused(client.infer, "digits", [tensor(pixels(2))], timeout=1)
    assert status == "504"
    assert "deadline" in text


def test_custom_parameters_and_priorities_are_accepted(client, server):
    rows = pixels(2)
    answer = client.infer("digits", [tensor(rows)], priority=1, parameters={"tenant": "a"}, query_params={"a": "b"})
    server.assert_right(answer.as_numpy("probabilities"), rows)


def test_asynchronous_requests_of_the_sync_client_get_the_answers_to_their_own_rows(server):
    batches = [pixels(1 + i % 3, seed=i) for i in range(40)]
    with triton.InferenceServerClient(server.address, concurrency=8) as client:
        pending = [client.async_infer("digits", [tensor(rows)]) for rows in batches]
        for rows, answer in zip(batches, pending, strict=True):
            server.assert_right(answer.get_result().as_numpy("probabilities"), rows)


def test_each_thread_gets_the_answer_to_its_own_rows(server):
    def ask(seed: int) -> None:
        with triton.InferenceServerClient(server.address) as client:
            for i in range(25):
                rows = pixels(1 + i % 4, seed=100 * seed + i)
                identity = f"{seed}-{i}"
                answer = client.infer("digits", [tensor(rows, binary=i % 2 == 0)], request_id=identity)
                assert answer.get_response()["id"] == identity
                server.assert_right(answer.as_numpy("probabilities"), rows)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "version", "given", "status", "text"),
    [
        ("nobody", "", {}, "404", "unknown model"),
        ("digits", "2", {}, "404", "unknown version of this model"),
        (
            "digits",
            "",
            {"name": "x"},
            "400",
            "the shape of tensor number 1 is neither [rows] nor [rows, 1] with at least one row",
        ),
        ("wide", "", {}, "400", "the shape of 'input' is not [rows, 300] with at least one row"),
    ],
)
def test_a_refusal_is_an_exception_with_the_status_and_the_text(client, model, version, given, status, text):
    assert refused(client.infer, model, [tensor(pixels(2), **given)], version) == (status, text)


def test_a_refusal_names_the_row_and_the_column(client):
    rows = np.array([[1, 2], [np.inf, 2]], np.float32)
    assert refused(client.infer, "roots", [tensor(rows)]) == ("400", "row 1, column 'a' is infinite")
    rows[1] = (3, np.nan)
    text = "row 1, column 'b' is NaN, and the feature has no missing values"
    assert refused(client.infer, "roots", [tensor(rows)]) == ("400", text)


def test_nan_in_json_is_refused(client):
    rows = np.array([[np.nan, 2]], np.float32)
    status, text = refused(client.infer, "gaps", [tensor(rows, binary=False)])
    assert status == "400"
    assert text.startswith("the body is not valid JSON")


def test_text_is_refused(client):
    words = np.full((1, 64), b"7", object)
    given = triton.InferInput("input", [1, 64], "BYTES").set_data_from_numpy(words)
    assert refused(client.infer, "digits", [given]) == ("400", "the datatype of 'input' is not numeric")


@BINARY
def test_a_table_is_sent_by_column(client, binary):
    colours = np.array([["blue"], ["red"]], object)
    size = tensor(np.array([[1], [2]]), datatype="INT64", name="size", binary=binary)
    colour = triton.InferInput("colour", [2, 1], "BYTES").set_data_from_numpy(colours, binary_data=binary)
    assert client.infer("table", [size, colour]).as_numpy("value").tolist() == [[2.0], [2.0]]


@BINARY
def test_the_labels_are_texts_on_request(client, binary):
    rows = pixels(3)
    answer = client.infer("digits", [tensor(rows)], outputs=[wanted(), wanted("label", binary_data=binary)])
    assert answer.as_numpy("label").astype(str).ravel().tolist() == [
        str(i) for i in answer.as_numpy("probabilities").argmax(1)
    ]


def test_an_unknown_output_is_refused(client):
    status, text = refused(client.infer, "digits", [tensor(pixels(1))], outputs=[wanted("logits")])
    assert (status, text) == ("400", "\"outputs\" has another tensor than 'probabilities' and 'label'")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_the_classification_extension_returns_the_best_classes(client, binary):
    rows = pixels(3)
    plain = client.infer("digits", [tensor(rows)]).as_numpy("probabilities")
    asked = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=3)
    best = client.infer("digits", [tensor(rows)], outputs=[asked]).as_numpy("probabilities")
    for texts, row in zip(best.astype(str), plain, strict=True):
        found = [text.split(":") for text in texts]
        order = np.argsort(-row)[:3]
        assert [(int(i), label) for _, i, label in found] == [(i, str(i)) for i in order]
        np.testing.assert_allclose([float(value) for value, *_ in found], row[order], atol=1e-6)


def test_a_row_whose_output_is_not_finite_is_refused(client):
    status, text = refused(client.infer, "roots", [tensor(np.array([[-1, -2]], np.float32))])
    assert status == "422"
    assert "finite" in text


def test_an_unknown_or_damaged_compression_is_refused(client):
    given = [tensor(pixels(1))]
    assert refused(client.infer, "digits", given, headers={"Content-Encoding": "br"})[0] == "415"
    assert refused(client.infer, "digits", given, headers={"Content-Encoding": "gzip"})[0] == "400"


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        *[("get_system_shared_memory_status", []), ("get_cuda_shared_memory_status", [])],
        *[("register_system_shared_memory", ["region", "/key", 64]), ("unregister_system_shared_memory", [])],
        *[("get_trace_settings", []), ("get_log_settings", []), ("get_model_metadata", ["nobody"])],
    ],
)
def test_an_unsupported_call_raises_an_exception(client, call, arguments):
    status, text = refused(getattr(client, call), *arguments)
    assert status == "404"
    assert text in ("Not Found", "unknown model")


@pytest.mark.parametrize("call", ["load_model", "unload_model"])
def test_without_api_keys_loading_and_unloading_a_model_is_refused_with_the_reason(client, call):
    status, text = refused(getattr(client, call), "digits")
    assert status == "403"
    assert text == "without API keys (--keys) the models can't be changed"


def test_a_model_is_unloaded_and_loaded_with_an_api_key(guarded: Server) -> None:
    headers = {"X-API-Key": guarded.key}
    with triton.InferenceServerClient(guarded.address) as client:

        def states() -> dict[str, str]:
            index = client.get_model_repository_index(headers=headers)
            return {one["version"]: one["state"] for one in index if one["name"] == "roots"}

        client.unload_model("roots", headers=headers)
        assert states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
        assert not client.is_model_ready("roots", headers=headers)
        client.load_model("roots", headers=headers)
        assert states() == {"1": "READY", "2": "READY"}
        assert client.is_model_ready("roots", "1", headers=headers)
        with pytest.raises(triton.InferenceServerException, match="unknown model"):
            client.load_model("nope", headers=headers)
        with pytest.raises(triton.InferenceServerException, match="only from the server's folder"):
            client.load_model("roots", headers=headers, config="{}")


def test_shared_memory_as_an_input_is_refused(client):
    given = triton.InferInput("input", [1, 64], "FP32")
    given.set_shared_memory("region", 256)
    status, text = refused(client.infer, "digits", [given])
    assert status == "400"
    assert "shared memory" in text


# --- asyncio ---------------------------------------------------------------------------------------------------------
# tritonclient's HTTP client sends Accept-Encoding: gzip, deflate, br with every request, but decompresses only
# responses of infer.


def test_the_asyncio_client_reads_health_and_metadata(server):
    async def ask() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("roots", "2")
            assert not await client.is_model_ready("nobody")
            assert (await client.get_server_metadata())["name"] == "foldserve"
            assert (await client.get_model_metadata("digits"))["inputs"][0]["shape"] == [-1, 64]
            assert (await client.get_model_config("digits"))["max_batch_size"] >= 1024
            assert len(await client.get_model_repository_index()) == 7
            assert (await client.get_inference_statistics("digits"))["model_stats"][0]["name"] == "digits"

    asyncio.run(ask())


@BINARY
@pytest.mark.parametrize("count", [1, 1024])
@pytest.mark.parametrize("compression", ["gzip", "deflate", None])
def test_the_asyncio_client_infers(server, count, compression, binary):
    async def ask() -> None:
        rows = pixels(count)
        async with aio.InferenceServerClient(server.address) as client:
            answer = await client.infer(
                "digits",
                [tensor(rows, binary=binary)],
                outputs=[wanted(binary_data=binary)],
                request_id="7",
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )
        assert answer.get_response()["id"] == "7"
        server.assert_right(answer.as_numpy("probabilities"), rows)

    asyncio.run(ask())


def test_the_asyncio_client_reads_a_refusal(server):
    async def ask() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            await client.infer("digits", [tensor(pixels(2)[:, :63])])

    with pytest.raises(triton.InferenceServerException) as caught:
        asyncio.run(ask())
    assert caught.value.status() == "400"
    assert caught.value.message() == "the shape of 'input' is not [rows, 64] with at least one row"


def test_each_task_gets_the_answer_to_its_own_rows(server):
    async def one(client: Any, seed: int) -> None:
        rows = pixels(1 + seed % 4, seed)
        answer = await client.infer("digits", [tensor(rows, binary=seed % 2 == 0)], request_id=str(seed))
        assert answer.get_response()["id"] == str(seed)
        server.assert_right(answer.as_numpy("probabilities"), rows)

    async def ask() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            await asyncio.gather(*(one(client, seed) for seed in range(200)))

    asyncio.run(ask())
