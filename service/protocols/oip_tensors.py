"""Reads the input tensor of the Open Inference Protocol: its shape, its datatype, and its data in JSON or in binary.

This module turns one tensor into rows. This module does not depend on other parts of the request, or on the answer.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Rows
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import NUMBERS
from foldserve.service.protocols.json_text import CutDocument, Piece, parse_piece
from foldserve.service.protocols.request import SlowBody
from foldserve.service.protocols.rows import Columns, RowsBuffer
from foldserve.service.protocols.simdjson_numbers import read_numbers

# https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md#tensor-data-types
# NumPy has no BF16. A BF16 is the upper half of a float32, so its bits are read as an integer and shifted.
_CODES = {
    "BOOL": "u1",
    **{"UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8"},
    **{"INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"},
    **{"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2"},
}
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in _CODES.items()}
_INTEGERS = {name for name in DTYPES if "INT" in name}
_LARGEST = {"FP16": float(np.finfo(np.float16).max), "BF16": 2.0**128 - 2.0**120}
# For these datatypes, any finite number that fits float32 is valid, so no other check is needed.
_FAST = ("FP32", "FP64")


class InputTensor:
    """Reads the one input tensor of a model."""

    def __init__(self, name: str, columns: Columns, max_rows: int) -> None:
        self._name = name
        self._columns = columns
        self._max_rows = max_rows

    def rows_in(self, shape: Any) -> int:
        """Return the number of rows in a shape. Raises `InvalidInput` for a wrong shape."""
        width = self._columns.width
        if type(shape) is not list or not set(map(type, shape)) <= {int}:
            raise InvalidInput(f"the shape of {self._name!r} is not an array of integers")
        if len(shape) != 2 or shape[1] != width or shape[0] < 1:
            raise InvalidInput(f"the shape of {self._name!r} is not [rows, {width}] with at least one row")
        if shape[0] > self._max_rows:
            raise InvalidInput(f"{self._name!r} has more rows than the {self._max_rows} that are allowed")
        return int(shape[0])

    def check_datatype(self, datatype: Any) -> str:
        """Return the datatype. Raises `InvalidInput` if the datatype is not a numeric datatype of the protocol."""
        if type(datatype) is not str or datatype not in DTYPES:
            raise InvalidInput(f"the datatype of {self._name!r} is not numeric")
        return datatype

    # --- data in JSON -------------------------------------------------------------------------------------------------

    def from_json(self, data: list[Any], datatype: str, count: int, *, booleans: bool) -> Rows:
        """Read `count` rows from parsed JSON: an array of rows, or an array of all values. Raises `InvalidInput`.

        booleans: whether a value may be true or false.
        """
        nested = bool(data) and type(data[0]) is list
        if nested and len(data) != count:
            raise self._not_rows(count)
        values = self._flat(data, count) if nested else data
        if len(values) != count * self._columns.width:
            raise self._wrong_size(len(values), count)
        return self._checked(values, datatype, 0, booleans=booleans)

    def from_pieces(
        self, body: bytes | bytearray, document: CutDocument, datatype: str, count: int, *, fast_only: bool
    ) -> Rows:
        """Read `count` rows from the pieces of a body: an array of rows, or an array of all values.

        Raises `InvalidInput`. Raises `SlowBody` if `fast_only` is true and reading would take long.
        """
        width, pieces = self._columns.width, document.pieces
        nested = bool(pieces) and body[pieces[0].start : pieces[0].end].lstrip().startswith(b"[")
        if nested and document.elements != count:
            raise self._not_rows(count)
        if not nested and document.elements != count * width and not any(piece.brackets for piece in pieces):
            raise self._wrong_size(document.elements, count)
        rows = RowsBuffer(width)
        fast = datatype in _FAST
        rest: list[Any] = []  # the values after the last whole row
        for piece in pieces:
            if fast and (found := self._fast(body, piece, rest, nested=nested)) is not None:
                some, rest = found
            elif fast_only:
                raise SlowBody
            else:
                fast = False  # the next pieces probably need the slow path too
                values = parse_piece(body, piece)
                values = rest + (self._flat(values, count) if nested else values)
                whole = len(values) // width * width
                some, rest = self._checked(values[:whole], datatype, rows.count), values[whole:]
            rows.append(some)
        if rows.count != count or rest:
            raise self._wrong_size(rows.count * width + len(rest), count)
        return rows.rows()

    def _fast(
        self, body: bytes | bytearray, piece: Piece, rest: list[Any], *, nested: bool
    ) -> tuple[Rows, list[Any]] | None:
        """Return the whole rows of a piece and the numbers after its last whole row.

        Return None if the slow path must check the piece.
        """
        numbers = read_numbers(body, piece, self._columns.width) if nested == bool(piece.brackets) else None
        if numbers is None:
            return None
        if rest:
            numbers = np.concatenate([rest, numbers])
        whole = numbers.size // self._columns.width * self._columns.width
        rows = self._columns.from_doubles(numbers[:whole])
        return None if rows is None else (rows, numbers[whole:].tolist())

    def _flat(self, data: list[Any], count: int) -> list[Any]:
        width = self._columns.width
        if any(type(row) is not list or len(row) != width for row in data):
            raise self._not_rows(count)
        return list(chain.from_iterable(data))

    def _checked(self, values: list[Any], datatype: str, first_row: int, *, booleans: bool = True) -> Rows:
        """Read the values of whole rows. first_row: the index of the first row in the request."""
        if datatype not in _FAST:
            values = checked_numbers(repr(self._name), values, datatype)
        rows = self._columns.from_json_numbers(values, first_row, booleans=booleans)
        if datatype in _LARGEST and (np.abs(rows) > _LARGEST[datatype]).any():
            raise InvalidInput(f"{self._name!r} holds a value that is too large for {datatype}")
        return rows

    def _not_rows(self, count: int) -> InvalidInput:
        return InvalidInput(f'the "data" of {self._name!r} is not {count} rows of {self._columns.width} values')

    def _wrong_size(self, values: int, count: int) -> InvalidInput:
        size = count * self._columns.width
        return InvalidInput(f'the "data" of {self._name!r} has {values} values, its shape {size}')

    # --- data in binary -----------------------------------------------------------------------------------------------

    def from_binary(self, content: memoryview | None, size: Any, datatype: str, count: int) -> Rows:
        """Read `count` rows from the bytes after the JSON.

        size: the value of the parameter binary_data_size. Raises `InvalidInput`.
        """
        dtype, width = DTYPES[datatype], self._columns.width
        if content is None:
            raise InvalidInput("there is a binary_data_size, and no header Inference-Header-Content-Length")
        if type(size) is not int or size != count * width * dtype.itemsize:
            raise InvalidInput(f"the binary_data_size of {self._name!r} is not that of its shape and datatype")
        if size != len(content):
            raise InvalidInput(f"the bytes after the JSON are not the {size} of the tensors' binary_data_size")
        values: npt.NDArray[Any] = np.ndarray((count, width), dtype, content)
        if datatype == "BOOL" and (values > 1).any():
            raise InvalidInput(f"{self._name!r} is BOOL, and holds a byte that is neither 0 nor 1")
        if datatype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return self._columns.from_array(values)

    def from_raw(self, content: memoryview) -> Rows:
        """Read FP32 rows. Raises `InvalidInput` if the last row is incomplete, or if there are too many rows."""
        width = self._columns.width
        count, rest = divmod(len(content), 4 * width)
        if rest:
            raise InvalidInput(f"the body is not rows of {width} FP32 values")
        self.rows_in([count, width])
        return self.from_binary(content, len(content), "FP32", count)


def checked_numbers(name: str, values: list[Any], datatype: str) -> list[Any]:
    """Return numbers from JSON if they fit a datatype. name: the name of the tensor, for error messages.

    Raises `InvalidInput`. If the datatype is BOOL, each value must be true, false, 0 or 1, and is returned as 0 or 1.
    This function does not check the limits of FP16 and BF16.
    """
    if datatype == "BOOL":
        if not all(type(value) is bool or (type(value) is int and value in (0, 1)) for value in values):
            raise InvalidInput(f"{name} is BOOL, and holds a value that is neither true, false, 0 nor 1")
        return list(map(int, values))
    if datatype in _INTEGERS:
        if not set(map(type, values)) <= NUMBERS:
            raise InvalidInput(f"{name} is {datatype}, and holds a value that is not a number")
        bounds = np.iinfo(DTYPES[datatype])
        if values and not (int(bounds.min) <= min(values) and max(values) <= int(bounds.max)):
            raise InvalidInput(f"{name} holds a value that is out of the range of {datatype}")
        if not all(type(value) is int or value.is_integer() for value in values):
            raise InvalidInput(f"{name} is {datatype}, and holds a fraction")
    return values
