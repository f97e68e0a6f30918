"""Tests the datatypes of the Open Inference Protocol. A value in JSON or in bytes becomes the nearest float32, or is
refused.

`struct` writes the bytes. A BF16 number is the upper half of a float32.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.oip import OipCodec
from foldserve.service.protocols.request import DecodedRequest
from tests.service.support import MARKER, manifest

CODEC = OipCodec(manifest(features=("a", "b"), missing=["b"]), 4)
LARGEST = float(np.finfo(np.float32).max)

LETTERS = {
    **{"BOOL": "B", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
    **{"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"},
}
INTEGERS = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
FLOATS = ("FP16", "BF16", "FP32", "FP64")
DATATYPES = [*LETTERS, "BF16"]

# Values that the datatype holds exactly.
EXACT: dict[str, list[Any]] = {
    "BOOL": [False, True],
    **{name: [low, low + 1, 0, 1, 100, high - 1, high] for name, (low, high) in INTEGERS.items()},
    "FP16": [0.0, -0.0, 1.5, -65504.0, 65504.0, 2.0**-24, -(2.0**-14)],
    "BF16": [0.0, -0.0, 1.5, -(2.0**127), 2.0**128 - 2.0**120, 2.0**-133, 2.0**-126],
    "FP32": [0.0, -0.0, 1.5, -LARGEST, LARGEST, 2.0**-149, 2.0**-126],
    "FP64": [0.0, -0.0, 0.1, -LARGEST, LARGEST, 2.0**-149, 5e-324, 1 / 3],
}


def packed(datatype: str, *values: Any) -> bytes:
    if datatype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{LETTERS[datatype]}", *values)


def as_json(datatype: str, *values: Any, **changes: Any) -> DecodedRequest:
    data = list(values)
    tensor = {"name": "input", "shape": [len(data) // 2, 2], "datatype": datatype, "data": data, **changes}
    return CODEC.decode({}, json.dumps({"inputs": [tensor]}).encode())


def as_bytes(datatype: str, content: bytes, rows: int = 1, **changes: Any) -> DecodedRequest:
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": "input", "shape": [rows, 2], "datatype": datatype, "parameters": parameters, **changes}
    head = json.dumps({"inputs": [tensor]}).encode()
    return CODEC.decode({b"inference-header-content-length": b"%d" % len(head)}, head + content)


def refusal(decode: Any, *arguments: Any, **changes: Any) -> str:
    with pytest.raises(InvalidInput) as refused:
        decode(*arguments, **changes)
    assert MARKER not in str(refused.value)
    return str(refused.value)


def bits(*values: Any) -> bytes:
    """Convert each value to a double, then to the nearest float32; return the bytes."""
    with np.errstate(under="ignore"):
        return np.array([float(value) for value in values]).astype("<f4").tobytes()


# --- values of a datatype --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("datatype", "value"), [(name, value) for name, values in EXACT.items() for value in values])
def test_a_value_of_each_datatype_is_the_float32_nearest_to_it(datatype: str, value: Any) -> None:
    for pair in ((value, 0), (0, value)):
        assert as_bytes(datatype, packed(datatype, *pair)).rows.tobytes() == bits(*pair)
        assert as_json(datatype, *pair).rows.tobytes() == bits(*pair)
        assert as_json(datatype, *pair, data=[pair]).rows.tobytes() == bits(*pair)
    assert as_json(datatype, value, value).rows.dtype == np.float32


@pytest.mark.parametrize("datatype", DATATYPES)
def test_rows_keep_their_order(datatype: str) -> None:
    values = [0, 1, 1, 0, 1, 1] if datatype == "BOOL" else [0, 1, 2, 3, 4, 5]
    wanted = np.array(values).reshape(3, 2).tolist()
    assert as_bytes(datatype, packed(datatype, *values), 3).rows.tolist() == wanted
    assert as_json(datatype, *values).rows.tolist() == wanted
    assert as_json(datatype, *values, data=wanted).rows.tolist() == wanted


def test_large_integers_are_rounded_once() -> None:
    assert as_json("INT64", 2**63 - 1, -(2**63)).rows.tolist() == [[2.0**63, -(2.0**63)]]
    assert as_bytes("INT64", packed("INT64", 2**63 - 1, -(2**63))).rows.tolist() == [[2.0**63, -(2.0**63)]]
    assert as_json("UINT64", 2**64 - 1, 2**24 + 1).rows.tolist() == [[2.0**64, 2.0**24]]
    assert as_bytes("UINT64", packed("UINT64", 2**64 - 1, 2**24 + 1)).rows.tolist() == [[2.0**64, 2.0**24]]


@given(st.binary(min_size=4, max_size=4))
def test_half_precision_is_read_as_struct_and_bits_read_it(content: bytes) -> None:
    upper = [struct.unpack("<f", b"\0\0" + content[i : i + 2])[0] for i in (0, 2)]
    for datatype, values in (("FP16", struct.unpack("<2e", content)), ("BF16", upper)):
        if np.isinf(values).any():
            assert refusal(as_bytes, datatype, content).endswith("is infinite")
        elif np.isnan(values[0]):
            assert refusal(as_bytes, datatype, content).startswith("row 0, column 'a' is NaN")
        elif np.isnan(values[1]):
            (found,) = as_bytes(datatype, content).rows
            assert found[:1].tobytes() == bits(values[0])
            assert np.isnan(found[1])
        else:
            assert as_bytes(datatype, content).rows.tobytes() == bits(*values)


@given(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e38, 1e38)))
def test_a_double_is_rounded_or_refused_alike_in_json_and_in_bytes(pair: tuple[float, float]) -> None:
    found = []
    for read in (lambda: as_json("FP64", *pair), lambda: as_bytes("FP64", packed("FP64", *pair))):
        try:
            found.append(read().rows.tobytes())
        except InvalidInput as refused:
            found.append(str(refused))
    too_large = abs(pair[0]) >= LARGEST + 2.0**103
    assert found == [("row 0, column 'a' is too large for float32" if too_large else bits(*pair))] * 2


# --- values that do not fit it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("way", ["below", "above", "far below", "far above"])
def test_an_integer_past_its_datatype_is_refused(datatype: str, way: str) -> None:
    low, high = INTEGERS[datatype]
    value = {"below": low - 1, "above": high + 1, "far below": -(10**300), "far above": 10**300}[way]
    if (datatype, way) == ("INT64", "below"):
        value = -(2**63) - 2**11  # integers below -2**63 are read as doubles, and this is the next double
    text = f"'input' holds a value that is out of the range of {datatype}"
    assert refusal(as_json, datatype, 0, value) == text
    assert refusal(as_json, datatype, value, 0) == text


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("value", [0.5, 1e-300, 99.999, 1 + 2**-52])
def test_a_fraction_in_an_integer_tensor_is_refused(datatype: str, value: float) -> None:
    assert refusal(as_json, datatype, 0, value) == f"'input' is {datatype}, and holds a fraction"


@pytest.mark.parametrize("datatype", INTEGERS)
def test_an_integer_may_be_written_as_a_float(datatype: str) -> None:
    assert as_json(datatype, 1.0, 1e2).rows.tolist() == [[1, 100]]
    assert as_json(datatype, -0.0, 0).rows.tobytes() == bits(-0.0, 0)


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("value", [None, True, "1", MARKER, {}, [1]], ids=repr)
def test_a_value_that_is_not_a_number_is_refused_in_an_integer_tensor(datatype: str, value: object) -> None:
    assert refusal(as_json, datatype, 1, value) == f"'input' is {datatype}, and holds a value that is not a number"


@pytest.mark.parametrize("value", [2, -1, 0.0, 1.0, None, "true", MARKER, [True], {}], ids=repr)
def test_a_value_that_is_not_a_boolean_is_refused(value: object) -> None:
    assert (
        refusal(as_json, "BOOL", True, value)
        == "'input' is BOOL, and holds a value that is neither true, false, 0 nor 1"
    )


@pytest.mark.parametrize("byte", [2, 127, 128, 255])
def test_a_byte_that_is_not_a_boolean_is_refused(byte: int) -> None:
    text = "'input' is BOOL, and holds a byte that is neither 0 nor 1"
    assert refusal(as_bytes, "BOOL", bytes([1, byte])) == text


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("FP16", 70000), ("FP16", 65536.0), ("FP16", -70000.0), ("FP16", 1e30), ("BF16", 3.4e38), ("BF16", -LARGEST)],
)
def test_a_number_past_a_small_float_is_refused(datatype: str, value: float) -> None:
    assert refusal(as_json, datatype, 0, value) == f"'input' holds a value that is too large for {datatype}"


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("value", [1e300, -1e300, 10**39])
def test_a_number_past_float32_is_refused_by_row_and_column(datatype: str, value: float) -> None:
    text = "row 1, column 'b' is too large for float32"
    assert refusal(as_json, datatype, 0, 0, 0, value) == text
    if datatype == "FP64":
        assert refusal(as_bytes, datatype, packed("FP64", 0, 0, 0, value), 2) == text


@pytest.mark.parametrize("datatype", FLOATS)
def test_infinities_and_nan_in_bytes_are_refused_by_row_and_column(datatype: str) -> None:
    for number in (float("inf"), float("-inf")):
        text = "row 1, column 'b' is infinite"
        assert refusal(as_bytes, datatype, packed(datatype, 0, 0, 0, number), 2) == text
    nan = float("nan")
    text = "row 1, column 'a' is NaN, and the feature has no missing values"
    assert refusal(as_bytes, datatype, packed(datatype, 0, nan, nan, 0), 2) == text
    rows = as_bytes(datatype, packed(datatype, 0, nan, 0, 0), 2).rows
    assert np.isnan(rows).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("datatype", FLOATS)
def test_null_in_json_is_a_missing_value(datatype: str) -> None:
    assert np.isnan(as_json(datatype, 0, None).rows).tolist() == [[False, True]]
    assert "is null" in refusal(as_json, datatype, None, 0)


@pytest.mark.parametrize("number", [0x7FF0000000000001, 0xFFF4000000000000], ids=hex)
def test_a_signalling_nan_is_a_missing_value(number: int) -> None:
    nan = struct.pack("<Q", number)
    assert np.isnan(as_bytes("FP64", packed("FP64", 1) + nan).rows).tolist() == [[False, True]]
    assert "is NaN" in refusal(as_bytes, "FP64", nan + packed("FP64", 1))


# --- unknown datatypes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "datatype", ["BYTES", "STRING", "FP8", "FP128", "INT", "INT128", "fp32", "Fp32", " FP32", "f4", "", MARKER]
)
def test_a_datatype_that_is_not_numeric_is_refused(datatype: str) -> None:
    text = "the datatype of 'input' is not numeric"
    assert refusal(as_json, datatype, 1, 2) == text
    assert refusal(as_json, datatype, "1", "2") == text
    assert refusal(as_bytes, datatype, bytes(8)) == text


@pytest.mark.parametrize("datatype", [None, 1, True, ["FP32"], {"FP32": 1}, 32.0], ids=repr)
def test_a_datatype_that_is_not_a_string_is_refused(datatype: Any) -> None:
    text = "the datatype of 'input' is not numeric"
    assert refusal(as_json, datatype, 1, 2) == text
    assert refusal(as_bytes, datatype, bytes(8)) == text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<I1sI1s", 1, b"1", 1, b"2"),
        struct.pack("<I1sI1s", 1, b"1", 2, b"2"),  # the second length reaches past the end of the content
        struct.pack("<I", 2**32 - 1) + MARKER.encode(),
        b"\xff" * 3,
        b"",
    ],
    ids=repr,
)
def test_the_datatype_bytes_is_refused(content: bytes) -> None:
    assert refusal(as_bytes, "BYTES", content) == "the datatype of 'input' is not numeric"


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_size_of_another_datatype_is_refused(datatype: str) -> None:
    right = len(packed(datatype, 0, 0))
    for size in {2, 4, 8, 16} - {right}:
        assert "binary_data_size" in refusal(as_bytes, datatype, bytes(size))
    assert as_bytes(datatype, bytes(right)).rows.tolist() == [[0, 0]]
