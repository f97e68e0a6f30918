"""A large body is parsed in pieces, and a small body is parsed as a whole. Both ways must give
the same answer.

Spaces after a body make it large. The pieces are so small that each large body has several pieces. The results of both
parsers could differ for unusual JSON texts. JSON libraries can't write most unusual texts, so the tests build the
bodies from strings. The tests of the cutting itself are in test_json_text.py. The tests of small bodies are in
test_friendly.py and test_oip.py.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.json_text import SMALL
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.request import SlowBody
from tests.service.support import manifest

MAX_ROWS = 3
MANIFEST = manifest(features=("a", "b"), missing=["b"])
SIZES = (1, 16, 2**16)
OUTPUTS = np.array([[0.5]], np.float32)

Codec = FriendlyCodec | OipCodec
FRIENDLY = [FriendlyCodec(MANIFEST, MAX_ROWS, size) for size in SIZES]
OIP = [OipCodec(MANIFEST, MAX_ROWS, size) for size in SIZES]


def outcome(codec: Codec, body: bytes, **options: bool) -> tuple[Any, ...]:
    """Return everything that a caller sees: the bits of the rows, the answer and the timeout, or the error message."""
    try:
        request = codec.decode({}, body, **options)
    except InvalidInput as refused:
        return ("refused", str(refused))
    rows = request.rows
    return ("read", str(rows.dtype), rows.shape, rows.tobytes(), request.encode(OUTPUTS), request.timeout)


def assert_same_small_and_large(codecs: list[Any], body: bytes) -> None:
    small = outcome(codecs[0], body)
    for codec in codecs:
        large = outcome(codec, body + b" " * SMALL)
        # If a name occurs several times in an object, both parsers read the last member. A large body may also be
        # refused because of an earlier member with the same name.
        unescaped = body.replace(b"\\u0069", b"i")
        repeated = max(unescaped.count(b'"instances"'), unescaped.count(b'"data"')) > 1
        assert large[0] == small[0] or (large[0] == "refused" and repeated)
        # If a body has several faults, the message may depend on the size of the body. For a large body, the server
        # checks the document first, then the first piece. The values of a large body are counted before they are
        # parsed.
        if small[0] == "read":
            assert large == small or repeated


def assert_same_message(codecs: list[Any], body: bytes) -> None:
    for codec in codecs:
        assert outcome(codec, body + b" " * SMALL) == outcome(codec, body)


# --- bodies, as text -------------------------------------------------------------------------------------------------


def array(values: list[str]) -> str:
    return f"[{','.join(values)}]"


def members(pairs: list[tuple[str, str]]) -> str:
    """Write a JSON object. In the object, a name may occur twice."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"


numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(
        [
            *(
                "0",
                "-0",
                "-0.0",
                "0e0",
                "1E+2",
                "1e-400",
                "5e-324",
                "1e-45",
                "1.40129846e-45",
                "0.1e-1",
                "1e19",
                "2e19",
            ),
            *("1e300", "-1e300", "1e200", "3.4028235e38", "3.4028236e38", "3.5e38", "1" + "0" * 39, "9007199254740993"),
            *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
        ]
    ),
)
strings = st.sampled_from(
    ['""', '"1.5"', '"["', '"]"', '"{[["', '"\\""', '"\\\\"', '"\\u005b"', '"\\ud800"', '"\\ud83d\\ude00"', '"\x7f"']
)
odd = st.sampled_from(
    ["null", "true", "false", "{}", "[]", "[1]", "[[1]]", '{"a":1}', '{"a":[1]}', "NaN", "1e999", "01", ""]
)
few_odd = st.integers(0, 9).flatmap(lambda dice: odd | strings if dice == 0 else numbers)


def rows_of(cells: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=MAX_ROWS + 1)


