"""The Open Inference Protocol reads valid tensors and parameters, and refuses invalid ones.

The tests write and read the bytes themselves. The tests of the datatypes are in test_oip_tensors.py.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.reply import Reply
from foldserve.service.protocols.request import DecodedRequest
from tests.service.support import MARKER, manifest

MAX_ROWS = 4
CODEC = OipCodec(manifest(name="made", version=3, features=("a", "b"), missing=["b"]), MAX_ROWS)
OUTPUTS = np.array([[0.5], [-2.0]], np.float32)
ROWS = [[1.5, 2.5], [3.5, 4.5]]
FLOATS = struct.pack("<4f", 1.5, 2.5, 3.5, 4.5)
LENGTH = b"inference-header-content-length"


def tensor(**changes: Any) -> dict[str, Any]:
    """Make a tensor of two FP32 rows, and replace some of its members. A member with the value `...` is left out of the
    tensor.
    """
    whole = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [1.5, 2.5, 3.5, 4.5], **changes}
    return {name: value for name, value in whole.items() if value is not ...}


def head(*tensors: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def decode(body: bytes, tail: bytes | None = None, length: object = None) -> DecodedRequest:
    """Decode a body: JSON, and the bytes after the JSON if there is a tail.

    length: the length in the header, if it differs from the length of the JSON.
    """
    if tail is not None and length is None:
        length = len(body)
    headers = {} if length is None else {LENGTH: str(length).encode("latin-1")}
    return CODEC.decode(headers, body + (tail or b""))


def binary(size: object = len(FLOATS), **changes: Any) -> dict[str, Any]:
    return tensor(data=..., parameters={"binary_data_size": size}, **changes)


def refusal(body: bytes, tail: bytes | None = None, length: object = None) -> str:
    with pytest.raises(InvalidInput) as refused:
        decode(body, tail, length)
    text = str(refused.value)
    assert MARKER not in text
    assert "\n" not in text
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    return text


# --- tensors that are read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [ROWS, [1.5, 2.5, 3.5, 4.5]], ids=["nested", "flat"])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("space", [0, 10_000], ids=["small", "large"])
def test_data_may_be_nested_or_flat(data: Any, datatype: str, space: int) -> None:
    rows = decode(head(tensor(data=data, datatype=datatype)) + b" " * space).rows
    assert (rows.dtype, rows.tolist()) == (np.float32, ROWS)


def test_a_binary_tensor_comes_after_the_json() -> None:
    assert decode(head(binary()), FLOATS).rows.tolist() == ROWS


def test_each_body_with_the_same_json_has_its_own_rows_and_checks() -> None:
    body = head(binary(), parameters={"binary_data_output": True, "timeout": 5})
    for tail in (FLOATS, struct.pack("<4f", 9, 8, 7, 6)):
        call = decode(body, tail)
        assert call.rows.tobytes() == tail
        assert call.timeout == 5e-6
        assert answer(call)[1] == OUTPUTS.tobytes()
    assert "are not the 16 of" in refusal(body, FLOATS[:-1])
    assert "is infinite" in refusal(body, struct.pack("<4f", 9, math.inf, 7, 6))


def test_each_body_gets_its_own_id() -> None:
    for identity in ("a", "b", None):
        call = decode(head(binary(), id=identity), FLOATS)
        assert answer(call)[0].get("id") == identity


@pytest.mark.parametrize("pad", range(9))
@pytest.mark.parametrize(("datatype", "letter"), [("FP32", "f"), ("FP64", "d")])
def test_a_binary_tensor_may_begin_at_any_byte(pad: int, datatype: str, letter: str) -> None:
    content = struct.pack(f"<4{letter}", 1.5, 2.5, 3.5, 4.5)
    body = head(binary(len(content), datatype=datatype)) + b" " * pad
    assert decode(body, content).rows.tolist() == ROWS


def test_json_data_may_come_with_the_length_of_the_json() -> None:
    assert decode(head(tensor()), b"").rows.tolist() == ROWS


def test_a_body_without_json_is_rows_and_gets_a_binary_answer() -> None:
    call = decode(b"", FLOATS, 0)
    assert call.rows.tolist() == ROWS
    assert answer(call)[1] == OUTPUTS.tobytes()


@pytest.mark.parametrize("size", [0, 1, 4, 7, 9, 12])
def test_a_body_without_json_that_is_not_whole_rows_is_refused(size: int) -> None:
    refusal(b"", bytes(size), 0)


def test_a_body_without_json_of_more_rows_than_allowed_is_refused() -> None:
    assert len(decode(b"", bytes(8 * MAX_ROWS), 0).rows) == MAX_ROWS
    refusal(b"", bytes(8 * (MAX_ROWS + 1)), 0)


@pytest.mark.parametrize("rows", [1, MAX_ROWS])
def test_as_many_rows_as_allowed_are_read(rows: int) -> None:
    assert decode(head(tensor(shape=[rows, 2], data=[0] * 2 * rows))).rows.shape == (rows, 2)


def test_unknown_members_are_ignored() -> None:
    output = {"name": "value", "parameters": {"unheard": 1}, "more": None}
    named = tensor(parameters={"unheard": [MARKER]}, more={"a": 1})
    body = head(named, model_name="x", model_version="9", outputs=[output], parameters={"priority": 1}, other=[[]])
    assert decode(body).rows.tolist() == ROWS


@pytest.mark.parametrize("kind", [None, b"application/json", b"Application/JSON; x=y", b"application/octet-stream"])
def test_the_media_type_is_json_or_bytes_or_missing(kind: bytes | None) -> None:
    headers = {} if kind is None else {b"content-type": kind}
    assert CODEC.decode(headers, head(tensor())).rows.tolist() == ROWS
    whole = head(binary())
    assert CODEC.decode({**headers, LENGTH: b"%d" % len(whole)}, whole + FLOATS).rows.tolist() == ROWS


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonp", "json", "multipart/form-data", MARKER])
def test_another_media_type_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        CODEC.decode({b"content-type": kind.encode()}, head(tensor()))
    assert str(refused.value) == "the Content-Type is neither application/json nor application/octet-stream"


# --- tensors that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"null", b"[]", b"7", b'"x"', b"{}", b'{"inputs":', b'{"inputs": null}', b'{"inputs": {}}'),
        *(b'{"inputs": 7}', b"\xff", b'{"inputs": [NaN]}', MARKER.encode(), head(tensor()) + b"x"),
        head(tensor()).decode().encode("utf-16"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_an_object_with_inputs_is_refused(body: bytes) -> None:
    text = refusal(body)
    assert text.startswith("the body is not ")
    assert refusal(body, b"") == text or not body  # the server reads an empty body as zero raw rows


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [tensor(name="other")],
        [tensor(name=f"<{MARKER}>")],
        [tensor(name=...)],
        [tensor(name=None)],
        [tensor(name=["input"])],
        [tensor(), tensor()],
        [tensor(), tensor(name="other")],
        [tensor(name="other"), tensor()],
        [tensor(), None],
        [None],
        ["input"],
        [[tensor()]],
        [{}],
    ],
    ids=repr,
)
@pytest.mark.parametrize("space", [0, 10_000], ids=["small", "large"])
def test_a_missing_unknown_or_repeated_input_is_refused(space: int, tensors: list[Any]) -> None:
    text = refusal(head(*tensors) + b" " * space)
    expected = ('"inputs" ', "the shape of tensor number ", "'input' has ")
    assert text.startswith(expected)


def test_a_wrong_name_is_named_beside_the_names_that_are_expected() -> None:
    text = refusal(head(tensor(name="inptu", shape=[2], data=[1.5, 2.5])))
    assert text.startswith("\"inputs\" is neither the one tensor 'input' nor a tensor for each feature: ")
    assert text.endswith("it lacks the feature 'a', and has an unknown member, 'inptu'")


@pytest.mark.parametrize("shape", [[2], [], [4], [2, 2, 1], [1, 2, 2], [2, 1], [2, 3], [1, 4], [2, 0]], ids=repr)
def test_a_wrong_rank_or_width_is_refused(shape: list[int]) -> None:
    assert refusal(head(tensor(shape=shape))) == "the shape of 'input' is not [rows, 2] with at least one row"
    refusal(head(binary(shape=shape)), FLOATS)


@pytest.mark.parametrize("shape", [[0, 2], [-1, 2], [2, -2], [-2, -2], [-(2**63), 2]], ids=repr)
def test_a_dimension_that_is_zero_or_negative_is_refused(shape: list[int]) -> None:
    for data in ([], [1.5, 2.5, 3.5, 4.5]):
        assert "at least one row" in refusal(head(tensor(shape=shape, data=data)))
    refusal(head(binary(0, shape=shape)), b"")


@pytest.mark.parametrize(
    "shape", [[2**62, 64], [2**62, 2], [2**63 - 1, 2], [2**63, 2], [2**61, 2**61], [2**64, 2], [10**400, 2]], ids=repr
)
@pytest.mark.parametrize("size", [0, 16, 2**64])
def test_a_shape_whose_product_is_past_64_bits_is_refused(shape: list[int], size: int) -> None:
    refusal(head(tensor(shape=shape)))
    refusal(head(tensor(shape=shape, data=[])))
    refusal(head(binary(size, shape=shape)), FLOATS)


def test_more_rows_than_allowed_are_refused() -> None:
    rows = MAX_ROWS + 1
    text = "'input' has more rows than the 4 that are allowed"
    assert refusal(head(tensor(shape=[rows, 2], data=[0] * 2 * rows))) == text
    assert refusal(head(tensor(shape=[rows, 2], data=[[0, 0]] * rows))) == text
    assert refusal(head(binary(8 * rows, shape=[rows, 2])), bytes(8 * rows)) == text


@pytest.mark.parametrize(
    "shape", [[2.0, 2], [2, 2.0], [True, 2], ["2", 2], [None, 2], [[2], 2], "22", 2, None, {}, ...]
)
def test_a_dimension_that_is_not_an_integer_is_refused(shape: Any) -> None:
    for body in (head(tensor(shape=shape)), head(tensor(shape=shape, datatype="FP64", data=ROWS))):
        assert refusal(body) == "the shape of 'input' is not an array of integers"
    assert refusal(head(binary(shape=shape)), FLOATS) == "the shape of 'input' is not an array of integers"


@pytest.mark.parametrize(
    "data",
    [
        *([], [1], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2]], [[1, 2], [3, 4], [5, 6]], [[1], [2, 3, 4]], [[1, 2, 3, 4]]),
        *([[1, 2], [3, 4, 5]], [[1, 2], 3, 4], [[1, 2], 3], [[[1, 2]], [[3, 4]]], [[1, [2]], [3, 4]], [[], []]),
        *([1, [2], 3, 4], [1, 2, 3, {}], None, {}, "1234", 7, MARKER, ...),
    ],
    ids=repr,
)
def test_data_that_does_not_fill_the_shape_is_refused(data: Any) -> None:
    for datatype in ("FP32", "FP64"):
        refusal(head(tensor(data=data, datatype=datatype)))
        refusal(head(tensor(data=data, datatype=datatype)), b"")


@pytest.mark.parametrize("value", [True, "1.5", MARKER, {}, [1]], ids=repr)
def test_a_value_that_is_not_a_number_is_refused_by_row_and_column(value: object) -> None:
    text = "row 1, column 'a' is not a number"
    assert refusal(head(tensor(data=[1, 2, value, 4]))) == text
    assert refusal(head(tensor(data=[[1, 2], [value, 4]]))) == text


def test_null_is_a_missing_value_where_the_feature_may_be_missing() -> None:
    for data in ([1, None, 2, 3], [[1, None], [2, 3]]):
        assert np.isnan(decode(head(tensor(data=data))).rows).tolist() == [[False, True], [False, False]]
    text = "row 1, column 'a' is null, and the feature has no missing values"
    assert refusal(head(tensor(data=[1, None, None, 3]))) == text


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], ids=hex)
def test_nan_bytes_are_a_missing_value_where_the_feature_may_be_missing(bits: int) -> None:
    nan = struct.pack("<I", bits)
    good = struct.pack("<f", 1.5) + nan + struct.pack("<2f", 3.5, 4.5)
    bad = struct.pack("<2f", 1.5, 2.5) + nan + struct.pack("<f", 4.5)
    text = "row 1, column 'a' is NaN, and the feature has no missing values"
    assert np.isnan(decode(head(binary()), good).rows).tolist() == [[False, True], [False, False]]
    assert refusal(head(binary()), bad) == text
    assert np.isnan(decode(b"", good, 0).rows).tolist() == [[False, True], [False, False]]
    assert refusal(b"", bad, 0) == text


@pytest.mark.parametrize("number", [float("inf"), float("-inf")])
@pytest.mark.parametrize("place", range(4))
def test_an_infinity_is_refused_by_row_and_column(number: float, place: int) -> None:
    values = [1.5, 2.5, 3.5, 4.5]
    values[place] = number
    text = f"row {place // 2}, column {'ab'[place % 2]!r} is infinite"
    assert refusal(head(binary()), struct.pack("<4f", *values)) == text
    assert refusal(b"", struct.pack("<4f", *values), 0) == text
    assert refusal(head(binary(32, datatype="FP64")), struct.pack("<4d", *values)) == text
    assert "not valid JSON" in refusal(head(tensor(data=values)))  # Python writes Infinity


@pytest.mark.parametrize("row", [b"[]", b"{}"], ids=["arrays", "objects"])
@pytest.mark.parametrize("length", [False, True], ids=["alone", "with its length"])
def test_millions_of_empty_rows_are_refused_before_they_are_parsed(row: bytes, length: bool) -> None:
    # The last bracket of the JSON text is missing. If the server parsed the whole body, the message would say that the
    # body is not JSON.
    flood = b'{"inputs": [{"name": "input", "data": [' + b",".join([row] * 2_000_000)
    assert refusal(flood, b"" if length else None) == '"data" has more values than the 8 that are allowed'
    flood = b'{"inputs": [{"data": [' + b",".join([row] * 2_000_000)
    assert "has an element of more than 4194304 bytes" in refusal(flood, b"" if length else None)
    flood = flood[:4_000_000].rpartition(b",")[0]
    assert "more rows than the 4 that are allowed" in refusal(flood + b"]}]}", b"" if length else None)


def test_binary_bytes_that_look_like_brackets_are_not_counted() -> None:
    codec = OipCodec(manifest(), 200_000)
    content = b"[[[[" * 400_000  # the bytes of "[[[[" are the float32 number 1.6e17
    tensor_of_it = binary(len(content), shape=[200_000, 2])
    body = head(tensor_of_it)
    assert len(codec.decode({LENGTH: b"%d" % len(body)}, body + content).rows) == 200_000


# --- the lengths of the parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8, 15, 17, 32, -16, 2**64, 16.0, "16", True, [16], {}], ids=repr)
def test_a_binary_size_that_is_not_that_of_the_shape_and_datatype_is_refused(size: object) -> None:
    tail = bytes(size) if type(size) is int and 0 <= size < 100 else FLOATS
    assert "is not that of its shape and datatype" in refusal(head(binary(size)), tail)


@pytest.mark.parametrize("tail", [b"", FLOATS[:-1], FLOATS[:8], FLOATS + b"\0", FLOATS * 2], ids=len)
def test_bytes_after_the_json_that_differ_from_the_binary_size_are_refused(tail: bytes) -> None:
    assert refusal(head(binary()), tail) == "the bytes after the JSON are not the 16 of the tensors' binary_data_size"


def test_bytes_after_the_json_that_no_tensor_claims_are_refused() -> None:
    text = refusal(head(tensor()), MARKER.encode())
    assert text == "there are more bytes after the JSON than the tensors' binary_data_size"


@pytest.mark.parametrize("data", [[1.5, 2.5, 3.5, 4.5], [], None], ids=repr)
def test_both_data_and_a_binary_size_are_refused(data: Any) -> None:
    both = tensor(data=data, parameters={"binary_data_size": len(FLOATS)})
    assert refusal(head(both), FLOATS) == "'input' has both \"data\" and a binary_data_size"
    refusal(head(both))


def test_a_binary_size_without_the_length_of_the_json_is_refused() -> None:
    text = "there is a binary_data_size, and no header Inference-Header-Content-Length"
    assert refusal(head(binary())) == text


@pytest.mark.parametrize(
    "length",
    [
        *("99999999999", "9" * 18, "9" * 19, "1" * 5000, "-1", "-0", "+5", "1.0", "1e1", "0x10", "", " ", "ten"),
        *("1_0", "5,5", "٣".encode().decode("latin-1"), "²", MARKER),
    ],
    ids=lambda text: text[:20],
)
def test_an_invalid_length_of_the_json_is_refused(length: str) -> None:
    text = "Inference-Header-Content-Length is not a length within the body"
    assert refusal(head(tensor()), b"", length) == text
    assert refusal(head(binary()), FLOATS, length) == text


@pytest.mark.parametrize("off", [-1, 1, 16])
def test_a_length_of_the_json_that_cuts_the_json_is_refused(off: int) -> None:
    body = head(binary())
    assert refusal(body, FLOATS, len(body) + off).startswith("the body is not valid JSON, at character ")
    assert "not a length within the body" in refusal(body, FLOATS, len(body) + len(FLOATS) + 1)


# --- settings --------------------------------------------------------------------------------------------------------


def answer(call: DecodedRequest, outputs: np.ndarray = OUTPUTS) -> tuple[dict[str, Any], bytes | None]:
    """Return the answer's JSON and the bytes after the JSON. If the answer is only JSON, the second result is None."""
    reply: Reply = call.encode(outputs)
    headers = dict(reply.headers)
    assert (reply.status, len(headers)) == (200, len(reply.headers))
    if headers == {b"content-type": b"application/json"}:
        return json.loads(reply.body), None
    assert set(headers) == {b"content-type", LENGTH}
    assert headers[b"content-type"] == b"application/octet-stream"
    end = int(headers[LENGTH])
    return json.loads(reply.body[:end]), reply.body[end:]


