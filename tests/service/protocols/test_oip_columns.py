"""Tests the Open Inference Protocol with a tensor for each column. The same values in the
friendly protocol give the expected rows.

The tests write the tensors as KServe's and MLServer's clients write data frames. tests/clients has these clients.
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

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.json_text import SMALL
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.request import SlowBody
from tests.service.support import MARKER, manifest

MAX_ROWS = 50
FEATURES = (
    "size",
    {"name": "colour", "kind": "categorical", "categories": ("red", "blau, grün"), "missing": True},
    {"name": "code", "kind": "categorical", "categories": (1, 2, 30), "missing": True},
    {"name": "open", "kind": "boolean", "missing": True},
)
NAMES = ("size", "colour", "code", "open")
MANIFEST = manifest(features=FEATURES, missing=NAMES)
OIP, FRIENDLY = OipCodec(MANIFEST, MAX_ROWS), FriendlyCodec(MANIFEST, MAX_ROWS)
LENGTH = b"inference-header-content-length"
OUTPUTS = np.array([[0.5]], np.float32)

# The datatype of each column, and the format of `struct` that encodes its values in binary.
DATATYPES = {"size": ("FP64", "d"), "colour": ("BYTES", ""), "code": ("INT64", "q"), "open": ("BOOL", "?")}

Row = tuple[float | None, str | None, int | None, bool | None]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
COLOURS = st.sampled_from(["red", "blau, grün", "unseen", "[{,"])
WHOLE_ROWS = st.tuples(FLOATS, COLOURS, st.sampled_from([1, 2, 30, 7]), st.booleans())
ROWS = st.tuples(
    st.none() | FLOATS, st.none() | COLOURS, st.none() | st.sampled_from([1, 2, 30]), st.none() | st.booleans()
)


def friendly(rows: list[Row]) -> Any:
    body = json.dumps({"instances": [dict(zip(NAMES, row, strict=True)) for row in rows]}).encode()
    return FRIENDLY.decode({}, body).rows


def json_request(rows: list[Row], *, nested: bool = False, order: tuple[str, ...] = NAMES, **more: Any) -> bytes:
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    tensors = [
        {
            "name": name,
            "shape": [len(rows), 1] if nested else [len(rows)],
            "datatype": DATATYPES[name][0],
            "data": [[value] for value in columns[name]] if nested else list(columns[name]),
            "parameters": {"content_type": "str"},
        }
        for name in order
    ]
    return json.dumps({"inputs": tensors, "parameters": {"content_type": "pd"}, **more}).encode()


def binary_request(rows: list[Row]) -> tuple[bytes, bytes]:
    """Return the JSON and the bytes after the JSON."""
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    tensors, contents = [], []
    for name in NAMES:
        datatype, form = DATATYPES[name]
        if form:
            content = struct.pack(f"<{len(rows)}{form}", *columns[name])
        else:
            content = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in columns[name])
        parameters = {"binary_data_size": len(content)}
        tensors.append({"name": name, "shape": [len(rows)], "datatype": datatype, "parameters": parameters})
        contents.append(content)
    return json.dumps({"inputs": tensors}).encode(), b"".join(contents)


def tensor(name: str, datatype: str, *data: Any, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": list(data), **changes}


def refusal(*tensors: dict[str, Any], tail: bytes | None = None, codec: OipCodec = OIP) -> str:
    """Return the error message of a refused request.

    The request has the given tensors, and a good tensor for every other column.
    """
    names = [given["name"] for given in tensors]
    good = {"size": tensor("size", "FP32", 1.5), "colour": tensor("colour", "BYTES", "red")}
    good |= {"code": tensor("code", "INT64", 1), "open": tensor("open", "BOOL", True)}
    body = json.dumps({"inputs": [*tensors, *(good[name] for name in NAMES if name not in names)]}).encode()
    headers = {} if tail is None else {LENGTH: b"%d" % len(body)}
    with pytest.raises(InvalidInput) as refused:
        codec.decode(headers, body + (tail or b""))
    assert MARKER not in str(refused.value)
    return str(refused.value)


@given(st.lists(ROWS, min_size=1, max_size=40), st.booleans(), st.permutations(NAMES), st.sampled_from([0, SMALL]))
def test_columns_of_json_give_the_rows_of_the_friendly_protocol(
    rows: list[Row], nested: bool, order: list[str], space: int
) -> None:
    read = OIP.decode({}, json_request(rows, nested=nested, order=tuple(order)) + b" " * space).rows
    assert read.tobytes() == friendly(rows).tobytes()


@given(st.lists(WHOLE_ROWS, min_size=1, max_size=40))
def test_columns_in_binary_give_the_rows_of_the_friendly_protocol(rows: list[Row]) -> None:
    head, content = binary_request(rows)
    read = OIP.decode({LENGTH: b"%d" % len(head)}, head + content).rows
    assert read.tobytes() == friendly(rows).tobytes()


def json_texts(rows: list[Row]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return a tensor of JSON texts for each column, and the bytes of the texts of each column."""
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    texts = {name: [json.dumps(value) for value in values] for name, values in columns.items()}
    tensors = [tensor(name, "BYTES", *texts[name], parameters={"content_type": "pd_json"}) for name in NAMES]
    content = {
        name: b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts[name]) for name in NAMES
    }
    return tensors, content