uneven = st.lists(st.lists(numbers, max_size=4), max_size=MAX_ROWS + 1)
tables = st.one_of(
    rows_of(numbers).map(lambda rows: array([array(row) for row in rows])),
    rows_of(few_odd).map(lambda rows: array([array(row) for row in rows])),
    rows_of(few_odd).map(lambda rows: array([members(list(zip("ab", row, strict=True))) for row in rows])),
    uneven.map(lambda rows: array([array(row) for row in rows])),
    st.sampled_from(
        [
            *("[[1,[2]]]", "[[[1],2],[3,4]]", "[[1,2],[[3,4]]]", "[[[1,2]]]", "[[1,2],3,4]", "[[1,2],[]]", "[1,2]"),
            *('[[1,2],{"a":3,"b":4}]', '[{"a":3,"b":4},[1,2]]', "[[],[1,2,3,4]]", "[[1],[2,3,4],[]]", "[[1,2],null]"),
            *("[[1,2],[3,4],5]", "[[1,2]", "[[1,2],]", "[]", "{}", "[[]]", '["12"]', '[["1","2"]]', "null", "7"),
        ]
    ),
)
asides = st.lists(
    st.tuples(
        st.sampled_from(["x", "[", "[[", "{", "instances ", "\\u005b", "é", "parameters", "y"]),
        st.one_of(odd, strings, numbers, st.sampled_from(["[[1,2]]", '{"instances":[[1,2]]}'])),
    ),
    max_size=2,
)
space = st.sampled_from(["", "", "", "", " ", "\n\t\r ", "\0", "\x0b", "\ufeff", "}", "1"])


def around(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return st.tuples(space, texts, space).map(lambda parts: "".join(parts).encode())


def shuffled(
    *pairs: tuple[st.SearchStrategy[str], st.SearchStrategy[str]], asides: st.SearchStrategy[Any] = asides
) -> st.SearchStrategy[str]:
    """Draw a JSON object that has these names and values in any order, and other members between them."""
    own = st.tuples(*(st.tuples(name, value) for name, value in pairs))
    return st.tuples(own, asides).flatmap(lambda both: st.permutations([*both[0], *both[1]])).map(members)


# --- the fast path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, MAX_ROWS])
@pytest.mark.parametrize("size", range(len(SIZES)))
def test_the_usual_large_body_takes_the_fast_path(rows: int, size: int) -> None:
    values = [[0.5, -2.0]] * rows
    body = json.dumps({"instances": values}).encode().ljust(SMALL + 1)
    assert len(FRIENDLY[size].decode({}, body, fast_only=True).rows) == rows
    for data in (values, [0.5, -2.0] * rows):
        tensor = {"name": "input", "shape": [rows, 2], "datatype": "FP32", "data": data}
        for more in ({}, {"id": "x", "parameters": {"timeout": 5}}, {"outputs": [{"name": "value"}]}):
            body = json.dumps({**more, "inputs": [tensor]}).encode().ljust(SMALL + 1)
            assert OIP[size].decode({}, body, fast_only=True).rows.tolist() == values


@pytest.mark.parametrize("value", [None, 1e300, "x", True])
def test_a_large_body_that_needs_checks_is_left_to_a_thread(value: object) -> None:
    body = json.dumps({"instances": [[1, 2], [3, value]]}).encode().ljust(SMALL + 1)
    with pytest.raises(SlowBody):
        FRIENDLY[0].decode({}, body, fast_only=True)
    tensor = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, value]}
    with pytest.raises(SlowBody):
        OIP[0].decode({}, json.dumps({"inputs": [tensor]}).encode().ljust(SMALL + 1), fast_only=True)


def test_a_large_tensor_of_codes_takes_the_fast_path_unless_a_value_is_not_a_code() -> None:
    codec = OipCodec(manifest(features=["a", {"name": "b", "kind": "boolean"}]), MAX_ROWS)
    for values in ([0.5, 1], [0.5, 2], [0.5, 0.5]):
        tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": values}
        body = json.dumps({"inputs": [tensor]}).encode()
        try:
            codec.decode({}, body.ljust(SMALL + 1), fast_only=True)
        except SlowBody:
            assert values != [0.5, 1]
        assert_same_message([codec], body)


