"""`:explain` over HTTP: the fast path and FastAPI's route give the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from foldserve.service import bundle
from tests.service.mixed import GOLDEN, LABELS, NAMES, write_mixed
from tests.service.support import MARKER, Served, flip_byte, serving, write_square_root


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("explain")
    write_square_root(models)
    mixed = write_mixed(models)
    bundle.write(models, "changed", mixed.model, lambda _: mixed.manifest.model_copy(update={"name": "changed"}))
    for name in ("digits", "diabetes"):
        (models / name).symlink_to(trained / name)
    with serving(models, models / "log") as server:
        yield server


def post(served: Served, path: str, body: Any) -> httpx.Response:
    sent = {"content": json.dumps(body), "headers": {"Content-Type": "application/json", "Host": "test"}}
    fast = httpx.post(served.url + path, **sent)
    route = httpx.post(served.url + path.replace(":explain", "%3Aexplain"), **sent)
    assert (fast.status_code, fast.content) == (route.status_code, route.content)
    return fast


def assert_complete(answer: dict[str, Any]) -> None:
    """Check each explanation: the offset and all contributions add up to the output of the model."""
    assert answer["explanations"]
    for each in answer["explanations"]:
        parts = [each["offset"], *each["contributions"].values()]
        target = each.get("logit", each.get("value"))
        assert abs(sum(parts) - target) <= 1e-5 * max(map(abs, [*parts, target]))


def test_a_row_gets_the_contributions_of_its_predicted_class(served: Served, digits: Any) -> None:
    rows = [list(row) for row in digits.manifest.golden.inputs]
    answer = post(served, "/v1/models/digits:explain", {"instances": rows}).json()
    assert (answer["model"], answer["version"], answer["method"]) == ("digits", 1, "affine")
    predicted = served.send("POST", "/v1/models/digits:predict", body=json.dumps({"instances": rows}).encode()).json()[
        "predictions"
    ]
    assert [each["class"] for each in answer["explanations"]] == predicted
    assert [list(each["contributions"]) for each in answer["explanations"]] == [
        [feature.name for feature in digits.manifest.features]
    ] * len(rows)
    assert_complete(answer)


def test_a_class_is_chosen_by_its_name(served: Served) -> None:
    body = {"instances": [dict(zip(NAMES, row, strict=True)) for row in GOLDEN]}
    for label in LABELS:
        answer = post(served, f"/v1/models/mixed/versions/1:explain?class={label}", body).json()
        assert {each["class"] for each in answer["explanations"]} == {label}
        assert_complete(answer)


def test_a_regression_has_a_value_instead_of_a_class(served: Served, diabetes: Any) -> None:
    rows = [list(row) for row in diabetes.manifest.golden.inputs]
    answer = post(served, "/v1/models/diabetes:explain", {"instances": rows}).json()
    for each, expected in zip(answer["explanations"], diabetes.manifest.golden.outputs, strict=True):
        assert each.keys() == {"value", "offset", "contributions"}
        assert each["value"] == pytest.approx(expected[0], rel=1e-4)
    assert_complete(answer)


@pytest.mark.parametrize(
    ("path", "rows", "status", "text"),
    [
        ("mixed:explain?class=" + MARKER, 1, 400, "is not the name of a class"),
        ("mixed:explain?class=no&class=yes", 1, 400, "unknown query parameter"),
        ("mixed:explain?top=2", 1, 400, "unknown query parameter"),
        ("diabetes:explain?class=no", 1, 400, "needs a model with classes"),
        ("roots:explain", 1, 422, "no Gemm and no MatMul"),
        ("nothing:explain", 1, 404, "unknown model"),
        ("digits:explain", 15_626, 400, "at most 15625 can be explained"),
    ],
)
def test_a_request_that_can_not_be_explained_gets_the_reason(
    path: str, rows: int, status: int, text: str, served: Served
) -> None:
    width = {"roots": 2, "mixed": 7, "diabetes": 10}.get(path.partition(":")[0], 64)
    one: list[Any] = list(GOLDEN[0]) if path.startswith("mixed") else [1.0] * width
    answer = post(served, f"/v1/models/{path}", {"instances": [one] * rows})
    assert answer.status_code == status
    assert text in answer.json()["error"]
    assert MARKER not in answer.text


def test_a_model_whose_files_have_changed_is_not_explained_until_they_are_repaired(served: Served) -> None:
    file = served.log.parent / "changed" / "1" / bundle.MODEL_FILE
    body = {"instances": [list(GOLDEN[0])]}
    flip_byte(file, 500)
    answer = post(served, "/v1/models/changed:explain", body)
    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (503, "the model can't be explained now")
    assert served.send("POST", "/v1/models/changed:predict", body=json.dumps(body).encode()).status == 200
    flip_byte(file, 500)
    assert_complete(post(served, "/v1/models/changed:explain", body).json())


def test_explanations_have_their_own_protocol_in_the_metrics_and_no_part_in_the_statistics(served: Served) -> None:
    def count() -> tuple[float, int]:
        text = httpx.get(served.url + "/metrics").text
        start = 'foldserve_requests_total{model="mixed",protocol="explain",status="200",version="1"} '
        found = [float(line.removeprefix(start)) for line in text.splitlines() if line.startswith(start)]
        statistics = httpx.get(served.url + "/v2/models/mixed/stats").json()["model_stats"][0]
        return sum(found), statistics["inference_stats"]["success"]["count"]

    before = count()
    post(served, "/v1/models/mixed:explain", {"instances": [list(GOLDEN[0])]})
    assert count() == (before[0] + 2, before[1])


def test_an_explanation_past_float32_is_refused_without_a_warning(served: Served, digits: Any) -> None:
    """The values of a row have the signs of the weights of one class, so the logit of this class is too large for
    float32.
    """
    width, past = len(digits.manifest.features), 0
    unit = [[1e30 * (index == own) for index in range(width)] for own in range(width)]
    for label in digits.manifest.labels:
        path = f"/v1/models/digits:explain?class={label}"
        explained = post(served, path, {"instances": unit}).json()["explanations"]
        row = [3.4e38 if each["logit"] >= each["offset"] else -3.4e38 for each in explained]
        answer = post(served, path, {"instances": [row]})
        assert answer.status_code in (200, 422)
        past += answer.status_code == 422
    assert past > 0
    assert "Warning" not in served.log.read_text()