@given(st.lists(ROWS, min_size=1, max_size=40))
def test_texts_of_the_content_type_pd_json_give_the_rows_of_the_friendly_protocol(rows: list[Row]) -> None:
    tensors, content = json_texts(rows)
    assert OIP.decode({}, json.dumps({"inputs": tensors}).encode()).rows.tobytes() == friendly(rows).tobytes()
    for given_tensor in tensors:
        del given_tensor["data"]
        given_tensor["parameters"]["binary_data_size"] = len(content[given_tensor["name"]])
    head = json.dumps({"inputs": tensors}).encode()
    read = OIP.decode({LENGTH: b"%d" % len(head)}, head + b"".join(content.values())).rows
    assert read.tobytes() == friendly(rows).tobytes()


def test_a_large_request_is_left_to_a_thread() -> None:
    body = json_request([(1.0, "red", 1, True)] * 50) + b" " * SMALL
    with pytest.raises(SlowBody):
        OIP.decode({}, body, fast_only=True)


def test_nan_in_binary_is_a_missing_value() -> None:
    given = tensor("size", "FP32")
    del given["data"]
    others = [tensor("colour", "BYTES", "red"), tensor("code", "INT64", 1), tensor("open", "BOOL", True)]
    body = json.dumps({"inputs": [given | {"shape": [1], "parameters": {"binary_data_size": 4}}, *others]}).encode()
    rows = OIP.decode({LENGTH: b"%d" % len(body)}, body + struct.pack("<f", math.nan)).rows
    assert rows.tobytes() == friendly([(None, "red", 1, True)]).tobytes()


def test_left_out_columns_are_ignored_and_constants_are_filled_in() -> None:
    one = manifest(features=FEATURES[:1]).model_copy(update={"left_out": ("id",)})
    body = json.dumps({"inputs": [tensor("id", "BYTES", "x", "y"), tensor("size", "FP32", 1.5, 2.5)]}).encode()
    request = OipCodec(one, MAX_ROWS).decode({}, body)
    assert request.rows.tolist() == [[1.5], [2.5]]
    assert request.counts is not None
    assert request.counts["ignored", "id"] == 2


# --- answers ---------------------------------------------------------------------------------------------------------

CLASSES = manifest(features=FEATURES[:1], labels=("cat", "dog", 7))
ONE_ROW = {"inputs": [{"name": "input", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}]}
PROBABILITIES = np.array([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]], np.float32)


