"""Tests queries and left-out columns over HTTP: the fast path and FastAPI's route give the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from foldserve.service import bundle
from tests.service.mixed import GOLDEN, LABELS, NAMES, graph, mixed_manifest
from tests.service.support import Answer, Served, serving, write_square_root

PATH = "/v1/models/mixed:predict"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the model `mixed`.

    The feature `age` is constant. The training of the model left out the columns `id` and `when`.
    """
    folder = tmp_path_factory.mktemp("query")
    models = folder / "models"
    models.mkdir()
    write_square_root(models)

    def made(version: int) -> bundle.Manifest:
        content = mixed_manifest(model).model_dump()
        content["features"][0]["range"] = (0.5, 0.5)
        content |= {"version": version, "left_out": ("id", "when"), "target": {"name": "decision"}}
        return bundle.Manifest.model_validate(content)

    model = graph()
    bundle.write(models, "mixed", model, made)
    with serving(models, folder / "log") as server:
        yield server


def both_ways(served: Served, query: str, body: Any, path: str = PATH) -> Answer:
    one, other = (
        served.send("POST", spelling + query, "Content-Type: application/json", body=json.dumps(body).encode())
        for spelling in (path, path.replace(":", "%3A").replace("infer", "inf%65r"))
    )
    assert (one.status, one.body, one.headers.keys()) == (other.status, other.body, other.headers.keys())
    return one


def named(row: tuple[Any, ...], **changes: Any) -> dict[str, Any]:
    return {**dict(zip(NAMES, row, strict=True)), **changes}


def test_the_forms_of_an_answer_combine(served: Served) -> None:
    body = {"instances": [list(GOLDEN[0]), list(GOLDEN[1])]}
    plain = both_ways(served, "", body).json()
    assert both_ways(served, "?", body).json() == plain
    every = both_ways(served, "?warnings=true&top=2&named=true", body).json()
    assert every["predictions"] == plain["predictions"]
    for row, probabilities in zip(every["probabilities"], plain["probabilities"], strict=True):
        ranked = sorted(zip(LABELS, probabilities, strict=True), key=lambda pair: -pair[1])
        assert list(row.items()) == ranked[:2]
    assert [(entry["row"], entry["column"]) for entry in every["warnings"]] == [
        *((0, column) for column in ("town", "income", "size")),
        (1, "age"),
    ]


@pytest.mark.parametrize("query", ["?top=0", "?x=1", "?named=yes", "?top=1&top=2", "?named=true&warnings"])
def test_a_wrong_query_is_refused_and_counted(query: str, served: Served) -> None:
    def refused() -> float:
        lines = served.send("GET", "/metrics").body.decode().splitlines()
        start = 'foldserve_rejected_total{reason="invalid_input"} '
        return sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))

    before = refused()
    answer = both_ways(served, query, {"instances": [list(GOLDEN[0])]})
    assert answer.status == 400
    assert "query parameter" in answer.json()["error"]
    assert refused() == before + 2


def test_the_open_inference_protocol_refuses_these_parameters(served: Served) -> None:
    tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 3]}
    answer = both_ways(served, "?top=1", {"inputs": [tensor]}, "/v2/models/roots/infer")
    assert (answer.status, answer.json()) == (
        400,
        {"error": "named, top and warnings are query parameters of /v1/models/...:predict only"},
    )


def test_columns_that_training_left_out_are_ignored_and_constants_may_be_missing(served: Served) -> None:
    row = named(GOLDEN[0])
    whole = both_ways(served, "", {"instances": [row, row]})
    assert whole.status == 200
    sent = named(GOLDEN[0], id="x" * 999, when=None, decision=["anything"])
    del sent["age"]
    assert both_ways(served, "", {"instances": [sent, row]}).body == whole.body
    warnings = both_ways(served, "?warnings=true", {"instances": [sent, row]}).json()["warnings"]
    assert {(entry["column"], entry["warning"]) for entry in warnings if "row" not in entry} == {
        *((name, "ignored: training left this column out") for name in ("id", "when", "decision")),
        ("age", "left out: its only training value is used"),
    }


def test_ignored_filled_and_unusual_values_are_counted(served: Served) -> None:
    def counts() -> dict[tuple[str, str], float]:
        lines = served.send("GET", "/metrics").body.decode().splitlines()
        names = ("out_of_range", "ignored_values", "filled_constants")
        return {
            (name, line.split('"')[1]): float(line.split()[-1])
            for line in lines
            for name in names
            if line.startswith(f"foldserve_{name}_total") and 'model="mixed"' in line
        }

    before = counts()
    assert before["out_of_range", "income"] >= 0  # the series exists before its first value
    sent = named(GOLDEN[0], id=1, income=7)
    del sent["age"]
    for body in ({"instances": [sent] * 3}, {"instances": [sent] * 100}):
        assert both_ways(served, "", body).status == 200
    after = counts()
    assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)} == {
        ("out_of_range", "income"): 206,
        ("ignored_values", "id"): 206,
        ("filled_constants", "age"): 206,
    }


def test_an_unknown_member_is_named(served: Served) -> None:
    body = {"instances": [named(GOLDEN[0], Town="Rome", id=1)]}
    answer = both_ways(served, "?top=1", body)
    assert (answer.status, answer.json()["error"]) == (400, "row 0 has an unknown member, 'Town'")
    del body["instances"][0]["town"]
    error = both_ways(served, "", body).json()["error"]
    assert error == "row 0 lacks the feature 'town', and has an unknown member, 'Town'"


# --- the list of models, and the documentation -----------------------------------------------------------------------


def test_all_models_are_listed_with_their_versions_and_states(served: Served) -> None:
    listed = served.send("GET", "/v1/models").json()
    assert listed["default"] is None
    assert [model["name"] for model in listed["models"]] == ["mixed", "roots"]
    assert listed["models"] == [served.send("GET", f"/v1/models/{name}").json() for name in ("mixed", "roots")]
    assert [[version["state"] for version in model["versions"]] for model in listed["models"]] == [["ready"], ["ready"]]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/{model}:predict",
        "/v1/models/{model}/versions/{version}:predict",
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/infer",
    ],
)
def test_the_documentation_has_a_working_example_for_each_model(path: str, served: Served) -> None:
    operation = served.send("GET", "/openapi.json").json()["paths"][path]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert list(examples) == ["mixed", "roots"]
    (choices,) = [p["schema"]["enum"] for p in operation["parameters"] if p["name"] == "model"]
    assert choices == list(examples)
    for model, example in examples.items():
        body = json.dumps(example["value"]).encode()
        assert served.send("POST", path.format(model=model, version=1), body=body).status == 200
    if "v1" in path:
        assert list(examples["mixed"]["value"]["instances"][0]) == list(NAMES)
        assert {"named", "top", "warnings"} <= {parameter["name"] for parameter in operation["parameters"]}


def test_without_a_default_model_the_path_predict_has_no_example(served: Served) -> None:
    content = served.send("GET", "/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "example" not in content["application/json"]
    assert served.send("POST", "/predict", body=b'{"instances": [[1, 3]]}').status == 404
