"""A body that goes through simdjson gets the answer of the thorough path: the same bits, or the same message.

Only large bodies go through simdjson. Spaces after these bodies make them large. test_friendly.py and test_oip.py test
the thorough path. The bodies are text: no JSON library writes most of the cases in which the two paths could differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.rows import SMALL_BODY, DecodedRequest, parse_json
from tests.service.support import manifest

MAX_ROWS = 3
MANIFEST = manifest(features=("a", "b"), missing=["b"])
FRIENDLY = FriendlyCodec(MANIFEST, MAX_ROWS)
OIP = OipCodec(MANIFEST, MAX_ROWS)
OUTPUTS = np.array([[0.5]], np.float32)


def outcome(decode: Callable[[], DecodedRequest]) -> tuple[Any, ...]:
    """All that a caller sees: the bits of the rows, the answer and the timeout, or the message of the refusal."""
    try:
        call = decode()
    except InvalidInput as refused:
        return ("refused", str(refused))
    rows = call.rows
    return ("read", str(rows.dtype), rows.shape, rows.tobytes(), call.encode(OUTPUTS), call.timeout)


def assert_same_on_both_paths(codec: FriendlyCodec | OipCodec, body: bytes) -> None:
    def thorough() -> DecodedRequest:
        if isinstance(codec, OipCodec):
            return codec._thorough(parse_json(large), None)
        return DecodedRequest(codec._checked_rows(large), codec._json)

    large = body + b" " * SMALL_BODY
    found = outcome(lambda: codec.decode({}, large))
    assert found == outcome(thorough)
    if found[0] == "read":
        assert outcome(lambda: codec.decode({}, body)) == found


# --- bodies, as text -------------------------------------------------------------------------------------------------


def array(values: list[str]) -> str:
    return f"[{','.join(values)}]"


def members(pairs: list[tuple[str, str]]) -> str:
    """An object. A name may come twice."""
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
    """An object of these names and values in any order, with others among them."""
    own = st.tuples(*(st.tuples(name, value) for name, value in pairs))
    return st.tuples(own, asides).flatmap(lambda both: st.permutations([*both[0], *both[1]])).map(members)


# --- the fast path is taken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, MAX_ROWS])
def test_the_usual_large_body_takes_the_fast_path(rows: int) -> None:
    values = [[0.5, -2.0]] * rows
    assert FRIENDLY._plain_rows(json.dumps({"instances": values}).encode()) is not None
    for data in (values, [0.5, -2.0] * rows):
        tensor = {"name": "input", "shape": [rows, 2], "datatype": "FP32", "data": data}
        for more in ({}, {"id": "x", "parameters": {"timeout": 5}}, {"outputs": [{"name": "value"}]}):
            assert OIP._plain(json.dumps({**more, "inputs": [tensor]}).encode()) is not None


def test_a_large_tensor_of_codes_takes_the_fast_path_unless_one_is_not_a_code() -> None:
    codec = OipCodec(manifest(features=["a", {"name": "b", "kind": "boolean"}]), MAX_ROWS)
    for values in ([0.5, 1], [0.5, 2], [0.5, 0.5]):
        tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": values}
        body = json.dumps({"inputs": [tensor]}).encode()
        assert (codec._plain(body) is not None) == (values == [0.5, 1])
        assert_same_on_both_paths(codec, body)


# --- both paths ------------------------------------------------------------------------------------------------------

# To a parser, the last is the same name as the others.
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
def test_rows_are_read_as_the_thorough_path_reads_them(body: bytes) -> None:
    assert_same_on_both_paths(FRIENDLY, body)


@given(st.binary(max_size=12), st.integers(0, 40))
def test_a_damaged_body_is_judged_as_the_thorough_path_judges_it(noise: bytes, at: int) -> None:
    body = b'{"instances": [[1.5, -2], [3e0, 4]], "x": ""}'
    assert_same_on_both_paths(FRIENDLY, body[:at] + noise + body[at + len(noise) :])


@pytest.mark.parametrize("depth", [1, 100, 1020, *range(1021, 1027), 100_000])
def test_nesting_is_judged_as_the_thorough_path_judges_it(depth: int) -> None:
    for deep in (b"[" * depth + b"]" * depth, b'{"x":' * depth + b"1" + b"}" * depth):
        for body in (b'{"instances":[[1,2]],"x":%s}' % deep, b'{"instances":%s}' % deep):
            assert_same_on_both_paths(FRIENDLY, body)


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
def test_a_tensor_is_read_as_the_thorough_path_reads_it(body: bytes) -> None:
    assert_same_on_both_paths(OIP, body)