@pytest.mark.parametrize("text", ["", "x", "é\U0001f600", "a b", '"\\/', "x" * 10_000], ids=lambda text: text[:5])
@pytest.mark.parametrize("is_binary", [False, True])
def test_the_id_comes_back(text: str, is_binary: bool) -> None:
    found, _ = answer(decode(head(tensor(), id=text, parameters={"binary_data_output": is_binary})))
    assert found["id"] == text


@pytest.mark.parametrize("more", [{}, {"id": None}], ids=repr)
def test_without_an_id_the_answer_has_no_id(more: dict[str, Any]) -> None:
    assert "id" not in answer(decode(head(tensor(), **more)))[0]


@pytest.mark.parametrize("text", [*map(chr, (*range(0x20), *range(0x7F, 0xA0))), f"{MARKER}\n", "\r\nx"], ids=ascii)
def test_a_control_character_in_the_id_is_refused(text: str) -> None:
    for space in (0, 10_000):
        assert "control character" in refusal(head(tensor(), id=f"a{text}") + b" " * space)


@pytest.mark.parametrize("value", [7, 1.5, True, [], {}, [MARKER]], ids=repr)
def test_an_id_that_is_not_a_string_is_refused(value: object) -> None:
    assert "not a string" in refusal(head(tensor(), id=value))


