"""Parses the query of a prediction request, whose parameters change the form of the answer.

This module does not depend on rows or outputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from foldserve.service.errors import InvalidInput

NAMES = (b"named", b"top", b"warnings")
"""The names of the parameters."""

_FLAGS = {b"true": True, b"false": False}
_COUNT = re.compile(rb"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """The form of an answer.

    named: whether the probabilities of a row are an object with the names of the classes as keys. top: the answer
    contains this number of classes for each row, starting with the most probable class. If `top` is None, the answer
    has all classes, in the order of the labels. warnings: whether the answer lists the values that training has not
    seen.
    """

    named: bool = False
    top: int | None = None
    warnings: bool = False


def parse_query(query: bytes) -> AnswerOptions:
    """Read the query of a URL, without its question mark. If the query is empty, all options have their default values.

    Raises `InvalidInput` for an unknown, repeated or malformed parameter. The error text does not repeat the query.
    """
    given: dict[bytes, bytes] = {}
    for part in query.split(b"&") if query else ():
        name, _, value = part.partition(b"=")
        if name not in NAMES:
            raise InvalidInput("the URL has an unknown query parameter; the known ones are named, top and warnings")
        if name in given:
            raise InvalidInput(f"the query parameter {name.decode()} is given more than once")
        given[name] = value
    count = given.get(b"top")
    if count is not None and not _COUNT.fullmatch(count):
        raise InvalidInput("the query parameter top is not a whole number of at least 1")
    return AnswerOptions(
        named=_flag(given, b"named"), top=None if count is None else int(count), warnings=_flag(given, b"warnings")
    )


def _flag(given: dict[bytes, bytes], name: bytes) -> bool:
    value = _FLAGS.get(given.get(name, b"false"))
    if value is None:
        raise InvalidInput(f"the query parameter {name.decode()} is neither true nor false")
    return value
