"""Parses JSON text. Cuts one long array out of a document, and parses the array in pieces.

A JSON parser blocks the interpreter until the whole document is parsed, and creates an object for each value. This
module therefore parses a large body in steps that each need little memory and time. First, a scan finds the elements of
the long array. Second, the document is parsed without the elements of the long array. Third, the elements of the long
array are parsed, one piece at a time.

This module does not depend on rows or protocols.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import orjson

from foldserve.service.errors import InvalidInput

# A text of at most this size, in bytes, is parsed in one step. Measurements show that cutting a text of this size takes
# longer than parsing it.
SMALL = 2**12
# The size of a piece in bytes. Parsing a larger piece is not faster, and blocks the interpreter for more than 1 or 2
# ms.
PIECE_BYTES = 2**16
# The largest number of bytes before the elements of the long array in a document, and also the largest number after
# them.
MAX_AROUND = 2**16
# The largest number of bytes of one element, unless a codec sets another limit.
MAX_ELEMENT_BYTES = 2**20

_NOT_SPACE = re.compile(rb"[^ \t\n\r]")
# A JSON string, or a punctuation character of JSON. The quantifiers of this pattern are possessive, so that no text can
# cause backtracking.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}:,]', re.DOTALL)
# This mark replaces the elements of the long array while the rest of the document is parsed. The mark is random, so
# that a client can't guess it.
_MARK = secrets.token_hex(16)
_MARK_TEXT = orjson.dumps(_MARK)

_QUOTE, _COMMA, _BACKSLASH = b'",\\'
_R, _F = b"rf"
# The number that each kind of bracket adds to the nesting depth.
_STEPS = dict(zip(b"[{]}", (1, 1, -1, -1), strict=True))


class Piece(NamedTuple):
    """`body[start:end]` is one or more whole elements of the array, with the commas between them.

    elements: the number of elements that are arrays or objects; if there are none, the number of all elements.
    brackets: the number of brackets and braces outside strings.
    """

    start: int
    end: int
    elements: int
    brackets: int


@dataclass(frozen=True, slots=True)
class CutDocument:
    """A document whose long array was cut out.

    around: the parsed document, with a mark in place of the array; `is_cut` recognises the mark. elements: the total
    number of elements in all pieces.
    """

    around: Any
    pieces: list[Piece]
    elements: int


def is_cut(value: Any) -> bool:
    """Return whether `value`, a part of `CutDocument.around`, is the mark in place of the array."""
    return bool(value == [_MARK])


def parse_json(text: bytes | bytearray | memoryview) -> Any:
    """Parse JSON. Raises `InvalidInput` for invalid JSON.

    Invalid JSON includes NaN, infinities, numbers too large for a double, invalid UTF-8, lone surrogates and deep
    nesting.
    """
    try:
        # orjson refuses subclasses of bytearray.
        return orjson.loads(text if type(text) is bytes else memoryview(text))
    except orjson.JSONDecodeError as error:
        # The error is raised without its cause, because the cause holds the whole document, which must not be logged.
        raise _invalid_at(error.pos) from None


def has_booleans(text: bytes | bytearray) -> bool:
    """Return whether `true` or `false` occurs in the text.

    The function first searches for the letters r and f, because a search for one letter is fast, and most requests
    contain neither letter.
    """
    return (_R in text and b"true" in text) or (_F in text and b"false" in text)


def parse_piece(body: bytes | bytearray, piece: Piece) -> list[Any]:
    """Parse the elements of a piece. A piece has at least one element. Raises `InvalidInput` for invalid JSON."""
    try:
        elements: list[Any] = orjson.loads(in_brackets(body, piece))
    except orjson.JSONDecodeError as error:
        raise _invalid_at(_characters(body, 0, piece.start) + error.pos - 1) from None
    if not elements:
        raise _invalid_at(_characters(body, 0, piece.end))
    return elements


def in_brackets(body: bytes | bytearray, piece: Piece) -> bytes:
    """Return the text of a piece with `[` before it and `]` after it."""
    return b"".join((b"[", memoryview(body)[piece.start : piece.end], b"]"))


def count_commas(body: bytes | bytearray, piece: Piece) -> int:
    """Count the commas of a piece that are not inside a string."""
    text = np.frombuffer(body, np.uint8, piece.end - piece.start, piece.start)
    return int(_commas(text, _quotes(text)).size)


@dataclass(frozen=True, slots=True)
class LongArray:
    """Describes the array that `cut` cuts out of a document.

    path: the names and indices on the way to the array, for example ("inputs", 0, "data"). max_elements: the largest
    number of elements. noun: the word that error messages use for elements. max_bytes: the largest number of bytes of
    one element. piece_bytes: the size of a piece in bytes; a piece is larger only if a single element is larger.
    """

    path: tuple[str | int, ...]
    noun: str
    max_elements: int
    max_bytes: int = MAX_ELEMENT_BYTES
    piece_bytes: int = PIECE_BYTES


def cut(body: bytes | bytearray, array: LongArray) -> CutDocument:
    """Cut an array out of a document.

    This function does not parse the pieces. The body is valid JSON if `is_cut` finds the array and `parse_piece`
    accepts every piece. If the body is valid JSON, the pieces hold the elements of the array that `is_cut` has found. A
    mark in `around` proves that JSON allows an array at the place of the mark. Inside an array, JSON allows any
    elements, separated by commas.

    Raises `InvalidInput` if a long array is not closed, has too many elements, or has an element that is too large.
    Also raises `InvalidInput` if the document around the array is too large or is not JSON.
    """
    end = _without_space(body)
    name = array.path[-1]
    start = _find(body, array.path, min(end, MAX_AROUND))
    if start is None:
        if end > MAX_AROUND:
            raise InvalidInput(f'the JSON has no array "{name}" in its first {MAX_AROUND} bytes')
        return CutDocument(parse_json(memoryview(body)[:end]), [], 0)
    pieces: list[Piece] = []
    elements, place = 0, start
    while True:
        piece, after = _next_piece(body, place, end, array)
        if piece is None:
            raise InvalidInput(f'"{name}" has an element of more than {array.max_bytes} bytes, at index {elements}')
        if piece.elements:
            pieces.append(piece)
            elements += piece.elements
            if elements > array.max_elements:
                raise InvalidInput(f'"{name}" has more {array.noun} than the {array.max_elements} that are allowed')
        elif pieces:
            raise _invalid_at(_characters(body, 0, piece.end))  # the array ends with a comma
        if body[after] != _COMMA:
            return CutDocument(_parse_around(body, start, after, end), pieces, elements)
        place = after + 1


def _parse_around(body: bytes | bytearray, start: int, stop: int, end: int) -> Any:
    """Parse the document, with a mark instead of the elements in `body[start:stop]`."""
    if end - stop > MAX_AROUND:
        raise InvalidInput(f"the JSON has more than {MAX_AROUND} bytes after its rows")
    try:
        return orjson.loads(b"".join((body[:start], _MARK_TEXT, body[stop:end])))
    except orjson.JSONDecodeError as error:
        before = _characters(body, 0, start)
        moved = _characters(body, start, stop) - len(_MARK_TEXT) if error.pos > before else 0
        raise _invalid_at(error.pos + moved) from None


def _find(body: bytes | bytearray, path: tuple[str | int, ...], end: int) -> int | None:
    """Return the offset after the `[` of the array at `path`; None if the array is not found.

    The text may be invalid JSON.
    """
    here: list[str | int] = []  # the path of the next value: a name or an index for each level
    name_follows = False
    for token in _TOKEN.finditer(body, 0, end):
        text = token[0]
        if text == b"[" or text == b"{":
            if text == b"[" and here == list(path):
                return token.end()
            here.append(0 if text == b"[" else "")
            name_follows = text == b"{"
        elif text == b"]" or text == b"}":
            if here:
                here.pop()
            name_follows = False
        elif text == b",":
            if here and isinstance(here[-1], int):
                here[-1] += 1
            else:
                name_follows = True
        elif name_follows and here and text != b":":
            here[-1] = _name(text)
            name_follows = False
    return None


def _name(text: bytes) -> str:
    try:
        name: str = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    return name


# --- the elements of an array ----------------------------------------------------------------------------------------


def _next_piece(body: bytes | bytearray, start: int, end: int, array: LongArray) -> tuple[Piece | None, int]:
    """Return the piece that begins at `start`, and the offset of the `,` or `]` that follows the piece.

    Returns None instead of the piece if the first element is too large. Raises `InvalidInput` if the array is not
    closed.
    """
    size = array.piece_bytes
    while True:
        stop = min(start + size, end)
        found = _scan(body, start, stop)
        if found is not None:
            piece, after = found
            following = _NOT_SPACE.search(body, after, min(after + array.max_bytes, end))
            if following is not None:
                if following[0] in b",]":
                    return piece, following.start()
                _refuse_at(body, following.start())
        if stop == end:
            _refuse_at(body, end)
        if size >= array.max_bytes:
            return None, stop
        size = min(2 * size, array.max_bytes)


def _scan(body: bytes | bytearray, start: int, stop: int) -> tuple[Piece, int] | None:
    """Find the last element that ends in `body[start:stop]`. The first element begins at `start`.

    Returns the piece that ends with this element, and the offset from which to search for the next `,` or `]`. Returns
    None if no element ends in `body[start:stop]`.
    """
    text = np.frombuffer(body, np.uint8, stop - start, start)
    quotes = _quotes(text) if body.find(b'"', start, stop) >= 0 else None
    # The bytes of the four brackets are 0x5B, 0x5D, 0x7B and 0x7D. The mask 0xD9 finds these four bytes and four
    # others: Y, _, y and DEL.
    places = np.flatnonzero((text & 0xD9) == 0x59)
    if quotes is not None:
        places = places[~_inside(quotes, places)]
    depth = brackets = elements = after = piece_brackets = 0
    for place, byte in zip(places.tolist(), text[places].tolist(), strict=True):
        step = _STEPS.get(byte)
        if step is None:
            continue
        depth += step
        brackets += 1
        if depth == 0:
            elements, after, piece_brackets = elements + 1, place + 1, brackets
        elif depth < 0:  # this byte is the `]` that closes the array
            if not elements and _NOT_SPACE.search(body, start, start + place):
                elements = 1 + _commas(text[:place], quotes).size
            return Piece(start, start + place, elements, piece_brackets), start + place
    if elements:
        return Piece(start, start + after, elements, piece_brackets), start + after
    commas = _commas(text, quotes)
    if brackets or not commas.size:  # the first element does not end in this range
        return None
    after = start + int(commas[-1])
    return Piece(start, after, commas.size, 0), after


def _quotes(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Return the places of the quotes that begin or end a string."""
    quotes = np.flatnonzero(text == _QUOTE)
    if (text == _BACKSLASH).any():
        # A quote after an odd number of backslashes is escaped, so it does not end the string.
        indices = np.arange(text.size)
        last_other = np.maximum.accumulate(np.where(text == _BACKSLASH, -1, indices))
        quotes = quotes[(quotes - 1 - np.where(quotes > 0, last_other[quotes - 1], -1)) % 2 == 0]
    return quotes


