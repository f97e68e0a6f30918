"""Tests KServe's Python client against the real server, in both protocols of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients.conftest import pixels

kserve = pytest.importorskip("kserve", reason="kserve is not installed here: make test-clients")
infer_type = pytest.importorskip("kserve.protocol.infer_type")

BINARY = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


def ask(protocol: str, question: Callable[[Any], Awaitable[Any]]) -> Any:
    """Call `question` with a new client, because a client belongs to one event loop."""

    async def asked() -> Any:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol=protocol))
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(asked())


def request(rows: np.ndarray, *, binary: bool, model: str = "digits", **options: Any) -> Any:
    given = kserve.InferInput("input", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    return kserve.InferRequest(model, [given], **options)


def test_the_server_is_live_and_ready(server):
    assert ask("v2", lambda client: client.is_server_live(server.url)) is True
    assert ask("v2", lambda client: client.is_server_ready(server.url)) is True


@pytest.mark.parametrize(("model", "ready"), [("digits", True), ("nobody", False)])
def test_a_model_is_ready_and_an_unknown_model_is_not(server, model, ready):
    assert ask("v2", lambda client: client.is_model_ready(server.url, model)) is ready


@pytest.mark.parametrize("wanted", [None, "parameter", "output"])
@BINARY
def test_binary_and_json_requests_get_binary_or_json_answers(server, binary, wanted):
    rows = pixels(1024)
    options = {
        None: {},
        "parameter": {"parameters": {"binary_data_output": True}},
        "output": {"request_outputs": [infer_type.RequestedOutput("probabilities", {"binary_data": True})]},
    }[wanted]
    received: dict[str, str] = {}
    answer = ask(
        "v2",
        lambda client: client.infer(
            server.url, request(rows, binary=binary, request_id="7", **options), "digits", response_headers=received
        ),
    )
    assert (answer.id, answer.model_name) == ("7", "digits")
    (output,) = answer.outputs
    assert list(output.shape) == [1024, 10]
    server.assert_right(output.as_numpy(), rows)
    assert ("inference-header-content-length" in received) is (wanted is not None)


def test_a_request_as_a_plain_dictionary_is_answered(server):
    rows = pixels(2)
    tensor = {"name": "input", "shape": [2, 64], "datatype": "FP32", "data": rows.tolist()}
    answer = ask("v2", lambda client: client.infer(server.url, {"inputs": [tensor]}, "digits"))
    server.assert_right(answer.outputs[0].as_numpy(), rows)


@BINARY
def test_a_table_is_sent_by_column(server, binary):
    size = kserve.InferInput("size", [2, 1], "FP64")
    size.set_data_from_numpy(np.array([[1.5], [2.5]]), binary_data=binary)
    colour = kserve.InferInput("colour", [2, 1], "BYTES")
    colour.set_data_from_numpy(np.array([["blue"], ["red"]], object), binary_data=binary)
    asked = kserve.InferRequest("table", [colour, size])
    answer = ask("v2", lambda client: client.infer(server.url, asked, "table"))
    assert answer.outputs[0].as_numpy().tolist() == [[2.5], [2.5]]


def test_the_columns_of_a_pandas_codec_are_read(server):
    # The body that PandasCodec.encode_request of MLServer 1.7.1 writes.
    body = (
        '{"parameters":{"content_type":"pd"},"inputs":[{"name":"size","shape":[2,1],"datatype":"FP64","data":[1.5,2.5]},'
        '{"name":"colour","shape":[2,1],"datatype":"BYTES","parameters":{"content_type":"str"},"data":["red","blue"]}]}'
    )
    answer = httpx.post(f"{server.url}/v2/models/table/infer", content=body, trust_env=False)
    assert answer.json()["outputs"][0]["data"] == [1.5, 3.5]


def test_the_grpc_client_infers(server):
    rows = pixels(3)

    async def infer() -> Any:
        client = kserve.InferenceGRPCClient(server.grpc_address)
        assert await client.is_server_live()
        assert await client.is_model_ready("digits")
        given = kserve.InferInput("input", list(rows.shape), "FP32")
        given.set_data_from_numpy(rows, binary_data=True)
        answer = await client.infer(kserve.InferRequest("digits", [given]))
        await client.close()
        return answer

    server.assert_right(asyncio.run(infer()).outputs[0].as_numpy(), rows)


def test_each_task_gets_the_answer_to_its_own_rows(server):
    async def one(client: Any, seed: int) -> None:
        rows = pixels(1 + seed % 4, seed)
        asked = request(rows, binary=seed % 2 == 0, request_id=str(seed))
        answer = await client.infer(server.url, asked, "digits")
        assert answer.id == str(seed)
        server.assert_right(answer.outputs[0].as_numpy(), rows)

    async def all_of_them(client: Any) -> None:
        await asyncio.gather(*(one(client, seed) for seed in range(50)))

    ask("v2", all_of_them)


@BINARY
def test_a_refusal_is_an_exception_with_the_status_and_the_text(server, binary):
    asked = request(pixels(1)[:, :63], binary=binary)
    with pytest.raises(httpx.HTTPStatusError, match=r"is not \[rows, 64\]") as caught:
        ask("v2", lambda client: client.infer(server.url, asked, "digits"))
    assert caught.value.response.status_code == 400
    with pytest.raises(httpx.HTTPStatusError, match="unknown model") as caught:
        ask("v2", lambda client: client.infer(server.url, asked, "nobody"))
    assert caught.value.response.status_code == 404


def test_protocol_1_reports_a_live_server_and_a_ready_model(server):
    assert ask("v1", lambda client: client.is_server_live(server.url)) is True
    assert ask("v1", lambda client: client.is_model_ready(server.url, "digits")) is True


def test_protocol_1_predicts(server):
    rows = pixels(3)
    asked = {"instances": rows.tolist()}
    answer = ask("v1", lambda client: client.infer(server.url, asked, model_name="digits"))
    server.assert_right(np.array(answer["probabilities"], np.float32), rows)
    assert answer["predictions"] == server.expected(rows).argmax(1).tolist()


def test_a_refusal_of_protocol_1_names_the_row(server):
    asked = {"instances": [[0] * 64, [0] * 63]}
    with pytest.raises(httpx.HTTPStatusError, match="row 1 has 63 values, expected 64"):
        ask("v1", lambda client: client.infer(server.url, asked, model_name="digits"))
