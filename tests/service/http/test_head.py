"""The reader finds the same heads and bodies, no matter how the bytes are divided into packets. The tests use no
socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, strategies

from foldserve.service import errors
from foldserve.service.http.body import BodyReader
from foldserve.service.http.head import HeadReader, Heads
from foldserve.service.protocols.body import BodyMemory

LIMIT = 2**16

tokens = strategies.text("abcdefgXYZ-09", min_size=1, max_size=8).map(str.encode)
values = strategies.binary(max_size=20).map(lambda value: bytes(32 + byte % 90 for byte in value).strip())
# Blank lines within a body must not end it.
contents = strategies.lists(strategies.sampled_from([b"\r\n", b"\r\n\r\n", b"0", b"GET / HTTP/1.1", b"x"])).map(
    b"".join
)


@strategies.composite
def requests(draw: strategies.DrawFn) -> tuple[bytes, bytes]:
    """Draw a request; return its bytes and its body."""
    method = draw(strategies.sampled_from([b"POST", b"PUT", b"GET"]))
    headers = [
        b"Host: test",
        *(b"X-%s: %s" % header for header in draw(strategies.lists(strategies.tuples(tokens, values)))),
    ]
    content, framed = draw(contents), b""
    framing = draw(strategies.sampled_from(["none", "counted", "chunked"]))
    if framing == "none":
        content = b""
    elif framing == "counted":
        headers.append(b"Content-Length: %d" % len(content))
        framed = content
    else:
        headers.append(b"Transfer-Encoding: chunked")
        size = draw(strategies.integers(1, 10))
        chunks = [content[start : start + size] for start in range(0, len(content), size)]
        trailers = draw(strategies.sampled_from([b"", b"A: b\r\n"]))
        framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n%s\r\n" % trailers
    empty_lines = draw(strategies.sampled_from([b"", b"\r\n", b"\r\n\r\n"]))
    head = b"\r\n".join([b"%s /%s HTTP/1.1" % (method, draw(tokens)), *headers])
    return b"%s%s\r\n\r\n%s" % (empty_lines, head, framed), content


def read(packets: Sequence[bytes], heads: Heads) -> list[tuple[bytes, bytes]]:
    """For each request, return the bytes of the whole request, and the bytes of its body."""
    reader, body, raw = HeadReader(heads), None, b""
    found = []
    for packet in packets:
        offset = 0
        while offset < len(packet):
            if body is None:
                head, offset = reader.read(packet, offset)
                if head is None:
                    continue
                raw, body = head.raw, BodyReader(head, LIMIT, LIMIT, BodyMemory(LIMIT))
            else:
                start, offset = offset, body.read(packet, offset)
                raw += packet[start:offset]
            if body.complete:
                found.append((raw, body.take()))
                body = None
    return found


@given(
    sent=strategies.lists(requests(), min_size=1, max_size=4),
    cuts=strategies.lists(strategies.floats(0, 1), max_size=12),
)
def test_requests_are_read_alike_however_they_are_cut_into_packets(
    sent: Sequence[tuple[bytes, bytes]], cuts: Sequence[float]
) -> None:
    stream = b"".join(raw for raw, _ in sent)
    places = [0, *sorted(int(cut * len(stream)) for cut in cuts), len(stream)]
    heads = Heads(LIMIT)
    for packets in ([stream], [stream[start:end] for start, end in pairwise(places)]):
        # In the second round, some heads come from the cache.
        assert read(packets, heads) == sent


@given(sent=requests())
def test_a_request_may_arrive_byte_by_byte(sent: tuple[bytes, bytes]) -> None:
    assert read([sent[0][place : place + 1] for place in range(len(sent[0]))], Heads(LIMIT)) == [sent]


def test_a_known_head_is_not_parsed_again() -> None:
    heads, raw = Heads(LIMIT), b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    first, _ = HeadReader(heads).read(raw, 0)
    again, _ = HeadReader(heads).read(raw, 0)
    assert again is first


def test_different_heads_do_not_fill_the_memory() -> None:
    heads = Heads(LIMIT)
    for number in range(10_000):
        assert heads[b"GET /%d HTTP/1.1\r\nHost: test\r\n\r\n" % number] is not None
    assert len(heads) <= 256
    long = b"GET / HTTP/1.1\r\nHost: test\r\nX: %s\r\n\r\n" % (b"x" * 10_000)
    assert heads[long] is not None
    assert long not in heads


def test_an_invalid_head_is_refused_each_time() -> None:
    heads = Heads(LIMIT)
    for _ in range(2):
        with pytest.raises(errors.InvalidHttp):
            heads[b"GET / HTTP/1.1\r\n\r\n"]


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
def test_the_offer_to_change_the_protocol_is_left_out(name: bytes) -> None:
    offer = (
        b"POST / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\n%s: h2c\r\nX-Upgrade: 1\r\nContent-Length: 4\r\n\r\n"
        % name
    )
    head, end = HeadReader(Heads(LIMIT)).read(offer + b"body", 0)
    assert head is not None
    assert (head.raw, head.content_length) == (offer.replace(b"%s: h2c\r\n" % name, b""), 4)
    assert end == len(offer)
