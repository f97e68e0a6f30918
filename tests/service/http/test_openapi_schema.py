"""The OpenAPI document of a server with one model describes exactly the rows of that model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from tests.service.support import Served, serving, write_square_root

PAST = float(2**128 - 2**103)  # this number rounds to infinity in float32


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "models").mkdir()
    write_square_root(folder / "models")
    with serving(folder / "models", folder / "log") as server:
        yield server


@pytest.mark.parametrize(
    ("instances", "valid"),
    [
        ([[1, 3]], True),
        ([{"b": 1, "a": 3.5}], True),
        ([[3.4028235e38, 0]], True),
        ([[PAST, 0]], False),
        ([], False),
        ([[]], False),
        ([[1]], False),
        ([[1, 2, 3]], False),
        ([[1, None]], False),
        ([[1, "2"]], False),
        ([[1, True]], False),
        ([{"a": 1}], False),
        ([{"a": 1, "b": 2, "c": 3}], False),
        ([[1, 2], {"a": 1, "b": 2}], False),
    ],
)
def test_the_schema_accepts_what_the_server_accepts(instances: Any, valid: bool, served: Served) -> None:
    document = served.send("GET", "/openapi.json").json()
    schema = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body = {"instances": instances}
    assert Draft202012Validator(schema).is_valid(body) is valid
    assert served.send("POST", "/predict", body=orjson.dumps(body)).status == (200 if valid else 400)