# --- rows in several pieces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3, None], [5, 6]],
        [[1, 2], [3, 4], [None, 6]],
        [[1, 2], [3, 4], [5, "x"]],
        [[1, 2], [3, 4], [5, 1e300]],
        [[1, 2], [3, 4], [5]],
        [[1, 2], [3, 4], 5],
        [[1, 2], [3, 4], {"a": 1, "b": 2}],
        [{"a": 1, "b": 2}, {"b": 3, "a": None}, {"a": 5, "b": 6}],
        [{"a": 1, "b": 2}, {"b": None, "a": 3}, {"a": 5, "b": 6}],
        [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5}],
        [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6, "c": 7}],
        [{"a": 1, "b": 2}, {"a": 3, "b": 4}, [5, 6]],
        [[1, 2]] * (MAX_ROWS + 1),
        [],
    ],
    ids=repr,
)
def test_a_message_names_the_row_of_the_whole_request(rows: list[Any]) -> None:
    assert_same_message(FRIENDLY, json.dumps({"instances": rows}).encode())
    if all(isinstance(row, list) for row in rows) and len(rows) <= MAX_ROWS:
        for data in (rows, [value for row in rows for value in row]):
            for datatype in ("FP32", "FP64"):
                tensor = {"name": "input", "shape": [3, 2], "datatype": datatype, "data": data}
                assert_same_message(OIP, json.dumps({"inputs": [tensor]}).encode())


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [0, 1, True, 2, -1, 0.5, 300, 1e30, 1e39, None, "x", [1], {}])
@pytest.mark.parametrize("nested", [False, True])
def test_a_datatype_is_checked_in_every_piece(datatype: str, value: object, nested: bool) -> None:
    data = [[0, 1], [1, 0], [1, value]] if nested else [0, 1, 1, 0, 1, value]
    tensor = {"name": "input", "shape": [3, 2], "datatype": datatype, "data": data}
    assert_same_message(OIP, json.dumps({"inputs": [tensor]}).encode())


@pytest.mark.parametrize("values", [0, 1, 5, 7, 8])
def test_data_that_does_not_fill_the_shape_is_refused(values: int) -> None:
    tensor = {"name": "input", "shape": [3, 2], "datatype": "FP32", "data": [1] * values}
    for codec in OIP:
        kind, text = outcome(codec, json.dumps({"inputs": [tensor]}).encode().ljust(SMALL + 1))
        assert kind == "refused"
        assert text in (
            f"the \"data\" of 'input' has {values} values, its shape 6",
            '"data" has more values than the 6 that are allowed',
        )


def test_data_that_mixes_values_and_rows_is_refused() -> None:
    for data in ([1, [2, 3], 4, 5, 6], [[1, 2], 3, 4, [5, 6]], [1, 2, 3, 4, 5, [6]], [[1, 2], [3, 4], 5, 6]):
        tensor = {"name": "input", "shape": [3, 2], "datatype": "FP32", "data": data}
        assert_same_small_and_large(OIP, json.dumps({"inputs": [tensor]}).encode())


@pytest.mark.parametrize("size", [0, SMALL + 1])
def test_a_body_that_arrives_in_parts_is_read_like_any_other_body(size: int) -> None:
    memory = BodyMemory(10**6)
    tensor = b'{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}'
    length = b"inference-header-content-length"
    for codec, headers, content in (
        (FRIENDLY[0], {}, b'{"instances": [[1, 2]]}'.ljust(size)),
        (FRIENDLY[0], {b"content-type": b"application/octet-stream"}, np.array([1, 2], "<f4").tobytes()),
        (OIP[0], {}, (b'{"inputs": [%b]}' % tensor).ljust(size)),
        (OIP[0], {length: b"0"}, np.array([1, 2], "<f4").tobytes()),
    ):
        body = memory.new_body()
        body.add(content)
        assert codec.decode(headers, body).rows.tolist() == [[1, 2]]


def test_rows_that_come_twice_are_refused() -> None:
    for codec in FRIENDLY:
        found = outcome(codec, b'{"instances": [[1, 2]], "instances": [[1, 2]]}'.ljust(SMALL + 1))
        assert found == ("refused", '"instances" is in the body more than once')
    tensor = b'{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], "data": [1, 2]}'
    for codec in OIP:
        found = outcome(codec, (b'{"inputs": [%b]}' % tensor).ljust(SMALL + 1))
        assert found == ("refused", "'input' has \"data\" more than once")


# --- both paths ------------------------------------------------------------------------------------------------------

# In the last text, one letter is escaped. A parser reads each of the four texts as `instances`.
instances = st.sampled_from(["instances", "instances", "instances", "\\u0069nstances"])


@given(
    around(
        shuffled((instances, tables))
        | shuffled((instances, tables), (instances, tables | odd))
        | shuffled((st.just("x"), tables))
        | tables
    )
)
@example(b'\xef\xbb\xbf{"instances":[[1,2]]}')
@example(b'{"instances":[[1,2]],"instances":7}')
@example(b'{"instances":[[1,2]],"\\u0069nstances":7}')
@example(b'{"instances":7,"instances":[[1,2]]}')
@example(b"[2147483648]")
def test_large_rows_are_read_as_small_rows(body: bytes) -> None:
    assert_same_small_and_large(FRIENDLY, body)


