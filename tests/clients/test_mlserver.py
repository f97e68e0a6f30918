"""Tests MLServer's codecs as a client of the real server. The answers of the friendly protocol are the oracle.

The codecs turn data frames and arrays into requests of the Open Inference Protocol, and turn the answers back.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients.conftest import Server, pixels

pd = pytest.importorskip("pandas", reason="pandas is not installed here: make test-clients")
codecs = pytest.importorskip("mlserver.codecs", reason="mlserver is not installed here: make test-clients")
types = pytest.importorskip("mlserver.types")

# The codecs of MLServer 1.7.1 refuse the type of texts in pandas 3, and accept texts as objects.
COLOURS = pd.Series(["blue", "red", "green"], dtype=object)
MIXED = pd.DataFrame({"size": [1.5, np.nan, -4.0], "colour": COLOURS, "open": [True, False, True]})
BOTH = [types.RequestOutput(name="probabilities"), types.RequestOutput(name="label")]


def post(server: Server, path: str, body: str) -> bytes:
    answer = httpx.post(server.url + path, content=body, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.content


def infer(server: Server, model: str, request: Any) -> Any:
    body = post(server, f"/v2/models/{model}/infer", request.model_dump_json())
    return types.InferenceResponse.model_validate_json(body)


def friendly(server: Server, model: str, frame: Any) -> Any:
    rows = [
        {name: None if value != value else value for name, value in row.items()} for row in frame.to_dict("records")
    ]
    return json.loads(post(server, f"/v1/models/{model}:predict", json.dumps({"instances": rows})))


def assert_same(server: Server, model: str, request: Any, frame: Any) -> None:
    """Check that the decoded labels and probabilities are those of the friendly protocol."""
    request.outputs = BOTH
    answer = infer(server, model, request)
    probabilities, label = answer.outputs
    expected = friendly(server, model, frame)
    assert (answer.model_name, answer.model_version) == (model, "1")
    assert codecs.StringCodec.decode_output(label) == [str(each) for each in expected["predictions"]]
    decoded = codecs.NumpyCodec.decode_output(probabilities)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, expected["probabilities"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("use_bytes", [True, False], ids=["bytes", "texts"])
def test_a_frame_with_numbers_texts_booleans_and_a_missing_value_is_answered(server, use_bytes):
    request = codecs.PandasCodec.encode_request(MIXED, use_bytes=use_bytes)
    assert [given.datatype for given in request.inputs] == ["FP64", "BYTES", "BOOL"]
    assert request.inputs[0].data.root[1] is None
    assert_same(server, "mixed", request, MIXED)


def test_objects_that_the_codec_writes_as_json_texts_are_read(server):
    frame = MIXED.assign(open=MIXED["open"].astype(object))
    request = codecs.PandasCodec.encode_request(frame)
    assert request.inputs[2].parameters.content_type == "pd_json"
    assert_same(server, "mixed", request, MIXED)


def test_whole_numbers_are_answered(server):
    rows = pixels(20)
    names = [f"pixel_{i}_{j}" for i in range(8) for j in range(8)]
    frame = pd.DataFrame(rows.astype(np.int64), columns=names)
    request = codecs.PandasCodec.encode_request(frame)
    assert {given.datatype for given in request.inputs} == {"INT64"}
    assert_same(server, "digits", request, frame)


def test_an_array_is_answered(server):
    rows = pixels(20)
    given = codecs.NumpyCodec.encode_input("input", rows)
    answer = infer(server, "digits", types.InferenceRequest(inputs=[given]))
    server.assert_right(codecs.NumpyRequestCodec.decode_response(answer), rows)


def test_answers_with_one_column_become_data_frames(server):
    request = codecs.PandasCodec.encode_request(MIXED)
    request.outputs = [types.RequestOutput(name="label")]
    labels = codecs.PandasCodec.decode_response(infer(server, "mixed", request))
    assert labels["label"].tolist() == friendly(server, "mixed", MIXED)["predictions"]

    frame = pd.DataFrame({"size": [1.5, 2.5], "colour": COLOURS[:2]})
    values = codecs.PandasCodec.decode_response(infer(server, "table", codecs.PandasCodec.encode_request(frame)))
    assert values["value"].tolist() == friendly(server, "table", frame)["predictions"] == [2.5, 2.5]
