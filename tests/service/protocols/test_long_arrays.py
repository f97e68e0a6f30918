"""Arrays longer than simdjson can count, in every place of a request: the server answers and continues."""

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
# simdjson's count of an array's elements is a field of 24 bits. `as_list` allocates that many places, and then fills
# one for each element: 4 million more write 32 MB past the list.
LONG = b"[" + b"0," * (2**24 + 2**22) + b"0]"
PLACE = "the long array"

TENSOR = {"name": "input", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}

# The place of the long array, and the status of the answer.
PLACES: dict[str, tuple[dict[str, Any], int]] = {
    "shape": ({"inputs": [{**TENSOR, "shape": PLACE}]}, 400),
    "a tensor's parameters": ({"inputs": [{**TENSOR, "parameters": {"a": PLACE}}]}, 200),
    "an unknown member of a tensor": ({"inputs": [{**TENSOR, "unknown": {"a": [PLACE]}}]}, 200),
    "inputs": ({"inputs": PLACE}, 400),
    "data": ({"inputs": [{**TENSOR, "data": PLACE}]}, 400),
    "id": ({"id": PLACE, "inputs": [TENSOR]}, 400),
    "parameters": ({"parameters": {"a": PLACE}, "inputs": [TENSOR]}, 200),
    "outputs": ({"outputs": PLACE, "inputs": [TENSOR]}, 400),
    "an output's parameters": (
        {"outputs": [{"name": "probabilities", "parameters": {"a": PLACE}}], "inputs": [TENSOR]},
        200,
    ),
    "an unknown member": ({"unknown": PLACE, "inputs": [TENSOR]}, 200),
}


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("long")
    models = folder / "models"
    shutil.copytree(trained / "digits", models / "digits")
    with serving(models, folder / "log", "--device", "cpu", "--timeout", 60) as server:
        yield server


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("request_body", "status"), PLACES.values(), ids=PLACES)
def test_an_array_longer_than_simdjson_counts_does_not_end_the_server(
    request_body: dict[str, Any], status: int, compressed: bool, served: Served
) -> None:
    body = json.dumps(request_body).encode().replace(json.dumps(PLACE).encode(), LONG)
    headers = ("Content-Encoding: gzip",) if compressed else ()
    answer = served.send("POST", INFER, *headers, body=gzip.compress(body, 1) if compressed else body)
    assert answer.status == status
    assert served.send("POST", INFER, body=json.dumps({"inputs": [TENSOR]}).encode()).status == 200
    assert served.process.poll() is None


def test_an_array_longer_than_simdjson_counts_is_refused_by_the_friendly_protocol(served: Served) -> None:
    for body in (b'{"instances": %b}' % LONG, b'{"unknown": %b, "instances": [[0]]}' % LONG):
        assert served.send("POST", "/predict", body=body).status == 400
    assert served.process.poll() is None
