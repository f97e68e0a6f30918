"""In the friendly protocol, a body becomes exact rows, or a refusal that names the place and never echoes the input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import FriendlyCodec
from tests.service.support import MARKER, manifest

MAX_ROWS = 4
FEATURES = ("age", "weight", "height")
CODEC = FriendlyCodec(manifest(features=FEATURES, missing=["height"]), MAX_ROWS)
LARGEST = float(np.finfo(np.float32).max)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def body(instances: object) -> bytes:
    return json.dumps({"instances": instances}).encode()


def decode(instances: object) -> np.ndarray:
    return CODEC.decode({}, body(instances)).rows


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidInput) as refused:
        CODEC.decode({}, content)
    text = str(refused.value)
    assert MARKER not in text
    assert "1111" not in text
    # The error of a parser contains the whole document. If the refusal kept this error as its `__cause__`, a log of the
    # error's fields would show the input.
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    return text


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# --- rows that are read ----------------------------------------------------------------------------------------------


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, MAX_ROWS), st.just(3)), elements=finite))
def test_every_finite_float32_arrives_with_all_its_bits(rows: np.ndarray) -> None:
    assert same_bits(decode(rows.tolist()), rows)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, MAX_ROWS), st.just(3)), elements=finite),
    st.permutations(FEATURES),
)
def test_rows_by_name_equal_rows_by_array_in_any_order_of_names(rows: np.ndarray, order: list[str]) -> None:
    named = [{name: row[FEATURES.index(name)] for name in order} for row in rows.tolist()]
    assert same_bits(decode(named), decode(rows.tolist()))


@given(st.lists(st.integers(-(10**38), 10**38), min_size=3, max_size=3))
def test_an_integer_of_any_size_is_the_float32_nearest_to_its_double(numbers: list[int]) -> None:
    assert same_bits(decode([numbers]), np.array([[float(number) for number in numbers]], np.float64).astype("f4"))


@pytest.mark.parametrize("number", [2**24 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**38])
def test_a_huge_integer_is_a_number(number: int) -> None:
    assert decode([[number, 0, 0]])[0, 0] == np.float32(float(number))


@pytest.mark.parametrize("text", ["0", "-0.0", "1", "1.0", "1e0", "1E+2", "0.1e-1", "1e-400", "1.40129846e-45"])
def test_a_number_may_be_written_as_json_writes_it(text: str) -> None:
    rows = CODEC.decode({}, b'{"instances": [[%s, 0, 0]]}' % text.encode()).rows
    assert same_bits(rows[:, :1], np.array([[float(text)]]).astype(np.float32))


@pytest.mark.parametrize("number", [LARGEST, -LARGEST])
def test_the_largest_float32_does_not_overflow(number: float) -> None:
    assert decode([[number, 0, 0]])[0, 0] == np.float32(number)


def test_space_around_the_document_is_allowed() -> None:
    assert same_bits(CODEC.decode({}, b" \r\n\t" + body([[1, 2, 3]]) + b"\n\n").rows, decode([[1, 2, 3]]))


def test_a_missing_value_is_nan_where_the_feature_may_be_missing() -> None:
    assert np.isnan(decode([[1, 2, None], [1, 2, 3]])).tolist() == [[False, False, True], [False, False, False]]
    assert np.isnan(decode([{"height": None, "age": 1, "weight": 2}])).tolist() == [[False, False, True]]


def test_as_many_rows_as_allowed_are_read() -> None:
    assert decode([[1, 2, 3]] * MAX_ROWS).shape == (MAX_ROWS, 3)


def test_a_feature_may_have_any_name() -> None:
    names = ("", " ", "é\n", '"', "__class__", "instances")
    codec = FriendlyCodec(manifest(features=names), MAX_ROWS)
    assert codec.decode({}, body([dict(zip(names, range(6), strict=True))])).rows.tolist() == [[0, 1, 2, 3, 4, 5]]


# --- rows that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        MARKER.encode(),
        b'{"instances": [["%s\xff", 2, 3]]}' % MARKER.encode(),
        b'{"instances": [["%s\xed\xa0\x80", 2, 3]]}' % MARKER.encode(),
        f'{{"{MARKER}": [[1, 2, 3]]}}'.encode("utf-16"),
        f'{{"{MARKER}": [[1, 2, 3]]}}'.encode("utf-16-le"),
        f'{{"{MARKER}": [[1, 2, 3]]}}'.encode("utf-32"),
        b'{"instances": ' + b"[" * 100_000 + MARKER.encode() + b"]" * 100_000 + b"}",
        b'{"instances": [[%s, 2, 3]]}' % (b"1" * 5000),
        b'{"instances": [[-%s, 2, 3]]}' % (b"1" * 5000),
        b'{"%s": 0, "instances": [[NaN, 2, 3]]}' % MARKER.encode(),
        b'{"%s": 0, "instances": [[Infinity, 2, 3]]}' % MARKER.encode(),
        b'{"%s": 0, "instances": [[-Infinity, 2, 3]]}' % MARKER.encode(),
        b'{"%s": 0, "instances": [[1e999, 2, 3]]}' % MARKER.encode(),
        b'{"%s": 0, "instances": [[-1e999, 2, 3]]}' % MARKER.encode(),
        b'{"instances": [[1, 2, 3]]} %s' % MARKER.encode(),
        b'{"instances": [[1, 2, 3]]}{"instances": [[1, 2, 3]]}',
        b'{"instances": [[1, 2, 3]]}\0',
        b'{"instances": [[1, 2, 3]]',
        b'{"instances": [[1, 2, 3],]}',
        b'{"instances": [["%s\\ud800", 2, 3]]}' % MARKER.encode(),
        b'{"instances": [["%s\\udc00\\ud800", 2, 3]]}' % MARKER.encode(),
        b'{"instances": [{"%s\\ud800": 1, "weight": 2, "height": 3}]}' % MARKER.encode(),
        b"{'instances': [[1, 2, 3]]}",
        b'{"instances": [[01, 2, 3]]}',
        b'{"instances": [[+1, 2, 3]]}',
        b'{"instances": [[.5, 2, 3]]}',
        b'{"instances": [[0x1, 2, 3]]}',
        b'{"instances": [[1_0, 2, 3]]}',
        b'{"instances": [[1, 2, 3]] /* %s */}' % MARKER.encode(),
    ],
    ids=[
        *("empty", "blank", "text", "invalid UTF-8", "surrogate in UTF-8", "UTF-16", "UTF-16 without a mark", "UTF-32"),
        *("nested rows", "5000 digits", "-5000 digits"),
        *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "trailing bytes", "two documents", "trailing zero byte"),
        *("cut", "trailing comma", "lone surrogate", "reversed surrogates", "lone surrogate in a name"),
        *("quotes", "leading zero", "plus", "bare point", "hexadecimal", "underscore", "comment"),
    ],
)
def test_text_that_is_not_json_is_refused_with_its_place(content: bytes) -> None:
    assert refusal(content).startswith("the body is not valid JSON, at character ")


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000])
def test_a_deeply_nested_document_is_refused(content: bytes) -> None:
    assert refusal(content) == 'the JSON has no array "instances" in its first 65536 bytes'


@pytest.mark.parametrize(
    "document",
    [
        None,
        True,
        1,
        MARKER,
        [],
        [[1, 2, 3]],
        [{"instances": [[1, 2, 3]]}],
        {},
        {MARKER: [[1, 2, 3]]},
        {"Instances": [[1, 2, 3]]},
        {"instances": None},
        {"instances": MARKER},
        {"instances": 1},
        {"instances": {MARKER: [1, 2, 3]}},
    ],
    ids=repr,
)
def test_a_document_without_a_list_of_instances_is_refused(document: object) -> None:
    assert refusal(json.dumps(document).encode()) == 'the body is not an object with an array "instances"'


def test_no_rows_are_refused() -> None:
    assert refusal(body([])) == '"instances" has no rows'


@pytest.mark.parametrize(
    "row", [[1, 2, 3], {"age": 1, "weight": 2, "height": 3}, MARKER], ids=["array", "name", "text"]
)
def test_more_rows_than_allowed_are_refused(row: object) -> None:
    assert refusal(body([row] * (MAX_ROWS + 1))) == '"instances" has more rows than the 4 that are allowed'


@pytest.mark.parametrize("value", [True, False, "1.5", "", MARKER, {}, {MARKER: 1}, [], [1], [MARKER]], ids=repr)
@pytest.mark.parametrize("by_name", [False, True], ids=["by array", "by name"])
def test_a_value_that_is_not_a_number_is_refused_by_row_and_column(value: object, by_name: bool) -> None:
    rows: list[Any] = [[1, 2, 3], [4, value, 6]]
    if by_name:
        rows = [dict(zip(FEATURES, row, strict=True)) for row in rows]
    assert refusal(body(rows)) == "row 1, column 'weight' is not a number"


@pytest.mark.parametrize("value", ["1e300", "-1e300", "3.5e38", "1" + "0" * 39, "1" + "0" * 300])
def test_a_number_past_float32_is_refused_by_row_and_column(value: str) -> None:
    text = refusal(b'{"%s": 0, "instances": [[1, 2, 3], [1, 2, %s]]}' % (MARKER.encode(), value.encode()))
    assert text == "row 1, column 'height' is too large for float32"


def test_a_number_that_rounds_past_the_largest_float32_is_refused() -> None:
    first_that_rounds_up = LARGEST + 2.0**103
    assert decode([[np.nextafter(first_that_rounds_up, 0), 0, 0]])[0, 0] == np.float32(LARGEST)
    assert refusal(body([[first_that_rounds_up, 0, 0]])) == "row 0, column 'age' is too large for float32"


@pytest.mark.parametrize("by_name", [False, True], ids=["by array", "by name"])
def test_null_is_refused_where_the_feature_has_no_missing_values(by_name: bool) -> None:
    rows: list[Any] = [[1, 2, None], [None, 2, 3]]
    if by_name:
        rows = [dict(zip(FEATURES, row, strict=True)) for row in rows]
    assert refusal(body(rows)) == "row 1, column 'age' is null, and the feature has no missing values"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        # The total number of values is right in each case. A parser that flattens the rows would accept the bodies
        # below.
        ([[1, 2], [3, 4, 5, 6]], "row 0 has 2 values, expected 3"),
        ([[1, 2, 3], [1, 2, 3, 4], [1, 2]], "row 1 has 4 values, expected 3"),
        ([[1, 2, 3], []], "row 1 has 0 values, expected 3"),
        ([[1, 2, 3, 4, 5, 6]], "row 0 has 6 values, expected 3"),
        ([[MARKER] * 4], "row 0 has 4 values, expected 3"),
    ],
    ids=repr,
)
def test_ragged_rows_are_refused(rows: object, text: str) -> None:
    assert refusal(body(rows)) == text


@pytest.mark.parametrize("row", [1, 1.5, None, True, MARKER, "123"], ids=repr)
def test_a_row_that_is_neither_an_array_nor_an_object_is_refused(row: object) -> None:
    assert refusal(body([row])) == "row 0 is not an array of 3 values"
    assert refusal(body([[1, 2, 3], row])) == "row 1 is not an array of 3 values"
    assert refusal(body([{"age": 1, "weight": 2, "height": 3}, row])).startswith("row 1 is not an object")


def test_a_mix_of_arrays_and_objects_is_refused() -> None:
    by_array, by_name = [1, 2, 3], {"age": 1, "weight": 2, "height": 3}
    assert refusal(body([by_array, by_name])) == "row 1 is not an array of 3 values"
    assert refusal(body([by_name, by_array])) == "row 1 is not an object, as the rows before it are"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({}, "row 1 lacks the feature 'age'"),
        ({"age": 1, "weight": 2}, "row 1 lacks the feature 'height'"),
        ({"age": 1, "weight": 2, "Height": 3}, "row 1 lacks the feature 'height', and has an unknown member, 'Height'"),
        ({"age": 1, "weight": 2, "height": 3, "Größe (cm)": 4}, "row 1 has an unknown member, number 4"),
        ({"age": 1, "Größe 2": 4, "weight": 2, "height": 3}, "row 1 has an unknown member, 'Größe 2'"),
        ({"age": 1, "weight": 2, "height": 3, "h" * 41: 4}, "row 1 has an unknown member, number 4"),
        ({"age": 1, "weight": 2, "height": 3, f"<{MARKER}>": 4}, "row 1 has an unknown member, number 4"),
        ({"age": 1, "weight": 2, "height": 3, " ": 4}, "row 1 has an unknown member, number 4"),
        ({"age": 1, "weight": 2, "height": 3, "a\nb": 4}, "row 1 has an unknown member, number 4"),
    ],
    ids=repr,
)
def test_a_missing_or_unknown_feature_is_refused(row: object, text: str) -> None:
    assert refusal(body([{"age": 1, "weight": 2, "height": 3}, row])) == text


def test_a_missing_feature_with_an_empty_name_is_not_called_unknown() -> None:
    codec = FriendlyCodec(manifest(features=("", "b")), MAX_ROWS)
    with pytest.raises(InvalidInput, match="row 0 lacks the feature ''"):
        codec.decode({}, body([{"b": 1}]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FEATURES) | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values.map(body) | json_values.map(lambda value: json.dumps(value).encode()) | st.binary())
def test_any_other_body_gives_exact_rows_or_a_refusal(content: bytes) -> None:
    try:
        rows = CODEC.decode({}, content).rows
    except InvalidInput:
        return
    assert rows.dtype == np.float32
    assert rows.shape[1] == 3
    assert 1 <= len(rows) <= MAX_ROWS
    assert not np.isinf(rows).any()
    assert not np.isnan(rows[:, :2]).any()


# --- answers ---------------------------------------------------------------------------------------------------------


def encode(outputs: np.ndarray, **model: Any) -> dict[str, Any]:
    codec = FriendlyCodec(manifest(**model), MAX_ROWS)
    reply = codec.decode({}, body([[0, 0]])).encode(outputs)
    assert (reply.status, reply.headers) == (200, ((b"content-type", b"application/json"),))
    answer: dict[str, Any] = json.loads(reply.body, parse_constant=pytest.fail)
    return answer


@pytest.mark.parametrize("labels", [(False, True), (7, 8), (0.5, 1.5), ("no", "yes"), ("0", 1)], ids=repr)
def test_a_prediction_is_the_likeliest_label_in_its_own_type(labels: tuple[Any, ...]) -> None:
    answer = encode(np.array([[0.25, 0.75], [0.75, 0.25]], np.float32), labels=labels, name="made", version=3)
    assert (answer["model"], answer["version"]) == ("made", 3)
    assert [(type(label), label) for label in answer["predictions"]] == [
        (type(label), label) for label in (labels[1], labels[0])
    ]
    assert list(answer) == ["model", "version", "predictions", "probabilities"]


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(2)), elements=st.floats(0, 1, width=32)))
def test_probabilities_parse_back_to_the_exact_float32(outputs: np.ndarray) -> None:
    answer = encode(outputs, labels=("a", "b"))
    assert same_bits(np.array(answer["probabilities"]).astype(np.float32), outputs)
    assert answer["predictions"] == ["a" if first >= second else "b" for first, second in outputs.tolist()]


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(1)), elements=finite))
def test_values_parse_back_to_the_exact_float32_and_have_no_probabilities(outputs: np.ndarray) -> None:
    answer = encode(outputs)
    assert same_bits(np.array(answer["predictions"]).astype(np.float32), outputs[:, 0])
    assert list(answer) == ["model", "version", "predictions"]


@pytest.mark.parametrize("row", [b"[]", b"{}"], ids=["arrays", "objects"])
def test_millions_of_empty_rows_are_refused_before_they_are_parsed(row: bytes) -> None:
    # The last bracket of the JSON text is missing. If the server parsed the whole body, the message would say that the
    # body is not JSON.
    flood = b'{"instances": [' + b",".join([row] * 2_000_000)
    with pytest.raises(InvalidInput, match="has more rows than the 4 that are allowed"):
        FriendlyCodec(manifest(features=FEATURES), MAX_ROWS).decode({}, flood)