def _inside(quotes: npt.NDArray[np.intp], places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return a bool array that is True for each place inside a string.

    A place is inside a string if an odd number of quotes comes before the place.
    """
    inside: npt.NDArray[np.bool_] = np.searchsorted(quotes, places) % 2 == 1
    return inside


def _commas(text: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp]:
    """Return the indices of all commas that are not inside a string."""
    commas = np.flatnonzero(text == _COMMA)
    return commas if quotes is None else commas[~_inside(quotes, commas)]


def _without_space(body: bytes | bytearray) -> int:
    """Return the length of the body, without the white space at its end."""
    end = len(body)
    while end:
        start = max(0, end - PIECE_BYTES)
        if text := body[start:end].rstrip(b" \t\n\r"):
            return start + len(text)
        end = start
    return 0


# --- messages --------------------------------------------------------------------------------------------------------


def _refuse_at(body: bytes | bytearray, place: int) -> NoReturn:
    raise _invalid_at(_characters(body, 0, place))


def _invalid_at(character: int) -> InvalidInput:
    return InvalidInput(f"the body is not valid JSON, at character {character}")


def _characters(body: bytes | bytearray, start: int, stop: int) -> int:
    """Count the characters in the UTF-8 text `body[start:stop]`: all bytes except the continuation bytes."""
    blocks = range(start, stop, PIECE_BYTES)
    view = np.frombuffer(body, np.uint8)
    return sum(int(np.count_nonzero((view[block : min(block + PIECE_BYTES, stop)] & 0xC0) != 0x80)) for block in blocks)