@pytest.mark.parametrize(("microseconds", "seconds"), [(1, 1e-6), (250_000, 0.25), (2**63 - 1, (2**63 - 1) / 1e6)])
def test_the_timeout_is_in_microseconds(microseconds: int, seconds: float) -> None:
    assert decode(head(tensor(), parameters={"timeout": microseconds})).timeout == seconds
    assert decode(head(binary(), parameters={"timeout": microseconds}), FLOATS).timeout == seconds


@pytest.mark.parametrize("more", [{}, {"parameters": {}}, {"parameters": {"timeout": 0}}], ids=repr)
def test_a_timeout_of_zero_means_no_timeout(more: dict[str, Any]) -> None:
    assert decode(head(tensor(), **more)).timeout is None


@pytest.mark.parametrize("value", [-1, 1.0, 0.5, True, False, "5", None, [], MARKER, 2**64, 10**300], ids=repr)
def test_a_timeout_that_is_not_a_number_of_microseconds_is_refused(value: object) -> None:
    for space in (0, 10_000):
        text = refusal(head(tensor(), parameters={"timeout": value}) + b" " * space)
        assert text == 'the parameter "timeout" is not a number of microseconds'


@pytest.mark.parametrize("value", [None, 7, "x", [], [MARKER]], ids=repr)
def test_parameters_that_are_not_an_object_are_refused(value: object) -> None:
    for body in (
        head(tensor(), parameters=value),
        head(tensor(parameters=value)),
        head(tensor(), outputs=[{"name": "value", "parameters": value}]),
    ):
        assert refusal(body) == '"parameters" is not an object'


