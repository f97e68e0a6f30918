"""An array is cut out of JSON text. The pieces hold exactly the elements of the array. Only valid JSON is accepted.

orjson, which parses the whole text at once, is the oracle.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.json_text import MAX_AROUND, LongArray, cut, is_cut, parse_piece

MANY = 10**6
NESTED_PATH = ("inputs", 0, "data")


def rows_array(path: tuple[str | int, ...] = ("rows",), **limits: int) -> LongArray:
    return LongArray(path, "rows", **{"max_elements": MANY, "piece_bytes": 8, **limits})


def value_at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def read(body: bytes, array: LongArray) -> tuple[Any, Any]:
    """Cut a body into pieces, and parse the pieces. Return the document with an empty array, and the elements of the
    array.
    """
    document = cut(body, array)
    holder = value_at(document.around, array.path[:-1])
    assert is_cut(holder[array.path[-1]])
    holder[array.path[-1]] = []
    return document.around, [element for piece in document.pieces for element in parse_piece(body, piece)]


def parse_all(body: bytes, array: LongArray) -> None:
    for piece in cut(body, array).pieces:
        parse_piece(body, piece)


def refusal(body: bytes, array: LongArray) -> str:
    with pytest.raises(InvalidInput) as refused:
        read(body, array)
    assert refused.value.__cause__ is None
    return str(refused.value)


# --- JSON ------------------------------------------------------------------------------------------------------------

texts = st.text(max_size=6) | st.sampled_from(
    ['"', "\\", '\\"', '"\\', "[", "]],", "{", "},{", ",", "\\\\", "é😀", "Y_y"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
elements = st.lists(values, max_size=12)
layouts = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 3}, {"ensure_ascii": False}])
sizes = st.sampled_from([1, 2, 5, 16, 64, 2**16])


@given(elements, st.dictionaries(texts, values, max_size=2), st.booleans(), layouts, sizes)
def test_the_pieces_hold_the_elements_of_the_array(
    rows: list[Any], others: dict[str, Any], last: bool, layout: dict[str, Any], size: int
) -> None:
    document = {**others, "rows": rows} if last else {"rows": rows, **others}
    document["rows"] = rows
    body = json.dumps(document, **layout).encode()
    assert read(body, rows_array(piece_bytes=size)) == ({**document, "rows": []}, rows)


@given(elements, layouts, sizes)
def test_the_array_may_be_inside_other_arrays_and_objects(rows: list[Any], layout: dict[str, Any], size: int) -> None:
    decoy = {"inputs": [{"data": [1, 2]}], "data": [3]}
    document = {"a": decoy, "inputs": [{"b": [decoy], "data": rows, "c": "]"}, decoy], "data": [4]}
    body = json.dumps(document, **layout).encode()
    around, found = read(body, rows_array(NESTED_PATH, piece_bytes=size))
    assert found == rows
    document["inputs"][0]["data"] = []
    assert around == document


@given(elements, st.binary(max_size=8), st.integers(0, 200), sizes)
@example([1, 2], b",", 12, 1)
@example([1, 2], b" ", 9, 1)
@example([], b",", 9, 1)
def test_damaged_text_is_accepted_if_and_only_if_it_is_json(rows: list[Any], noise: bytes, at: int, size: int) -> None:
    whole = json.dumps({"rows": rows}).encode()
    body = whole[:at] + noise + whole[at + len(noise) :]
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:
        expected = None
    if type(expected) is dict and type(expected.get("rows")) is list:
        assert read(body, rows_array(piece_bytes=size))[1] == expected["rows"]
    elif expected is None:
        with pytest.raises(InvalidInput):
            parse_all(body, rows_array(piece_bytes=size))


@pytest.mark.parametrize(
    "inner",
    [
        *("1,", ",", "1,,2", ",1", "1 2", "[1] [2]", "[1],", "[1],,[2]", "[1", "1]", "[1]]", "{]", "[}", "[1},{2]"),
        *('"a', '"a\\"', "[1],x", "x,[1]", "[01]", "NaN", "[1],\x00", "[1],[", "[1],]", '"\\ud800"', "1,          ,2"),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 64])
def test_an_array_that_is_not_json_is_refused_with_the_place(inner: str, size: int) -> None:
    text = refusal(b'{"\xc3\xa9": 1, "rows": [%b], "x": 2}' % inner.encode(), rows_array(piece_bytes=size))
    assert text.startswith("the body is not valid JSON, at character ")


@pytest.mark.parametrize("before", ["", "é", "😀😀"])
@pytest.mark.parametrize(
    ("rows", "place"),
    [("[1, x]", 4), ("[1],[2],[3], [x]", 14), ('"é", ["😀", x]', 11), ("[1]]", 4)],
)
def test_the_place_is_the_character_in_the_whole_body(before: str, rows: str, place: int) -> None:
    prefix = f'{{"{before}": 0, "rows": ['
    for size in (1, 64):
        text = refusal(f"{prefix}{rows}]}}".encode(), rows_array(piece_bytes=size))
        assert text == f"the body is not valid JSON, at character {len(prefix) + place}"


def test_the_place_may_be_after_the_array() -> None:
    text = refusal('{"é": 0, "rows": ["é", [1]], x}'.encode(), rows_array())
    assert text == "the body is not valid JSON, at character 29"


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", ["1", "[1]", '{"a": [1]}', '"a"', "null"])
def test_more_elements_than_allowed_are_refused_before_they_are_parsed(element: str) -> None:
    # The array in the body has no closing bracket. If the server read the whole body, the message would say that the
    # body is not JSON.
    body = b'{"rows": [' + b",".join([element.encode()] * 10_000)
    text = refusal(body, rows_array(max_elements=99, piece_bytes=2**10))
    assert text == '"rows" has more rows than the 99 that are allowed'


@pytest.mark.parametrize(
    "element", ['"%s"' % ("a" * 3000), "[%s]" % ("1," * 2000), " " * 3000, '"%s"' % ("\\\\" * 2000)]
)
def test_an_element_that_is_too_large_is_refused(element: str) -> None:
    text = refusal(b'{"rows": [[1], [2], %b, [3]]}' % element.encode(), rows_array(max_bytes=2**11))
    assert text == '"rows" has an element of more than 2048 bytes, at index 2'


@pytest.mark.parametrize(
    "before", [f'"x": [{",".join(["1"] * MAX_AROUND)}],', " " * MAX_AROUND], ids=["array", "space"]
)
def test_an_array_that_comes_too_late_is_refused(before: str) -> None:
    text = refusal(b'{%b "rows": [1]}' % before.encode(), rows_array())
    assert text == f'the JSON has no array "rows" in its first {MAX_AROUND} bytes'


def test_too_much_after_the_array_is_refused() -> None:
    text = refusal(b'{"rows": [1], "x": [%b]}' % b",".join([b"1"] * MAX_AROUND), rows_array())
    assert text == f"the JSON has more than {MAX_AROUND} bytes after its rows"


def test_space_after_the_document_has_no_limit() -> None:
    assert read(b'{"rows": [1]}' + b" \r\n\t" * MAX_AROUND, rows_array()) == ({"rows": []}, [1])


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"x":' * 100_000])
def test_deep_nesting_is_refused(deep: bytes) -> None:
    assert "has no array" in refusal(deep, rows_array())
    assert "not valid JSON" in refusal(b'{"rows": [' + deep, rows_array())
    assert "not valid JSON" in refusal(b'{"rows": [[' + b"[" * 2000 + b"]" * 2000 + b"]]}", rows_array())


# --- the array that was cut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows": [1], "rows": [2]}',
        b'{"rows": [1], "rows": 2}',
        b'{"rows": [1], "\\u0072ows": []}',
        b'{"inputs": [{"data": [1]}], "inputs": [{"data": [1]}]}',
    ],
)
def test_an_array_whose_name_is_repeated_is_not_the_array_that_was_cut(body: bytes) -> None:
    path = NESTED_PATH if b"inputs" in body else ("rows",)
    assert not is_cut(value_at(cut(body, rows_array(path)).around, path))


@pytest.mark.parametrize("value", [[], [1], ["mark"], "mark", None, [[]], {}])
def test_another_value_is_not_the_array_that_was_cut(value: object) -> None:
    assert not is_cut(value)


@pytest.mark.parametrize("name", ['"\\u0072ows"', '"rows"', '"r\\u006fws"'])
def test_a_name_may_have_escapes(name: str) -> None:
    assert read(b"{%b: [1, 2]}" % name.encode(), rows_array()) == ({"rows": []}, [1, 2])


@pytest.mark.parametrize(
    "body", [b'{"Rows": [1]}', b"[1]", b'{"a": {"rows": [1]}}', b'[{"rows": [1]}]', b"7", b'{"rows": 7}']
)
def test_a_document_without_the_array_is_parsed_whole(body: bytes) -> None:
    document = cut(body, rows_array())
    assert (document.around, document.pieces, document.elements) == (orjson.loads(body), [], 0)


def test_an_empty_array_has_no_pieces() -> None:
    for body in (b'{"rows": []}', b'{"rows": [ \n ]}'):
        document = cut(body, rows_array())
        assert is_cut(document.around["rows"])
        assert (document.pieces, document.elements) == ([], 0)
