"""Tests how headers give the encoding of a body and the preferences of a client."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from foldserve.service.errors import InvalidInput, MemoryFull, RequestError, TooLarge, UnsupportedMedia
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.content import inflated, preferred

MAX_BODY = 2**26
STEP = 2**18
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=1),
    "deflate": partial(zlib.compress, level=1),
}
encodings = pytest.mark.parametrize("encoding", list(ENCODE))


def noise(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


def inflate(encoding: str, body: bytes, *, max_body: int = MAX_BODY, memory: int = MAX_BODY) -> bytes:
    return bytes(inflated({b"content-encoding": encoding.encode()}, body, max_body, BodyMemory(memory)))


def refused(error: type[RequestError], encoding: str, body: bytes, **limits: int) -> str:
    with pytest.raises(error) as found:
        inflate(encoding, body, **limits)
    return str(found.value)


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 2 * STEP, 3 * STEP + 7])
@pytest.mark.parametrize("letters", [1, 2, 256])
@encodings
def test_a_body_of_any_size_and_ratio_is_inflated(encoding: str, size: int, letters: int) -> None:
    body = np.random.default_rng(size).integers(0, letters, size, np.uint8).tobytes()
    assert inflate(encoding, ENCODE[encoding](body)) == body


def test_a_body_that_is_not_encoded_is_returned_as_it_is() -> None:
    for headers in ({}, {b"content-encoding": b"identity"}):
        assert inflated(headers, b"rows", MAX_BODY, BodyMemory(1)) == b"rows"


def test_a_body_that_is_encoded_more_than_twice_is_refused_unread() -> None:
    body = gzip.compress(gzip.compress(b"rows"))
    assert inflate("gzip, gzip", body) == b"rows"
    refused(UnsupportedMedia, "gzip, gzip, gzip", body)


@pytest.mark.parametrize("size", [100, 5 * STEP])
@encodings
def test_a_body_that_is_not_in_its_encoding_is_refused(encoding: str, size: int) -> None:
    whole = ENCODE[encoding](noise(size))
    for body in (b"", whole[:-1], whole[: size // 2], whole + b"x", whole + whole, b"x" * size, whole + bytes(STEP)):
        assert refused(InvalidInput, encoding, body) == "the body is not in its Content-Encoding"


@encodings
def test_a_body_that_inflates_past_its_limit_is_refused(encoding: str) -> None:
    body = ENCODE[encoding](noise(10**6))
    assert len(inflate(encoding, body, max_body=10**6)) == 10**6
    text = refused(TooLarge, encoding, body, max_body=10**6 - 1)
    assert text == "the body is larger than 999999 bytes once it is decompressed"


def test_a_body_that_inflates_many_times_is_refused_unless_it_is_small() -> None:
    assert len(inflate("gzip", gzip.compress(bytes(2**23)))) == 2**23
    for encoding, body in (
        ("gzip", gzip.compress(bytes(2**23 + 1))),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(2**23 + 1)))),
        ("deflate, gzip", gzip.compress(zlib.compress(bytes(2**25)))),
    ):
        text = refused(TooLarge, encoding, body)
        assert text == "the decompressed body is more than 200 times larger; send it uncompressed"
    dense = noise(2**17) + bytes(2**24)
    assert inflate("gzip", gzip.compress(dense)) == dense


def test_a_body_that_inflates_counts_against_the_memory() -> None:
    body = gzip.compress(noise(10**6))
    assert len(inflate("gzip", body, memory=10**6)) == 10**6
    refused(MemoryFull, "gzip", body, memory=10**6 - 1)


@pytest.mark.parametrize(
    ("header", "liked"),
    [(b"b;q=0.1, a", b"a"), (b"a;q=0.5, b;q=0.5", b"a"), (b"b;q=0", None), (b"c", None), (b"", None), (b"B", b"b")],
)
def test_the_weight_and_then_the_order_decides_the_preferred_entry(header: bytes, liked: bytes | None) -> None:
    assert preferred({b"accept": header}, b"accept", (b"a", b"b")) == liked
