"""Checked rows: whatever a protocol carries becomes float32 [rows, features], or is refused by row and column.

A large JSON body goes through simdjson, straight into an array and never through Python's own numbers. Only what needs
no second look takes that way: all else is parsed again, in Python, which knows how to say what is wrong and where. A
small body is in Python's numbers sooner than simdjson and NumPy are ready.
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

from foldserve.service.bundle import Feature
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import NUMBERS, CategoricalColumn
from foldserve.service.protocols.reply import Reply

Rows = npt.NDArray[np.float32]

_NUMBERS_AND_NULL = NUMBERS | {type(None)}

# Bytes of a JSON body, and numbers, that are small in the sense of above; measured.
SMALL_BODY = 4096
_SMALL_COUNT = 512

# Below it, a sum of squares has no term that is too large for float32.
_SURE_TO_FIT = float(np.finfo(np.float32).max) ** 2

# More members than that has no object of a usual request; more elements, no array besides the rows; and nothing besides
# the rows is nested deeper than the parameters of an output.
_MANY = 16
_LONG = 64
_DEEP = 3

# What simdjson and its proxies raise for what is not JSON, not an array, not there, or not a number.
SIMDJSON_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, RecursionError)


class SlowBody(Exception):  # noqa: N818
    """There is no quick way with this body."""


@dataclass(slots=True)
class DecodedRequest:
    """One request, understood: float32 [rows, features], how to write the answer, and the client's deadline.

    unseen: how many values training has not seen, by the names of their features.
    """

    rows: Rows
    encode: Callable[[Rows], Reply]
    timeout: float | None = None  # seconds
    unseen: Mapping[str, int] | None = None


class Columns:
    """The input columns of one model.

    coded: those of them that hold codes, which cost what they cost only where there are any.
    """

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
        """Read an array of numbers, flat or of rows, in a document that has `nested` times `[` besides it.

        Takes whole rows of the model's width, no number that is too large, and no code that is none; None stands for
        anything else.
        """
        exact = np.frombuffer(array.as_buffer(of_type="d"))  # raises unless every leaf is a number
        # It is flattened: what was nested deeper, or unevenly, shows in the lengths and in the number of brackets.
        if nested:
            if nested != len(array) or exact.size != nested * self.width or set(map(len, array)) != {self.width}:
                return None
        elif exact.size % self.width:
            return None
        # Unlike `dot`, `vdot` doesn't warn of an overflow.
        if not np.vdot(exact, exact) < _SURE_TO_FIT:
            return None
        rows = exact.reshape(-1, self.width).astype(np.float32)
        return None if self.coded and self._no_codes(rows).any() else rows

    def from_json_values(self, values: list[Any]) -> Rows:
        """Read JSON's own values, row after row: numbers, true and false, categories; null is a missing value.

        Raises `InvalidInput`.
        """
        if len(values) == self.width:  # the usual request: lists of one would be most of its cost
            for column in self.coded:
                values[column.place] = column.code(values[column.place])
        else:
            for column in self.coded:
                values[column.place :: self.width] = column.codes(values[column.place :: self.width])
        return self._from_json_numbers(values)

    def from_json_numbers(self, values: list[Any]) -> Rows:
        """Read JSON's numbers, row after row, codes among them; null is a missing value. Raises `InvalidInput`."""
        rows = self._from_json_numbers(values)
        self._check_codes(rows)
        return rows

    def _from_json_numbers(self, values: list[Any]) -> Rows:
        types = set(map(type, values))
        if types <= NUMBERS:
            if len(values) <= _SMALL_COUNT:
                try:
                    packed = struct.pack(f"={len(values)}f", *values)  # "=" looks for overflow; rounds as NumPy
                    return np.ndarray((len(values) // self.width, self.width), np.float32, packed)
                except OverflowError:
                    pass  # told below, with its place
        elif not types <= _NUMBERS_AND_NULL:
            known = np.array([type(value) in _NUMBERS_AND_NULL for value in values])
            self.refuse_at(~known.reshape(-1, self.width), "is not a number")
        # An integer past 64 bits came as a float. None becomes NaN, which JSON has no other way to say.
        exact = np.array(values, dtype=np.float64).reshape(-1, self.width)
        if type(None) in types:
            self.refuse_at(np.isnan(exact) & ~self._nullable, "is null, and the feature has no missing values")
        return self._float32(exact)

    def from_array(self, exact: npt.NDArray[Any]) -> Rows:
        """Read [rows, features] of any numeric type, codes among them; NaN is a missing value.

        Raises `InvalidInput`.
        """
        rows = self._from_array(exact)
        self._check_codes(rows)
        return rows

    def unseen(self, rows: Rows) -> Mapping[str, int] | None:
        """Count the values that went to a reserved bucket, by the names of their features; None where none did."""
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
        """Find what is no code once it is rounded, [rows, coded]; whether one may be missing is another question."""
        codes = rows.take(self._places, axis=1)
        with np.errstate(invalid="ignore"):  # a NaN that signals
            bad: npt.NDArray[np.bool_] = (codes < 0) | (codes > self._largest) | (abs(codes - np.rint(codes)) > 0)
        return bad

    def _check_codes(self, rows: Rows) -> None:
        if self.coded and (bad := self._no_codes(rows)).any():
            row, found = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {row}, column {self.coded[found].name!r} {self.coded[found].no_code}")

    def refuse_at(self, bad: npt.NDArray[np.bool_], reason: str) -> None:
        """Raise `InvalidInput` for the first entry of [rows, features] that is bad."""
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {row}, column {self.names[column]!r} {reason}")

    def _float32(self, exact: npt.NDArray[Any]) -> Rows:
        with np.errstate(over="ignore", invalid="ignore"):  # invalid is a NaN that signals
            rows = exact.astype(np.float32)
        self.refuse_at(np.isinf(rows), "is too large for float32")
        return rows


class _Parsers(threading.local):
    """A simdjson parser for each thread: its memory, many times that of the body, is fresh and slow the first time."""

    def __init__(self) -> None:
        self.kept = simdjson.Parser()


_PARSERS = _Parsers()
_KEPT_BODY = 2**20


def proxies(body: bytes) -> dict[str, Any]:
    """Parse an object by simdjson. Raises one of `SIMDJSON_ERRORS` where `document` is to judge.

    That is also where simdjson is the more lenient: it skips a byte order mark. One document at a time: the last one's
    proxies must be gone, or it raises.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise ValueError
    parser = _PARSERS.kept if len(body) <= _KEPT_BODY else simdjson.Parser()
    return members(parser.parse(body))


def members(proxy: Any) -> dict[str, Any]:
    """Give the members of one of simdjson's objects, arrays and objects as proxies still, which its `items` are not.

    Raises `ValueError` when a name comes twice: simdjson finds the first, where Python keeps the last. And when there
    are many: to find one, simdjson goes through all.
    """
    if not isinstance(proxy, simdjson.Object) or len(proxy) > _MANY:
        raise ValueError
    names = list(proxy)
    if len(set(names)) != len(names):
        raise ValueError
    return {name: proxy[name] for name in names}


def small_value(value: Any, deepest: int = _DEEP) -> Any:
    """Convert a proxy of a small array or object to a list or dict; a scalar is returned unchanged.

    Raises `ValueError` for an array or object that is long, or nested deeper than `deepest`.

    simdjson's own `as_list`, `as_dict`, `items` and slices must never see a request. They size a list by a count
    that stops at 2**24 - 1, and write past its end when the array is longer. Iteration and `as_buffer` do not use that
    count. A length below the limit is exact.
    """
    if isinstance(value, simdjson.Array):
        if len(value) > _LONG or not deepest:
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


def has_more_brackets(body: bytes | memoryview, most: int) -> bool:
    """Tell whether a body opens more arrays and objects than `most`: millions would hold the interpreter for seconds.

    To be asked before anything is parsed. A small body is none.
    """
    return len(body) > SMALL_BODY and count_byte(body, b"[") + count_byte(body, b"{") > most


def document(body: bytes | memoryview) -> Any:
    """Parse JSON. Raises `InvalidInput` for NaN, infinities, numbers past a double, invalid UTF-8, lone surrogates and
    deep nesting too."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The error holds the whole document: unchained, so that no log ever writes it out.
        raise InvalidInput(f"the body is not valid JSON, at character {error.pos}") from None
