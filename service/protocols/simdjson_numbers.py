"""Reads the numbers of a piece of JSON into an array with simdjson, without a Python object for each number.

docs/json.md has the measurements that justify this module. This module does not depend on features or protocols. This
module never gives a whole request to simdjson, which counts the elements of an array only up to 2**24 - 1. If an array
is longer, pysimdjson's `as_list`, `as_dict`, `items`, `values` and slices write past the end of a list, so this module
uses only `parse`, `len`, iteration and `as_buffer`. In addition, the module refuses every text that is long enough to
contain 2**24 elements.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import simdjson

from foldserve.service.protocols.json_text import Piece, in_brackets

# A text of this size is too short for an array of 2**24 elements, which has 2**24 - 1 commas and at least as many
# digits.
_MAX_TEXT = 2**24
# A parser keeps memory: many times the size of the longest text that it has parsed. A text above this size gets a new
# parser, which is used only once.
_MAX_REUSED = 2**18

# simdjson and its proxies raise these errors for text that is not JSON, and for a value of an unexpected type.
_ERRORS = (ValueError, TypeError, RuntimeError)


class _Parsers(threading.local):
    """One parser for each thread.

    Creating a parser is slow, because a parser allocates many times the size of its text.
    """

    def __init__(self) -> None:
        self.reused = simdjson.Parser()


_parsers = _Parsers()


def read_numbers(body: bytes | bytearray, piece: Piece, width: int) -> npt.NDArray[np.float64] | None:
    """Read a piece that contains numbers, or arrays of `width` numbers each, as float64 [values].

    The returned numbers are finite. Returns None for a piece with other values; the caller must then check the piece
    with `parse_piece`.
    """
    nested = piece.brackets != 0
    if piece.end - piece.start >= _MAX_TEXT or (nested and piece.brackets != 2 * piece.elements):
        return None
    text = in_brackets(body, piece)
    parser = _parsers.reused if len(text) <= _MAX_REUSED else simdjson.Parser()
    try:
        return _flatten(parser.parse(text), piece.elements, width if nested else None)
    except _ERRORS:
        return None


def _flatten(array: Any, elements: int, width: int | None) -> npt.NDArray[np.float64] | None:
    """Flatten an array. If `width` is None, the array contains `elements` numbers.

    If `width` is a number, the array contains `elements` inner arrays of `width` numbers each. `as_buffer` raises an
    error unless every innermost value is a number. `as_buffer` also flattens nested arrays, so this function checks the
    shape by counting. `len(array)` must be the number of elements. For each element, `len` must return `width`; for a
    number, `len` raises an error. The caller has checked that the piece has only one `[` and one `]` for each element,
    so an element contains only numbers and no other array.
    """
    numbers = np.frombuffer(array.as_buffer(of_type="d"))
    if len(array) != elements or numbers.size != elements * (1 if width is None else width):
        return None
    if width is not None and set(map(len, array)) != {width}:
        return None
    return numbers
