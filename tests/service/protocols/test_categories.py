"""In every protocol, the same categories, booleans and missing values give the same rows. A refusal names the place of
the refused value.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.json_text import SMALL
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.reply import Reply
from foldserve.service.protocols.request import DecodedRequest
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.session import Options
from tests.service.mixed import (
    FEATURES,
    GOLDEN,
    LABELS,
    NAMES,
    SIZES,
    TOWNS,
    codes,
    mixed_bundle,
    mixed_manifest,
    mixed_rows,
    probabilities,
    write_mixed,
)
from tests.service.support import MARKER, Served, manifest, serving

MAX_ROWS = 4
MANIFEST = mixed_manifest()
FRIENDLY = FriendlyCodec(MANIFEST, MAX_ROWS)
OIP = OipCodec(MANIFEST, MAX_ROWS)
RAW = {b"content-type": b"application/octet-stream"}
ROW = GOLDEN[1]


def by_array(rows: Any) -> DecodedRequest:
    return FRIENDLY.decode({}, json.dumps({"instances": rows}).encode())


def by_name(rows: Any) -> DecodedRequest:
    named = [dict(reversed(list(zip(NAMES, row, strict=True)))) for row in rows]
    return FRIENDLY.decode({}, json.dumps({"instances": named}).encode())


def tensor(rows: np.ndarray, datatype: str = "FP32", **more: Any) -> bytes:
    head = {"name": "input", "shape": rows.shape, "datatype": datatype, **more}
    return json.dumps({"inputs": [head]}, allow_nan=False).encode()


def as_json(rows: np.ndarray, datatype: str = "FP32") -> DecodedRequest:
    return OIP.decode({}, tensor(rows, datatype, data=[None if math.isnan(v) else v for v in rows.ravel().tolist()]))


def as_large_json(rows: np.ndarray) -> DecodedRequest:
    data = [[None if math.isnan(value) else value for value in row] for row in rows.tolist()]
    return OIP.decode({}, tensor(rows, data=data) + b" " * SMALL)


def as_binary(rows: np.ndarray, datatype: str = "FP32") -> DecodedRequest:
    content = rows.astype({"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "UINT8": "u1"}[datatype]).tobytes()
    head = tensor(rows, datatype, parameters={"binary_data_size": len(content)})
    return OIP.decode({b"inference-header-content-length": b"%d" % len(head)}, head + content)


def as_bytes(rows: np.ndarray) -> DecodedRequest:
    return OIP.decode({b"inference-header-content-length": b"0"}, rows.astype("<f4").tobytes())


def raw(rows: np.ndarray) -> DecodedRequest:
    return FRIENDLY.decode(RAW, rows.astype("<f4").tobytes())


OF_VALUES = [by_array, by_name]
OF_CODES = [as_json, as_large_json, as_binary, as_bytes, raw]


def refusal(send: Callable[[Any], DecodedRequest], rows: Any) -> str:
    with pytest.raises(InvalidInput) as refused:
        send(rows)
    assert MARKER not in str(refused.value)
    return str(refused.value)


def with_value(name: str, value: Any) -> list[list[Any]]:
    """Return two rows that differ only in the feature `name`: the second row has `value`."""
    return [list(ROW), [value if name == column else usual for column, usual in zip(NAMES, ROW, strict=True)]]


def with_code(name: str, code: float) -> np.ndarray:
    rows = codes([ROW, ROW])
    rows[1, NAMES.index(name)] = code
    return rows


# --- rows that are read ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> runtime.Runtime:
    loaded, parity = runtime.load(mixed_bundle(), Options("cpu"))
    assert parity.rows == len(GOLDEN)
    return loaded


def told(reply: Reply) -> np.ndarray:
    headers = dict(reply.headers)
    if b"inference-header-content-length" in headers:
        found = np.frombuffer(reply.body[int(headers[b"inference-header-content-length"]) :], "<f4")
    else:
        answer = json.loads(reply.body)
        found = np.array(answer["probabilities"] if "probabilities" in answer else answer["outputs"][0]["data"])
    return found.reshape(-1, len(LABELS))


@given(rows=mixed_rows)
@example(rows=list(GOLDEN))
def test_the_same_rows_get_the_same_probabilities_in_every_protocol(rows: list[Any], session: runtime.Runtime) -> None:
    expected = codes(rows)
    for call in (*(send(rows) for send in OF_VALUES), *(send(expected) for send in OF_CODES)):
        assert (call.rows.dtype, call.rows.shape) == (np.float32, expected.shape)
        assert np.array_equal(call.rows, expected, equal_nan=True)
        assert told(call.encode(session.run(call.rows))) == pytest.approx(probabilities(rows), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("send", OF_VALUES)
def test_a_category_is_its_exact_string_or_number(
    send: Callable[[Any], DecodedRequest],
) -> None:
    for name, value, code in (
        ("town", "1", 3),
        ("town", "1.0", len(TOWNS)),
        ("town", "paris", len(TOWNS)),
        ("town", " Paris", len(TOWNS)),
        ("town", "e\u0301", len(TOWNS)),
        ("size", 1, 0),
        ("size", 1.0, 0),
        ("size", 2.5, 1),
        ("size", 2, len(SIZES)),
        ("size", 2**70, len(SIZES)),
        ("children", 0, 1),
        ("children", -0.0, 1),
        ("children", "0", 3),
    ):
        assert send(with_value(name, value)).rows[1, NAMES.index(name)] == code


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8"])
def test_codes_may_be_of_any_numeric_datatype(datatype: str) -> None:
    whole = codes([(3, "Oslo", True, 2, 40, False, "many")])
    for send in (as_json, as_binary):
        assert np.array_equal(send(whole.astype("f8" if "FP" in datatype else "i8"), datatype).rows, whole)


def test_a_table_of_one_category_is_read_by_name_and_by_array() -> None:
    codec = FriendlyCodec(manifest(features=[{"name": "x", "kind": "categorical", "categories": [7, 8]}]), MAX_ROWS)
    assert codec.decode({}, b'{"instances": [{"x": 8}, {"x": 7}, {"x": 0}]}').rows.tolist() == [[1], [0], [2]]
    large = b'{"instances": [[8], [7], [0]]}' + b" " * SMALL  # the categories of this feature are numbers
    assert codec.decode({}, large).rows.tolist() == [[1], [0], [2]]


def test_rows_of_categories_with_many_brackets_are_read() -> None:
    name = "[{" * 50
    codec = FriendlyCodec(manifest(features=[{"name": "x", "kind": "categorical", "categories": [name]}]), 10_000)
    assert not codec.decode({}, json.dumps({"instances": [[name]] * 10_000}).encode()).rows.any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FBFFFFF])
@pytest.mark.parametrize("name", ["income", "size", "smokes"])
def test_any_nan_is_a_missing_value(name: str, bits: int) -> None:
    rows = codes([ROW])
    rows.view("<u4")[0, NAMES.index(name)] = bits
    for send in (as_binary, as_bytes, raw):
        assert np.isnan(send(rows).rows[0, NAMES.index(name)])


# --- rows that are refused -------------------------------------------------------------------------------------------

NEITHER = [{}, {MARKER: 1}, [], [1], [MARKER]]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("age", [True, False, MARKER, "1.5", *NEITHER], "is not a number"),
        ("income", [True, False, MARKER, "", *NEITHER], "is not a number"),
        ("town", [1, 1.0, 0, True, False, *NEITHER], "is not a string, as its categories are"),
        ("size", [MARKER, "1", "", True, False, *NEITHER], "is not a number, as its categories are"),
        ("children", [True, False, *NEITHER], "is neither a string nor a number"),
        ("member", [1, 0, 1.0, 0.0, 2, MARKER, "true", "", *NEITHER], "is neither true nor false"),
        ("smokes", [1, 0, -1, 0.5, MARKER, "false", *NEITHER], "is neither true nor false"),
        *((name, [None], "is null, and the feature has no missing values") for name in ("age", "town", "member")),
        ("children", [None], "is null, and the feature has no missing values"),
        ("age", [1e300, 10**39], "is too large for float32"),
    ],
    ids=lambda part: part if isinstance(part, str) else None,
)
@pytest.mark.parametrize("send", OF_VALUES)
def test_a_value_of_the_wrong_type_is_refused_by_row_and_column(
    send: Callable[[Any], DecodedRequest], name: str, values: list[Any], text: str
) -> None:
    for value in values:
        rows = with_value(name, value)
        assert refusal(send, rows) == f"row 1, column {name!r} {text}"
        assert refusal(send, rows[1:]) == f"row 0, column {name!r} {text}"


@pytest.mark.parametrize(
    ("name", "found", "text"),
    [
        ("town", [-1, 7, 1.5, 0.999, 1e30, -1e-3], "is not an index from 0 to 6"),
        ("size", [-1, 4, 0.5, 255], "is not an index from 0 to 3"),
        ("member", [-1, 2, 0.5, 255], "is neither 0 nor 1"),
        ("smokes", [-1, 2, 0.5], "is neither 0 nor 1"),
    ],
)
@pytest.mark.parametrize("send", OF_CODES)
def test_a_number_that_is_not_a_code_is_refused_by_row_and_column(
    send: Callable[[Any], DecodedRequest], name: str, found: list[float], text: str
) -> None:
    for code in found:
        assert refusal(send, with_code(name, code)) == f"row 1, column {name!r} {text}"


@pytest.mark.parametrize("name", ["age", "town", "member", "children"])
@pytest.mark.parametrize("send", OF_CODES)
def test_a_missing_value_is_refused_where_the_feature_has_none(
    send: Callable[[Any], DecodedRequest], name: str
) -> None:
    what = "null" if send in (as_json, as_large_json) else "NaN"
    text = f"row 1, column {name!r} is {what}, and the feature has no missing values"
    assert refusal(send, with_code(name, math.nan)) == text


@pytest.mark.parametrize("send", [as_binary, as_bytes, raw])
def test_an_infinity_is_not_a_code(send: Callable[[Any], DecodedRequest]) -> None:
    assert refusal(send, with_code("town", math.inf)) == "row 1, column 'town' is infinite"


@pytest.mark.parametrize("value", [True, "Paris"])
def test_a_boolean_or_a_string_is_not_a_number_in_a_tensor(value: object) -> None:
    data = [value if name == "town" else 0 for name in NAMES]
    body = tensor(np.zeros((1, len(NAMES))), data=data)
    with pytest.raises(InvalidInput, match="row 0, column 'town' is not a number"):
        OIP.decode({}, body)


@pytest.mark.parametrize("name", ["income", "size"])
def test_a_feature_that_may_be_missing_must_be_null_and_not_left_out(name: str) -> None:
    row = dict(zip(NAMES, ROW, strict=True))
    del row[name]
    with pytest.raises(InvalidInput, match=f"row 0 lacks the feature '{name}'"):
        FRIENDLY.decode({}, json.dumps({"instances": [row]}).encode())


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(TOWNS)


@given(st.lists(st.lists(anything, min_size=len(NAMES), max_size=len(NAMES)), min_size=1, max_size=MAX_ROWS))
def test_any_other_values_give_valid_rows_or_a_refusal(rows: list[list[Any]]) -> None:
    data = [value for row in rows for value in row]
    head = {"name": "input", "shape": [len(rows), len(NAMES)], "datatype": "FP32", "data": data}
    for codec, body in ((FRIENDLY, {"instances": rows}), (OIP, {"inputs": [head]})):
        try:
            found = codec.decode({}, json.dumps(body).encode()).rows
        except InvalidInput:
            continue
        for row in found.tolist():
            for feature, value in zip(MANIFEST.features, row, strict=True):
                assert feature.admits(None if math.isnan(value) else value)


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("kinds") / "models"
    models.mkdir()
    write_mixed(models)
    with serving(models, models.parent / "log") as server:
        yield server


def test_an_unseen_category_is_answered_and_harms_no_other_request(served: Served) -> None:
    unseen = with_value("town", "Oslo")
    for rows in (list(GOLDEN), unseen, list(GOLDEN)):
        answer = served.send("POST", "/predict", body=json.dumps({"instances": rows}).encode())
        assert answer.status == 200
        assert np.array(answer.json()["probabilities"]) == pytest.approx(probabilities(rows), rel=1e-4, abs=1e-5)
    answer = served.send("POST", "/predict", body=json.dumps({"instances": with_value("town", 5)}).encode())
    assert (answer.status, answer.json()) == (
        400,
        {"error": "row 1, column 'town' is not a string, as its categories are"},
    )
    answer = served.send("POST", "/v2/models/mixed/infer", body=tensor(np.zeros((1, 7)), data=[0, 7, 0, 0, 0, 0, 0]))
    assert (answer.status, answer.json()) == (400, {"error": "row 0, column 'town' is not an index from 0 to 6"})


def test_the_printed_example_is_answered_when_a_category_has_a_quote(served: Served) -> None:
    assert served.process.stdout
    assert served.process.stdout.readline() == "try:\n"
    words = shlex.split(served.process.stdout.readline())
    content = words[words.index("-d") + 1]
    assert json.loads(content) == {"instances": [[0.5, "l'eau", True, 2.5, 40, False, -7]]}
    assert served.send("POST", "/predict", body=content.encode()).status == 200


@pytest.mark.parametrize("path", ["/predict", "/v2/models/{model}/infer"])
def test_the_documented_example_is_answered(path: str, served: Served) -> None:
    paths = served.send("GET", "/openapi.json").json()["paths"]
    content = paths[path]["post"]["requestBody"]["content"]["application/json"]
    example = content["example"] if path == "/predict" else content["examples"]["mixed"]["value"]
    answer = served.send("POST", path.format(model="mixed"), body=json.dumps(example).encode())
    assert answer.status == 200


def test_the_metadata_has_the_kinds_and_categories(served: Served) -> None:
    found = served.send("GET", "/v1/models/mixed/metadata").json()["features"]
    assert [(one["name"], one["kind"], one["missing"]) for one in found] == [
        (feature.name, feature.kind, feature.missing) for feature in MANIFEST.features
    ]
    assert [one["categories"] for one in found if one["kind"] == "categorical"] == [
        list(feature["categories"]) for feature in FEATURES if "categories" in feature
    ]
