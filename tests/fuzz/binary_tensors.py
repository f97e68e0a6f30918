"""Fuzz the codec of the Open Inference Protocol with atheris. The codec returns rows, or raises a `RequestError`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["foldserve"]):
    from foldserve.service.errors import RequestError
    from foldserve.service.protocols.oip import OipCodec
    from tests.service.support import manifest

MAX_ROWS = 64
CODEC = OipCodec(manifest(features=("a", "b"), missing=["b"]), MAX_ROWS)


def test_one(data: bytes) -> None:
    """Decode a body.

    The first two bytes of the input are the length of the JSON. If the length is 0, the request does not have the
    header Inference-Header-Content-Length.
    """
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    headers = {b"inference-header-content-length": b"%d" % length} if length else {}
    try:
        rows = CODEC.decode(headers, body).rows
    except RequestError:
        return
    if rows.dtype != "float32" or rows.shape[1:] != (2,) or not 1 <= len(rows) <= MAX_ROWS:
        raise RuntimeError(f"{rows.dtype} {rows.shape}")


atheris.Setup(sys.argv, test_one)
atheris.Fuzz()
