"""Tests arrays that are longer than simdjson can count, in every place of a request. The server refuses requests with
these long arrays, and still answers other requests.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.support import Served, serving

INFER = "/v2/models/digits/infer"
# simdjson counts an array's elements in a field of 24 bits. `as_list` allocates a list of the counted length, then
# writes every element. If an array has 4 million more elements than 24 bits can count, `as_list` writes 32 MB past the
# end of its list.
LONG = b"[" + b"0," * (2**24 + 2**22) + b"0]"
PLACE = "the long array"

TENSOR = {"name": "input", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}

# Bodies in which PLACE marks where the long array is inserted.
PLACES: dict[str, dict[str, Any]] = {
    "shape": {"inputs": [{**TENSOR, "shape": PLACE}]},
    "a tensor's parameters": {"inputs": [{**TENSOR, "parameters": {"a": PLACE}}]},
    "an unknown member of a tensor": {"inputs": [{**TENSOR, "unknown": {"a": [PLACE]}}]},
    "inputs": {"inputs": PLACE},
    "data": {"inputs": [{**TENSOR, "data": PLACE}]},
    "id": {"id": PLACE, "inputs": [TENSOR]},
    "parameters": {"parameters": {"a": PLACE}, "inputs": [TENSOR]},
    "outputs": {"outputs": PLACE, "inputs": [TENSOR]},
    "an output's parameters": {
        "outputs": [{"name": "probabilities", "parameters": {"a": PLACE}}],
        "inputs": [TENSOR],
    },
    "an unknown member": {"unknown": PLACE, "inputs": [TENSOR]},
}


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("long")
    models = folder / "models"
    shutil.copytree(trained / "digits", models / "digits")
    with serving(models, folder / "log", "--device", "cpu", "--timeout", 60) as server:
        yield server


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("request_body", PLACES.values(), ids=PLACES)
def test_an_array_longer_than_simdjson_counts_does_not_end_the_server(
    request_body: dict[str, Any], compressed: bool, served: Served
) -> None:
    body = json.dumps(request_body).encode().replace(json.dumps(PLACE).encode(), LONG)
    headers = ("Content-Encoding: gzip",) if compressed else ()
    answer = served.send("POST", INFER, *headers, body=gzip.compress(body, 1) if compressed else body)
    # The server refuses a compressed body before parsing, because the decompressed body is far larger than the sent
    # bytes.
    assert answer.status == (413 if compressed else 400)
    assert served.send("POST", INFER, body=json.dumps({"inputs": [TENSOR]}).encode()).status == 200
    assert served.process.poll() is None


def test_an_array_longer_than_simdjson_counts_is_refused_by_the_friendly_protocol(served: Served) -> None:
    for body in (b'{"instances": %b}' % LONG, b'{"unknown": %b, "instances": [[0]]}' % LONG):
        assert served.send("POST", "/predict", body=body).status == 400
    assert served.process.poll() is None
