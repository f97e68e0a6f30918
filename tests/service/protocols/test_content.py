"""The encodings of a body and the preferences of a client, read from headers."""

from __future__ import annotations

import gzip

import pytest

from foldserve.service.errors import UnsupportedMedia
from foldserve.service.protocols.content import inflated, preferred

CAP = 1000


def test_a_body_that_is_encoded_more_than_twice_is_refused_unread() -> None:
    body = gzip.compress(gzip.compress(b"rows"))
    assert inflated({b"content-encoding": b"gzip, gzip"}, body, CAP) == b"rows"
    with pytest.raises(UnsupportedMedia):
        inflated({b"content-encoding": b"gzip, gzip, gzip"}, body, CAP)


@pytest.mark.parametrize(
    ("header", "liked"),
    [(b"b;q=0.1, a", b"a"), (b"a;q=0.5, b;q=0.5", b"a"), (b"b;q=0", None), (b"c", None), (b"", None), (b"B", b"b")],
)
def test_what_a_client_likes_best_is_by_weight_and_then_by_order(header: bytes, liked: bytes | None) -> None:
    assert preferred({b"accept": header}, b"accept", (b"a", b"b")) == liked