@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"])
def test_shared_memory_is_refused(name: str) -> None:
    asked = {name: MARKER}
    for body in (
        head(tensor(parameters=asked)),
        head(tensor(data=..., parameters=asked)),
        head(tensor(), parameters=asked),
        head(tensor(), outputs=[{"name": "value", "parameters": asked}]),
    ):
        assert refusal(body) == "the shared memory extensions are not offered: send the tensor itself"


def test_classification_and_labels_of_a_regression_are_refused() -> None:
    text = refusal(head(tensor(), outputs=[{"name": "value", "parameters": {"classification": 3}}]))
    assert text == 'the parameter "classification" is only for the probabilities of classes'
    text = refusal(head(tensor(), outputs=[{"name": "label"}]))
    assert text == "\"outputs\" has another tensor than 'value'"


VALUE: dict[str, Any] = {"name": "value"}


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "other"}],
        [{"name": MARKER}],
        [VALUE, VALUE],
        [VALUE, {"name": "other"}],
        [{"name": None}],
        [{}],
    ],
    ids=repr,
)
def test_an_unknown_or_repeated_output_is_refused(outputs: list[Any]) -> None:
    text = refusal(head(tensor(), outputs=outputs))
    assert text in ("\"outputs\" has another tensor than 'value'", '"outputs" has a tensor more than once')