def answer(*outputs: dict[str, Any], **more: Any) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of the answer, and the bytes after the JSON."""
    body = json.dumps({**ONE_ROW, "outputs": outputs, **more}).encode()
    reply = OipCodec(CLASSES, MAX_ROWS).decode({}, body).encode(PROBABILITIES)
    length = int(dict(reply.headers).get(LENGTH, len(reply.body)))
    return json.loads(reply.body[:length]), reply.body[length:]


def test_the_labels_are_texts_on_request() -> None:
    content, _ = answer({"name": "probabilities"}, {"name": "label"})
    probabilities, label = content["outputs"]
    assert probabilities["data"] == PROBABILITIES.ravel().tolist()
    assert label == {"name": "label", "datatype": "BYTES", "shape": [2, 1], "data": ["dog", "7"]}


def test_the_labels_may_be_binary() -> None:
    content, rest = answer({"name": "label", "parameters": {"binary_data": True}})
    assert content["outputs"][0]["parameters"] == {"binary_data_size": len(rest)}
    assert rest == struct.pack("<I3sI1s", 3, b"dog", 1, b"7").replace(b"dog\0", b"dog")


def test_classification_gives_value_index_and_label_of_the_best_classes() -> None:
    content, _ = answer({"name": "probabilities", "parameters": {"classification": 2}})
    (output,) = content["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.500000:1:dog", "0.250000:0:cat", "0.750000:2:7", "0.125000:0:cat"]


# --- refusals --------------------------------------------------------------------------------------------------------


PD_JSON = tensor("colour", "BYTES", "1", parameters={"content_type": "pd_json"})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (tensor("size", "FP32", 1.5, shape=[1, 2]), "the shape of tensor number 1 is neither [rows] nor [rows, 1]"),
        (tensor("size", "FP32", shape=[0]), "the shape of tensor number 1"),
        (tensor("size", "FP32", 1.5, 2.5), 'the tensors in "inputs" have different numbers of rows'),
        (tensor("size", "FP32", *[1.5] * 51), '"inputs" has more rows than the 50 that are allowed'),
        (tensor("size", "TEXT", 1.5), "the datatype of tensor number 1 is not one of the protocol"),
        (tensor("size", "FP32", MARKER), "column 'size' is FP32, and holds a value that is not a number"),
        (tensor("size", "INT8", 300), "column 'size' holds a value that is out of the range of INT8"),
        (tensor("size", "FP64", 1e39), "row 0, column 'size' is too large for float32"),
        (tensor("colour", "BYTES", 7), "column 'colour' is BYTES, and holds a value that is not a text"),
        (tensor("colour", "INT64", 7), "row 0, column 'colour' is not a string, as its categories are"),
        (PD_JSON | {"data": [f"<{MARKER}>"]}, "row 0, column 'colour' is not JSON, as its content type is pd_json"),
        (PD_JSON | {"data": ["7"]}, "row 0, column 'colour' is not a string, as its categories are"),
        (PD_JSON | {"data": [" [1]"]}, "row 0, column 'colour' is an array or an object"),
        (PD_JSON | {"name": "size", "data": ['{"a": 1}']}, "row 0, column 'size' is an array or an object"),
        (tensor("open", "INT64", 2), "row 0, column 'open' is neither true nor false"),
        (tensor("size", "FP32", data=7, shape=[1]), 'tensor number 1 has neither an array "data" nor'),
        (tensor("size", "FP32", 1.5, shape=[2]), "the \"data\" of column 'size' has 1 values, its shape 2"),
        (tensor("size", "FP32", 1.5, parameters={"binary_data_size": 4}), 'tensor number 1 has both "data" and'),
        (tensor("other", "FP32", 1.5), "it has an unknown member, 'other'"),
        (tensor(f"<{MARKER}>", "FP32", 1.5), "it has an unknown member, number 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_column_is_refused(given: dict[str, Any], text: str) -> None:
    assert text in refusal(given)


@pytest.mark.parametrize(
    ("datatype", "size", "tail", "text"),
    [
        ("FP32", 4, b"", "a binary_data_size is not within the body"),
        ("FP32", -4, b"abcd", "a binary_data_size is not within the body"),
        ("FP32", "4", b"abcd", "a binary_data_size is not within the body"),
        ("FP32", 4, b"abcde", "there are more bytes after the JSON"),
        ("FP32", 3, b"abc", "the bytes of column 'size' are not 1 values of FP32"),
        ("FP32", 4, struct.pack("<f", math.inf), "row 0, column 'size' is infinite"),
        ("BYTES", 3, b"abc", "the bytes of column 'size' are not 1 texts, each after its length"),
        ("BYTES", 5, struct.pack("<I", 2**32 - 1) + b"a", "the bytes of column 'size' are not 1 texts"),
        ("BYTES", 10, struct.pack("<I1sI1s", 1, b"1", 1, b"2")[:10], "the bytes of column 'size' are not 1 texts"),
        ("BYTES", 5, struct.pack("<I1s", 1, b"\xff"), "row 0, column 'size' is not UTF-8"),
    ],
)
def test_wrong_bytes_of_a_column_are_refused(datatype: str, size: object, tail: bytes, text: str) -> None:
    given = {"name": "size", "shape": [1], "datatype": datatype, "parameters": {"binary_data_size": size}}
    assert text in refusal(given, tail=tail)


def test_bytes_without_the_length_of_the_json_are_refused() -> None:
    given = {"name": "size", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    assert "no header Inference-Header-Content-Length" in refusal(given)