@given(st.binary(max_size=12), st.integers(0, 40))
def test_a_damaged_body_gets_the_same_answer_if_it_is_large_or_small(noise: bytes, at: int) -> None:
    body = b'{"instances": [[1.5, -2], [3e0, 4]], "x": ""}'
    assert_same_small_and_large(FRIENDLY, body[:at] + noise + body[at + len(noise) :])


@pytest.mark.parametrize("depth", [1, 100, 1020, *range(1021, 1027), 100_000])
def test_nesting_has_the_same_limit_in_large_and_small_bodies(depth: int) -> None:
    for deep in (b"[" * depth + b"]" * depth, b'{"x":' * depth + b"1" + b"}" * depth):
        for body in (b'{"instances":[[1,2]],"x":%s}' % deep, b'{"instances":%s}' % deep):
            assert_same_small_and_large(FRIENDLY, body)


shapes = st.sampled_from(["[1,2]", "[2,2]", "[3,2]"]) | st.sampled_from(
    ["[4,2]", "[0,2]", "[-1,2]", "[2,1]", "[2]", "[]", "2", "null", "[2.0,2]", "[true,2]", '["2",2]', "[[2],2]", "{}"]
)
flat = st.lists(numbers, max_size=8).map(array) | rows_of(few_odd).map(
    lambda rows: array([cell for row in rows for cell in row])
)
tensors = shuffled(
    (st.just("name"), st.sampled_from(['"input"', '"input"', '"input"', '"inpu\\u0074"', '"other"', "null"])),
    (st.just("shape"), shapes),
    (st.just("datatype"), st.sampled_from(['"FP32"', '"FP32"', '"FP64"', '"INT64"', '"BYTES"', "1"])),
    (st.just("data"), tables | flat),
    asides=st.lists(
        st.tuples(
            st.sampled_from(["x", "data", "shape", "datatype", "name", "dat\\u0061", "parameters"]), odd | tables | flat
        ),
        max_size=1,
    ),
)
matched = rows_of(numbers).flatmap(
    lambda rows: st.sampled_from(
        [
            f'{{"name":"input","shape":[{len(rows)},2],"datatype":"{datatype}","data":{data}}}'
            for datatype in ("FP32", "FP64", "INT64")
            for data in (array([array(row) for row in rows]), array([cell for row in rows for cell in row]))
        ]
    )
)
settings_of_it = st.lists(
    st.one_of(
        st.tuples(st.just("id"), strings | st.sampled_from(["null", "1", '"one"', '"\\n"'])),
        st.tuples(
            st.just("parameters"),
            st.sampled_from(
                [
                    *("{}", "null", "[]", '{"timeout":5}', '{"timeout":5,"timeout":-1}', '{"timeout":1.5}'),
                    *('{"binary_data_output":true}', '{"binary_data_output":1}', '{"shared_memory_region":""}'),
                    *('{"timeout":18446744073709551616}', '{"x":[[]]}'),
                ]
            ),
        ),
        st.tuples(
            st.just("outputs"),
            st.sampled_from(
                [
                    *("[]", "null", "{}", "[[]]", "[null]", '[{"name":"value"}]', '[{"name":"other"}]', '"["'),
                    *('[{"name":"value"},{"name":"value"}]', '[{"name":"value","parameters":{"binary_data":true}}]'),
                    '[{"name":"value","parameters":{"classification":1}}]',
                ]
            ),
        ),
        st.tuples(st.just("inputs"), st.sampled_from(["[]", "null", "7", "[{}]"])),
        st.tuples(st.sampled_from(["x", "model_name", "["]), odd | strings),
    ),
    max_size=2,
)


@given(
    around(
        st.tuples(
            st.lists(matched, min_size=1, max_size=1).map(array)
            | st.lists(matched | tensors, min_size=1, max_size=1).map(array)
            | st.lists(tensors, max_size=2).map(array)
            | tensors,
            settings_of_it,
        )
        .flatmap(lambda both: st.permutations([("inputs", both[0]), *both[1]]))
        .map(members)
    )
)
@example(b'\xef\xbb\xbf{"inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","data":[1,2]}]}')
@example(b'{"inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","data":[1,2]}],"inputs":7}')
@example(b'{"inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","data":[1,2],"data":7}]}')
@example(b'{"inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","data":[1,1e300]}]}')
@example(b'{"inputs":[[2147483648]]}')
def test_a_large_tensor_is_read_as_a_small_tensor(body: bytes) -> None:
    assert_same_small_and_large(OIP, body)