@pytest.mark.parametrize("outputs", [None, {}, 7, "value", ["value"], [None], [[VALUE]], [MARKER]], ids=repr)
def test_outputs_that_are_not_an_array_of_objects_are_refused(outputs: object) -> None:
    assert refusal(head(tensor(), outputs=outputs)) == '"outputs" is not an array of objects'


# --- answers ---------------------------------------------------------------------------------------------------------

NAMED = {"model_name": "made", "model_version": "3"}
TENSOR = {"name": "value", "datatype": "FP32", "shape": [2, 1]}


@pytest.mark.parametrize("of_all", [None, False, True])
@pytest.mark.parametrize("of_one", [None, False, True, "no outputs", "no names"])
@pytest.mark.parametrize("sent", ["JSON", "binary"])
def test_the_output_or_else_the_request_decides_whether_the_answer_is_binary(
    of_all: bool | None, of_one: bool | str | None, sent: str
) -> None:
    more: dict[str, Any] = {} if of_all is None else {"parameters": {"binary_data_output": of_all}}
    if of_one == "no names":
        more["outputs"] = []
    elif of_one != "no outputs":
        more["outputs"] = [VALUE if of_one is None else {**VALUE, "parameters": {"binary_data": of_one}}]
    call = decode(head(tensor(), **more)) if sent == "JSON" else decode(head(binary(), **more), FLOATS)
    found, content = answer(call)
    if of_one if isinstance(of_one, bool) else of_all:
        assert found == {**NAMED, "outputs": [{**TENSOR, "parameters": {"binary_data_size": 8}}]}
        assert content == struct.pack("<2f", 0.5, -2.0)
    else:
        assert found == {**NAMED, "outputs": [{**TENSOR, "data": [0.5, -2.0]}]}
        assert content is None


@pytest.mark.parametrize("value", [None, 0, 1, "true", []], ids=repr)
def test_a_flag_that_is_neither_true_nor_false_is_refused(value: object) -> None:
    text = 'the parameter "{}" is neither true nor false'
    assert refusal(head(tensor(), parameters={"binary_data_output": value})) == text.format("binary_data_output")
    output = {**VALUE, "parameters": {"binary_data": value}}
    assert refusal(head(tensor(), outputs=[output])) == text.format("binary_data")


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.booleans(),
    st.booleans(),
)
def test_outputs_come_back_with_all_their_bits(outputs: np.ndarray, is_binary: bool, turned: bool) -> None:
    outputs = outputs.T if turned else outputs  # a transposed array has a different order in memory
    found, content = answer(decode(head(tensor(), parameters={"binary_data_output": is_binary})), outputs)
    (told,) = found["outputs"]
    assert told["shape"] == list(outputs.shape)
    values = np.frombuffer(content, "<f4") if content is not None else np.array(told["data"]).astype(np.float32)
    assert values.tobytes() == outputs.astype("<f4").tobytes()
