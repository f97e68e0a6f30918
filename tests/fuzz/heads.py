"""Fuzz the reader of heads with atheris: packets of any size give the same heads, or the same refusal."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["foldserve"]):
    from foldserve.service.errors import RequestError
    from foldserve.service.http.head import HeadReader, Heads


def read(data: bytes, size: int) -> list[object]:
    """Read heads without bodies from packets of `size` bytes. Return the content of each head, or the refusal."""
    reader, found = HeadReader(Heads(4096)), []
    try:
        for start in range(0, len(data), size):
            packet, place = data[start : start + size], 0
            while place < len(packet):
                head, place = reader.read(packet, place)
                if head is not None:
                    found.append((head.method, head.url, dict(head.headers), head.content_length, head.keep_alive))
    except RequestError as error:
        found.append(type(error))
    return found


def test_one(data: bytes) -> None:
    """Read all bytes as one packet, then as several packets. Both ways of reading must give the same result. The first
    byte is the size of a packet.
    """
    size, data = data[0] + 1 if data else 1, data[1:]
    whole, cut = read(data, max(1, len(data))), read(data, size)
    if whole != cut:
        raise RuntimeError(f"{whole} in one packet, {cut} in packets of {size}")


atheris.Setup(sys.argv, test_one)
atheris.Fuzz()
