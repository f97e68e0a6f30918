"""Checked rows: the values of a request become float32 [rows, features], or are refused by row and column.

simdjson reads the numbers of a large JSON body into an array, without a Python object for each. It reads only bodies
that are right. All others are parsed by orjson, and Python finds the row and the column that are wrong. For a small
body orjson alone is faster.

This module owns the checks of values. It does not know where a protocol puts them in its body.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Feature
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import NUMBERS, CategoricalColumn
from foldserve.service.protocols.reply import Reply

_NUMBERS_AND_NULL = NUMBERS | {type(None)}

# orjson alone is faster up to so many bytes of JSON, and `struct` is faster than NumPy up to so many numbers; measured.
SMALL_BODY = 4096
_SMALL_COUNT = 512

# If a sum of squares is below this, each of its terms fits float32.
_FITTING_SQUARES = float(np.finfo(np.float32).max) ** 2

# Limits on the parts of a request besides its rows: members of an object, elements of an array, depth. The parameters
# of an output are the deepest part.
_MAX_MEMBERS = 16
_MAX_ELEMENTS = 64
_MAX_DEPTH = 3

# simdjson and its proxies raise these for text that is not JSON, and for a value of another type or a missing member.
SIMDJSON_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, RecursionError)


class SlowBody(Exception):  # noqa: N818
    """Decoding this body takes long; a thread should do it."""


@dataclass(slots=True)
class DecodedRequest:
    """The rows of one request, the encoder of its answer, and its deadline.

    rows: float32 [rows, features]. encode: maps float32 [rows, outputs] to the answer. timeout: in seconds. unseen:
    counts of the values that training has not seen, by feature.
    """

    rows: Rows
    encode: Callable[[Outputs], Reply]
    timeout: float | None = None
    unseen: Mapping[str, int] | None = None


class Columns:
    """The input columns of one model. coded: the boolean and categorical ones, whose numbers are codes."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.names = tuple(feature.name for feature in features)
        self.width = len(features)
        self._nullable = np.array([feature.missing for feature in features])
        self.coded = tuple(
            CategoricalColumn(place, feature, feature.largest_code)
            for place, feature in enumerate(features)
            if feature.largest_code is not None
        )
        self._places = np.array([column.place for column in self.coded], np.intp)
        self._largest = np.array([column.largest for column in self.coded], np.float32)
        self._reserved = np.array([column.reserved for column in self.coded], np.float32)

    def from_simdjson(self, array: Any, nested: int) -> Rows | None:
        """Read an array of numbers, flat or of rows: float32 [rows, features], or None where the values need checks.

        nested: the `[` of the document that may belong to arrays inside this one; 0 for a flat array.

        `as_buffer` raises unless every leaf is a number, and flattens the array. So the shape is checked by counting.
        Each of the `len(array)` elements must be an array of `width` elements: else its `len` differs or raises. These
        arrays open one `[` each. If the document has no more, then no element of a row is an array, and the rows are
        [rows, features] of numbers. A `[` in a string raises the count, so the check fails and orjson reads the body.
        """
        exact = np.frombuffer(array.as_buffer(of_type="d"))
        if nested:
            if nested != len(array) or exact.size != nested * self.width or set(map(len, array)) != {self.width}:
                return None
        elif exact.size % self.width:
            return None
        # Unlike `dot`, `vdot` doesn't warn of an overflow.
        if not np.vdot(exact, exact) < _FITTING_SQUARES:
            return None
        rows = exact.reshape(-1, self.width).astype(np.float32)
        return None if self.coded and self._no_codes(rows).any() else rows

    def from_json_values(self, values: list[Any]) -> Rows:
        """Read the values of all rows, one row after the other, as float32 [rows, features].

        A boolean is true or false, a category its own string or number, a missing value None. Raises `InvalidInput`.
        """
        if len(values) == self.width:  # one row, the usual request: slices would be most of its cost
            for column in self.coded:
                values[column.place] = column.code(values[column.place])
        else:
            for column in self.coded:
                values[column.place :: self.width] = column.codes(values[column.place :: self.width])
        return self._from_json_numbers(values)

    def from_json_numbers(self, values: list[Any]) -> Rows:
        """Read the numbers of all rows, one row after the other, as float32 [rows, features].

        Booleans and categories are codes, a missing value is None. Raises `InvalidInput`.
        """
        rows = self._from_json_numbers(values)
        self._check_codes(rows)
        return rows

    def _from_json_numbers(self, values: list[Any]) -> Rows:
        types = set(map(type, values))
        if types <= NUMBERS:
            if len(values) <= _SMALL_COUNT:
                try:
                    packed = struct.pack(f"={len(values)}f", *values)  # "=" checks for overflow; rounds as NumPy
                    return np.ndarray((len(values) // self.width, self.width), np.float32, packed)
                except OverflowError:
                    pass  # refused below, with its place
        elif not types <= _NUMBERS_AND_NULL:
            known = np.array([type(value) in _NUMBERS_AND_NULL for value in values])
            self.refuse_at(~known.reshape(-1, self.width), "is not a number")
        # orjson reads an integer past 64 bits as a float. None becomes NaN, and JSON has no NaN of its own.
        exact = np.array(values, dtype=np.float64).reshape(-1, self.width)
        if type(None) in types:
            self.refuse_at(np.isnan(exact) & ~self._nullable, "is null, and the feature has no missing values")
        return self._float32(exact)

    def from_array(self, exact: npt.NDArray[Any]) -> Rows:
        """Read [rows, features] of any numeric dtype as float32.

        Booleans and categories are codes, a missing value is NaN. Raises `InvalidInput`.
        """
        rows = self._from_array(exact)
        self._check_codes(rows)
        return rows

    def unseen(self, rows: Rows) -> Mapping[str, int] | None:
        """Count the values that have the code of an unseen category, by feature. Returns None where there are none."""
        if not self.coded:
            return None
        unseen = rows.take(self._places, axis=1) == self._reserved
        if not unseen.any():
            return None
        counts = np.count_nonzero(unseen, axis=0).tolist()
        return {column.name: count for column, count in zip(self.coded, counts, strict=True) if count}

    def _from_array(self, exact: npt.NDArray[Any]) -> Rows:
        if exact.dtype == np.float32:
            rows = exact if exact.flags.aligned else exact.copy()
            if np.isfinite(rows).all():
                return rows
        self.refuse_at(np.isinf(exact), "is infinite")
        self.refuse_at(np.isnan(exact) & ~self._nullable, "is NaN, and the feature has no missing values")
        return self._float32(exact)

    def _no_codes(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Mark the values that are not codes, bool [rows, coded]. NaN is not marked."""
        codes = rows.take(self._places, axis=1)
        with np.errstate(invalid="ignore"):  # for a signalling NaN
            bad: npt.NDArray[np.bool_] = (codes < 0) | (codes > self._largest) | (abs(codes - np.rint(codes)) > 0)
        return bad

    def _check_codes(self, rows: Rows) -> None:
        if self.coded and (bad := self._no_codes(rows)).any():
            row, found = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {row}, column {self.coded[found].name!r} {self.coded[found].no_code}")

    def refuse_at(self, bad: npt.NDArray[np.bool_], reason: str) -> None:
        """Raise `InvalidInput` with the place of the first true value of bool [rows, features]."""
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {row}, column {self.names[column]!r} {reason}")

    def _float32(self, exact: npt.NDArray[Any]) -> Rows:
        with np.errstate(over="ignore", invalid="ignore"):  # invalid: for a signalling NaN
            rows = exact.astype(np.float32)
        self.refuse_at(np.isinf(rows), "is too large for float32")
        return rows


class _Parsers(threading.local):
    """One simdjson parser for each thread. A new parser is slow: it allocates many times the size of a body."""

    def __init__(self) -> None:
        self.reused = simdjson.Parser()


_PARSERS = _Parsers()
# A larger body gets a parser of its own, so that its memory is given back.
_MAX_REUSED_BODY = 2**20


def proxies(body: bytes) -> dict[str, Any]:
    """Parse an object with simdjson. Raises one of `SIMDJSON_ERRORS` for a body that `parse_json` must judge.

    It also raises for a byte order mark, which simdjson would skip, and while proxies of the document before exist.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise ValueError
    parser = _PARSERS.reused if len(body) <= _MAX_REUSED_BODY else simdjson.Parser()
    return members(parser.parse(body))


def members(proxy: Any) -> dict[str, Any]:
    """Return the members of one of simdjson's objects. Arrays and objects among them are proxies still.

    Raises `ValueError` for a repeated name: simdjson finds the first, and Python keeps the last. Raises it for many
    members too: simdjson searches them one after the other.
    """
    if not isinstance(proxy, simdjson.Object) or len(proxy) > _MAX_MEMBERS:
        raise ValueError
    names = list(proxy)
    if len(set(names)) != len(names):
        raise ValueError
    return {name: proxy[name] for name in names}


def small_value(value: Any, deepest: int = _MAX_DEPTH) -> Any:
    """Convert a proxy of a small array or object to a list or dict; a scalar is returned unchanged.

    Raises `ValueError` for an array or object that is long, or nested deeper than `deepest`.

    simdjson's own `as_list`, `as_dict`, `items` and slices must never see a request. They size a list by a count
    that stops at 2**24 - 1, and write past its end when the array is longer. Iteration and `as_buffer` do not use that
    count. A length below the limit is exact.
    """
    if isinstance(value, simdjson.Array):
        if len(value) > _MAX_ELEMENTS or not deepest:
            raise ValueError
        return [small_value(element, deepest - 1) for element in value]
    if isinstance(value, simdjson.Object):
        if not deepest:
            raise ValueError
        return {name: small_value(member, deepest - 1) for name, member in members(value).items()}
    return value


def count_byte(body: bytes | memoryview, byte: bytes) -> int:
    """Count a byte. NumPy compares many bytes at once; `bytes.count` finds one after the other."""
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord(byte)))


def has_more_brackets(body: bytes | memoryview, limit: int) -> bool:
    """Return whether a body, if it is large, opens more than `limit` arrays and objects.

    Ask before the body is parsed: a parser holds the interpreter for seconds to make millions of them.
    """
    return len(body) > SMALL_BODY and count_byte(body, b"[") + count_byte(body, b"{") > limit


def parse_json(body: bytes | memoryview) -> Any:
    """Parse JSON.

    Raises `InvalidInput`, also for NaN, infinities, numbers past a double, invalid UTF-8, lone surrogates and deep
    nesting.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Unchained: the error holds the whole document, and no log may write it.
        raise InvalidInput(f"the body is not valid JSON, at character {error.pos}") from None
