"""Tests the real server with Triton's gRPC clients and with perf_analyzer.

These tests run in a separate process, because tritonclient and kserve have compiled code for the same messages.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import pixels
from tests.clients.test_perf_analyzer import PATIENCE, PERF_ANALYZER, WINDOWS, assert_measured

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here: make test-clients")
aio = pytest.importorskip("tritonclient.grpc.aio")


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.grpc_address) as made:
        yield made


def tensor(rows: np.ndarray, name: str = "input", datatype: str = "FP32") -> Any:
    return triton.InferInput(name, list(rows.shape), datatype).set_data_from_numpy(rows)


def test_triton_reads_health_metadata_configuration_and_index(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "foldserve"
    assert list(client.get_model_metadata("digits").inputs[0].shape) == [-1, 64]
    assert list(client.get_model_config("digits").config.output[0].dims) == [10]
    assert {model.name for model in client.get_model_repository_index().models} >= {"digits", "roots"}
    assert client.get_inference_statistics("digits").model_stats[0].name == "digits"


@pytest.mark.parametrize("count", [1, 3, 1024])
def test_triton_infers(client, server, count):
    rows = pixels(count)
    answer = client.infer("digits", [tensor(rows)], request_id="7", client_timeout=PATIENCE)
    server.assert_right(answer.as_numpy("probabilities"), rows)
    assert answer.get_response().id == "7"


def test_triton_sends_a_table_by_column_and_asks_for_labels(client):
    colours = np.array([["blue"], ["red"]], object)
    answer = client.infer("table", [tensor(np.array([[1], [2]]), "size", "INT64"), tensor(colours, "colour", "BYTES")])
    assert answer.as_numpy("value").tolist() == [[2.0], [2.0]]
    wanted = [triton.InferRequestedOutput("probabilities", class_count=1), triton.InferRequestedOutput("label")]
    answer = client.infer("digits", [tensor(pixels(2))], outputs=wanted)
    best = [text.split(":")[2] for text in answer.as_numpy("probabilities").astype(str).ravel()]
    assert answer.as_numpy("label").astype(str).ravel().tolist() == best


def test_triton_streams(client, server):
    answers: list[Any] = []
    done = threading.Event()

    def receive(result: Any, error: Any) -> None:
        answers.append(error or result)
        if len(answers) == 5:
            done.set()

    client.start_stream(receive)
    batches = [pixels(1 + i, seed=i) for i in range(5)]
    for rows in batches:
        client.async_stream_infer("digits", [tensor(rows)])
    assert done.wait(PATIENCE)
    client.stop_stream()
    for rows, answer in zip(batches, answers, strict=True):
        server.assert_right(answer.as_numpy("probabilities"), rows)


@pytest.mark.parametrize(
    ("model", "shape", "status", "text"),
    [
        ("nobody", (1, 64), "StatusCode.NOT_FOUND", "unknown model"),
        ("digits", (1, 63), "StatusCode.INVALID_ARGUMENT", "the shape of 'input' is not [rows, 64]"),
    ],
)
def test_a_refusal_has_a_status_and_a_text(client, model, shape, status, text):
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, [tensor(np.zeros(shape, np.float32))])
    assert caught.value.status() == status
    assert caught.value.message().startswith(text)


def test_the_asyncio_client_infers(server):
    async def infer() -> list[Any]:
        async with aio.InferenceServerClient(server.grpc_address) as client:
            return await asyncio.gather(*(client.infer("digits", [tensor(pixels(2, seed=i))]) for i in range(20)))

    for seed, answer in enumerate(asyncio.run(infer())):
        server.assert_right(answer.as_numpy("probabilities"), pixels(2, seed=seed))


@pytest.mark.skipif(PERF_ANALYZER is None, reason="perf_analyzer does not run here: make test-clients")
@pytest.mark.parametrize("streaming", [False, True])
def test_perf_analyzer_measures_over_grpc(server, streaming):
    arguments = ["-i", "grpc", "-u", server.grpc_address, *WINDOWS, "-b", "8", "--concurrency-range", "4"]
    arguments += ["--streaming"] if streaming else []
    command = [PERF_ANALYZER, "-m", "digits", "--input-data", "zero", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert_measured(done)
