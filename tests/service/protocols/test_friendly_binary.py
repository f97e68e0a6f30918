"""Tests the friendly protocol without JSON: raw float32 requests and responses, Arrow responses, and the format that a
client prefers.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foldserve.service.errors import InvalidInput, UnsupportedMedia
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.reply import Reply
from tests.service.support import MARKER, manifest

MAX_ROWS = 4
CODEC = FriendlyCodec(manifest(features=("age", "weight", "height"), missing=["height"]), MAX_ROWS)
RAW = {b"content-type": b"application/octet-stream"}
ROW = b'{"instances": [[1, 2, 3]]}'
ARROW = "application/vnd.apache.arrow.stream"
OCTETS = "application/octet-stream"
JSON = "application/json"

any_float = st.floats(width=32, allow_infinity=False, allow_nan=False)


def raw(*rows: tuple[float, ...]) -> bytes:
    return np.array(rows, "<f4").tobytes()


def refusal(headers: dict[bytes, bytes], body: bytes, kind: type[Exception] = InvalidInput) -> str:
    with pytest.raises(kind) as refused:
        CODEC.decode(headers, body)
    assert MARKER not in str(refused.value)
    return str(refused.value)


def kind_of(reply: Reply) -> str:
    ((name, value),) = reply.headers
    assert (reply.status, name) == (200, b"content-type")
    return value.decode()


# --- raw rows --------------------------------------------------------------------------------------------------------


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, MAX_ROWS), st.just(3)), elements=any_float))
def test_raw_rows_arrive_with_all_their_bits(rows: np.ndarray) -> None:
    found = CODEC.decode(RAW, rows.astype("<f4").tobytes()).rows
    assert (found.dtype, found.shape, found.tobytes()) == (np.float32, rows.shape, rows.tobytes())


@pytest.mark.parametrize(
    "spelling", [b"application/octet-stream; x=1", b"Application/Octet-Stream", b" " + OCTETS.encode()]
)
def test_raw_rows_may_be_named_in_any_case_and_with_parameters(spelling: bytes) -> None:
    assert CODEC.decode({b"content-type": spelling}, raw((1, 2, 3))).rows.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("size", [0, 1, 4, 11, 13, 23, 25])
def test_bytes_that_are_not_whole_rows_are_refused(size: int) -> None:
    assert refusal(RAW, bytes(size)) == "the body is not rows of 3 float32 values, 12 bytes each"


def test_json_with_the_raw_media_type_is_refused() -> None:
    assert "not rows" in refusal(RAW, b'{"%s": 0}' % MARKER.encode() + b" " * 12)


def test_more_raw_rows_than_allowed_are_refused() -> None:
    assert len(CODEC.decode(RAW, bytes(12 * MAX_ROWS)).rows) == MAX_ROWS
    assert refusal(RAW, bytes(12 * (MAX_ROWS + 1))) == "the body has 5 rows, at most 4 are allowed"


# A quiet NaN, a negative NaN, a NaN with a payload, and a signalling NaN.
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC01234, 0x7F800001])
def test_any_nan_is_a_missing_value_where_the_feature_may_be_missing(bits: int) -> None:
    nan = bits.to_bytes(4, "little")
    found = CODEC.decode(RAW, raw((1, 2, 3)) + raw((1, 2)) + nan).rows
    assert np.isnan(found).tolist() == [[False, False, False], [False, False, True]]
    assert refusal(RAW, raw((1, 2, 3)) + raw((1,)) + nan + raw((3,))) == (
        "row 1, column 'weight' is NaN, and the feature has no missing values"
    )


@pytest.mark.parametrize("number", [np.inf, -np.inf])
@pytest.mark.parametrize(("column", "name"), list(enumerate(("age", "weight", "height"))))
def test_an_infinity_is_refused_by_row_and_column(number: float, column: int, name: str) -> None:
    row = [1.0, 2.0, np.nan]
    row[column] = number
    assert refusal(RAW, raw((1, 2, 3), tuple(row))) == f"row 1, column {name!r} is infinite"


# --- other bodies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "text/json", "json", "application/jsonp", "application/*", "*/*", "multipart/form-data"),
        *("application/x-www-form-urlencoded", ARROW, f"application/{MARKER}", "application/json, application/json"),
    ],
)
def test_a_body_of_another_media_type_is_refused(kind: str) -> None:
    for body in (ROW, raw((1, 2, 3)), b""):
        text = refusal({b"content-type": kind.encode()}, body, UnsupportedMedia)
        assert text == "the Content-Type is neither application/json nor application/octet-stream"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *(
            {b"content-type": kind}
            for kind in (b"application/json", b"Application/JSON", b"application/json;charset=utf-8")
        ),
    ],
    ids=repr,
)
def test_json_needs_no_media_type(headers: dict[bytes, bytes]) -> None:
    assert CODEC.decode(headers, ROW).rows.tolist() == [[1, 2, 3]]


# --- the choice of the answer ----------------------------------------------------------------------------------------

VALUES = np.array([[0.1], [-2.5e-30], [3.4e38]], np.float32)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", JSON),
        (MARKER, JSON),
        ("application/json", JSON),
        (OCTETS, OCTETS),
        (ARROW, ARROW),
        (ARROW.upper(), ARROW),
        (f" {ARROW} ;q=0.5 , {JSON}", JSON),
        (f"text/html, {OCTETS}", OCTETS),
        (f"{JSON}, {ARROW}", JSON),
        (f"{ARROW};q=0", JSON),
        (f"{ARROW};q=0.0", JSON),
        (f"{ARROW}; q=0.000, {OCTETS}", OCTETS),
        (f"{ARROW};Q=0,{OCTETS};q=0,{JSON}", JSON),
        (f"{ARROW};q=0.001", ARROW),
        (f"{ARROW};q=1", ARROW),
        (f"{ARROW};q=1.0", ARROW),
        (",;,;q=0,", JSON),
    ],
)
@pytest.mark.parametrize("body", ["JSON", "raw"])
def test_the_answer_has_the_media_type_that_the_client_prefers_or_json(
    accept: str | None, kind: str, body: str
) -> None:
    headers = {} if accept is None else {b"accept": accept.encode()}
    call = CODEC.decode(headers, ROW) if body == "JSON" else CODEC.decode({**headers, **RAW}, raw((1, 2, 3)))
    assert kind_of(call.encode(VALUES)) == kind


# --- raw answers -----------------------------------------------------------------------------------------------------


def answered(accept: str, outputs: np.ndarray, labels: tuple[Any, ...] = ()) -> bytes:
    codec = FriendlyCodec(manifest(labels=labels), MAX_ROWS)
    reply = codec.decode({b"accept": accept.encode()}, b'{"instances": [[1, 2]]}').encode(outputs)
    assert kind_of(reply) == accept
    return reply.body


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(2)), elements=any_float))
def test_a_raw_answer_is_the_outputs_little_endian_row_after_row(outputs: np.ndarray) -> None:
    assert answered(OCTETS, outputs, ("a", "b")) == outputs.astype("<f4").tobytes()


@pytest.mark.parametrize("name", ["transposed", "every other row", "reversed"])
def test_outputs_that_are_not_contiguous_are_written_in_order(name: str) -> None:
    base = np.arange(8, dtype=np.float32).reshape(4, 2)
    outputs = {"transposed": base[:2].T, "every other row": base[::2], "reversed": base[::-1]}[name]
    labels = ("a", "b")
    assert answered(OCTETS, outputs, labels) == outputs.copy().tobytes()
    found = arrow(outputs, labels)
    assert found["probabilities"].to_pylist() == outputs.tolist()


# --- Arrow answers, read by pyarrow ----------------------------------------------------------------------------------


def arrow(outputs: np.ndarray, labels: tuple[Any, ...] = ()) -> pa.Table:
    with pa.ipc.open_stream(io.BytesIO(answered(ARROW, outputs, labels))) as stream:
        batch = stream.read_next_batch()
        with pytest.raises(StopIteration):
            stream.read_next_batch()
    batch.validate(full=True)
    assert batch.num_rows == len(outputs)
    return pa.table(batch)


@pytest.mark.parametrize(
    ("labels", "kind", "wanted"),
    [
        (("no", "yes"), pa.string(), ("no", "yes")),
        (("", "é\U0001f600\n"), pa.string(), ("", "é\U0001f600\n")),
        ((7, -8), pa.int64(), (7, -8)),
        ((-(2**63), 2**63 - 1), pa.int64(), (-(2**63), 2**63 - 1)),
        ((False, True), pa.bool_(), (False, True)),
        ((True, False), pa.bool_(), (True, False)),
        ((0.5, 1e300), pa.float64(), (0.5, 1e300)),
        ((1, 1.5), pa.float64(), (1.0, 1.5)),
        # If the labels have different types, they become JSON texts. Labels also become JSON texts if the column's type
        # can't hold them exactly.
        (("0", 1), pa.string(), ("0", "1")),
        ((True, 2), pa.string(), ("true", "2")),
        ((False, "false "), pa.string(), ("false", "false ")),
        ((2**63 + 1, 0), pa.string(), ("9223372036854775809", "0")),
        ((2**63 + 1, 2**63 + 3), pa.string(), ("9223372036854775809", "9223372036854775811")),
        ((2**63 + 1, -1), pa.string(), ("9223372036854775809", "-1")),
        ((2**53 + 1, 0.5), pa.string(), ("9007199254740993", "0.5")),
    ],
    ids=repr,
)
def test_a_prediction_keeps_the_type_of_the_labels(labels: tuple[Any, ...], kind: pa.DataType, wanted: Any) -> None:
    outputs = np.array([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5]], np.float32)
    table = arrow(outputs, labels)
    assert table.schema.names == ["prediction", "probabilities"]
    assert table["prediction"].type == kind
    assert table["prediction"].to_pylist() == [wanted[1], wanted[0], wanted[0]]
    assert table["probabilities"].type == pa.list_(pa.float32(), 2)
    assert table["probabilities"].to_pylist() == outputs.tolist()
    assert table["prediction"].null_count == table["probabilities"].null_count == 0


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=any_float))
def test_arrow_holds_the_exact_probabilities_and_the_likeliest_label(outputs: np.ndarray) -> None:
    for labels in (("a", "", "ccc"), (False, True, 2), (1, 2, 3), (0.5, 1.5, 2.5)):
        table = arrow(outputs, labels)
        flat = table["probabilities"].combine_chunks().flatten().to_numpy()
        assert flat.astype("<f4").tobytes() == outputs.tobytes()
        texts = {"a": "a", False: "false", True: "true"}
        wanted = [labels[i] for i in outputs.argmax(1)]
        if labels == (False, True, 2):
            wanted = ["2" if label is labels[2] else texts[label] for label in wanted]
        assert table["prediction"].to_pylist() == wanted


@given(arrays.arrays(np.bool_, st.integers(1, 40)))
def test_boolean_predictions_are_packed_in_order(likely: np.ndarray) -> None:
    outputs = np.stack([~likely, likely], 1).astype(np.float32)
    assert arrow(outputs, (False, True))["prediction"].to_pylist() == likely.tolist()


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(1)), elements=any_float))
def test_arrow_of_a_regression_has_only_the_exact_values(outputs: np.ndarray) -> None:
    table = arrow(outputs)
    assert table.schema.names == ["prediction"]
    assert table["prediction"].type == pa.float32()
    assert table["prediction"].combine_chunks().to_numpy().tobytes() == outputs.tobytes()
