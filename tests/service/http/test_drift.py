"""Tests drift and labels over HTTP: two workers, whose counts are added, and a server with keys."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sklearn import metrics

from foldserve.service.access.keys import Scope, create_key
from tests.service.mixed import LABELS, write_mixed
from tests.service.support import MARKER, Answer, Served, edit_manifest, serving, write_square_root

DRIFT, FEEDBACK = "/v1/models/mixed/drift", "/v1/models/mixed/feedback"
ROWS = [[5, "Paris", True, 1.5, 1, None, "many"], [6, "Oslo", False, None, 2.5, True, 0]]
COUNTS = {"edges": [0.0, 4.0, 8.0], "counts": [0, 1000]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two workers with `mixed`, whose feature `age` has training rows, and `roots`, a regression."""
    folder = tmp_path_factory.mktemp("drift")
    (folder / "models").mkdir()

    def describe(manifest: dict[str, Any]) -> None:
        manifest["features"][0] |= {"range": [0.0, 8.0], "histogram": COUNTS}
        manifest["features"][1]["histogram"]["counts"] = [0] * 6

    edit_manifest(write_mixed(folder / "models").path, describe)
    write_square_root(folder / "models")
    with serving(folder / "models", folder / "log", "--workers", 2, "--feedback-rows", 1000) as server:
        yield server
    assert "Traceback" not in (folder / "log").read_text()


def predict(server: Served, model: str, rows: list[Any], name: str = "") -> dict[str, Any]:
    headers = (f"X-Request-Id: {name}",) if name else ()
    answer = server.send("POST", f"/v1/models/{model}:predict", *headers, body=json.dumps({"instances": rows}).encode())
    assert answer.status == 200
    return answer.json()


def label(server: Served, model: str, *entries: tuple[str, list[Any]]) -> Answer:
    body = {"feedback": [{"request_id": name, "labels": labels} for name, labels in entries]}
    return server.send("POST", f"/v1/models/{model}/feedback", body=json.dumps(body).encode())


def drift(server: Served, model: str = "mixed") -> dict[str, Any]:
    answer = server.send("GET", f"/v1/models/{model}/drift")
    assert answer.status == 200
    return answer.json()


def test_the_rows_of_both_workers_are_compared_with_the_training_rows(served: Served) -> None:
    before = drift(served)
    assert before["state"] == "too few rows"
    assert any("at least 100" in note for note in before["notes"])
    for _ in range(60):  # each request has its own connection, so both workers get requests
        predict(served, "mixed", ROWS)
    found = drift(served)
    assert found["rows"] - before["rows"] == found["counted"] - before["counted"] == 120
    assert not found["sampled"]
    by_name = {feature["name"]: feature for feature in found["features"]}
    assert by_name["age"]["state"] == "stable"
    assert by_name["age"]["live"] == [0, found["rows"]]
    assert by_name["income"]["missing"] == by_name["town"]["unseen"] == 0.5
    assert by_name["town"]["state"] == "no training histogram"
    assert any("imported without a table" in note for note in found["notes"])
    predictions = predict(served, "mixed", ROWS)["predictions"]
    shares = {each["label"]: each["share"] for each in found["predictions"]["labels"]}
    assert shares == pytest.approx({name: predictions.count(name) / 2 for name in LABELS})
    assert 1 / len(LABELS) <= found["predictions"]["confidence"] <= 1

    for _ in range(60):  # the ages are now in the lower half of their range
        predict(served, "mixed", [[1, *row[1:]] for row in ROWS])
    found = drift(served)
    assert found["state"] == "drift"
    assert {f["name"]: f["state"] for f in found["features"]}["age"] == "drift"
    families = text_string_to_metric_families(served.send("GET", "/metrics").body.decode())
    values = {s.name: s.value for f in families for s in f.samples if s.labels.get("feature") == "age"}
    assert values["foldserve_drift_psi"] == by_name_psi(found, "age")


def by_name_psi(found: dict[str, Any], name: str) -> float:
    return next(feature["psi"] for feature in found["features"] if feature["name"] == name)


def test_labels_reach_the_worker_that_has_predicted_and_give_the_measures_of_scikit_learn(served: Served) -> None:
    rows = [[age, town, True, None, 1, None, 0] for age in range(10) for town in ("Paris", "", "l'eau")]
    truth = [LABELS[place % 3] for place in range(len(rows))]
    answers = [predict(served, "mixed", rows[i : i + 3], f"request-{i}") for i in range(0, len(rows), 3)]
    entries = [(f"request-{i}", truth[i : i + 3]) for i in range(0, len(rows), 3)]
    first = label(served, "mixed", ("request-0", [truth[0], None, None]), ("never", ["no"]), ("request-3", ["no"]))
    assert first.json() == {
        "accepted": 1,
        "unknown": {"count": 1, "indices": [1]},
        "mismatched": {"count": 1, "indices": [2]},
        "repeated": {"count": 0, "indices": []},
    }
    rest = label(served, "mixed", *entries).json()
    assert rest["accepted"] == len(rows) - 1
    assert rest["repeated"] == {"count": 1, "indices": [0]}
    quality = drift(served)["quality"]
    assert (quality["labels"], quality["state"]) == (len(rows), "too few labels")
    predicted = [each for answer in answers for each in answer["predictions"]]
    probabilities = np.array([each for answer in answers for each in answer["probabilities"]], np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    accuracy = metrics.accuracy_score(truth, predicted)
    order = sorted(LABELS)
    loss = metrics.log_loss(truth, probabilities[:, [LABELS.index(name) for name in order]], labels=order)
    assert quality["live"] == pytest.approx({"accuracy": accuracy, "log_loss": loss})
    low, high = quality["accuracy_interval"]
    assert low < accuracy < high


def test_labels_of_a_regression_give_its_errors_and_old_predictions_are_forgotten(served: Served) -> None:
    predict(served, "roots", [[4, 0], [9, 0]], "old")
    assert label(served, "roots", ("old", [1, 3.5])).json()["accepted"] == 2
    assert drift(served, "roots")["quality"]["live"] == pytest.approx({"rmse": (1.25 / 2) ** 0.5, "mae": 0.75})
    statistics = drift(served, "roots")["predictions"]
    assert (statistics["mean"], statistics["deviation"]) == pytest.approx((2.5, 0.5))
    predict(served, "roots", [[4, 0]] * 1001, "large")  # more rows than the server remembers
    assert label(served, "roots", ("old", [2, 3]), ("large", [2] * 1001)).json()["repeated"]["indices"] == [0]
    for number in itertools.count():  # wait until the worker has forgotten the old prediction
        predict(served, "roots", [[4, 0]] * 500, f"new-{number}")
        answer = label(served, "roots", ("old", [2, 3]), ("large", [2] * 1001), (f"new-{number}", [2] * 500)).json()
        if answer["unknown"]["count"] == 2:
            break
    assert answer["unknown"]["indices"] == [0, 1]
    assert answer["accepted"] == 500


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[]", 'the body is not an object with an array "feedback" that has an entry'),
        (b'{"feedback": []}', 'the body is not an object with an array "feedback" that has an entry'),
        (b'{"feedback": [1]}', 'entry 0 is not an object with "request_id" and "labels"'),
        (b'{"feedback": [{"request_id": "a b", "labels": ["no"]}]}', "entry 0: .* X-Request-Id may have"),
        (b'{"feedback": [{"request_id": "a", "labels": []}]}', "entry 0: .* label for each row"),
        (b'{"feedback": [{"request_id": "a", "labels": ["no", "%b"]}]}' % MARKER.encode(), "entry 0, row 1: the label"),
        (b'{"feedback": [{"request_id": "a", "labels": [[1]]}]}', "entry 0, row 0: the label"),
        (
            json.dumps({"feedback": [{"request_id": "a", "labels": ["no"] * 5000}] * 3}).encode(),
            "the request has more than 10000 labels; send them in several requests",
        ),
    ],
)
def test_a_wrong_label_is_refused_without_its_text(body: bytes, error: str, served: Served) -> None:
    answer = served.send("POST", FEEDBACK, body=body)
    assert answer.status == 400
    assert re.match(error, answer.json()["error"])
    assert MARKER.encode() not in answer.body


def test_a_browser_gets_a_page_that_loads_nothing_and_runs_nothing(served: Served) -> None:
    answer = served.send("GET", DRIFT, "Accept: text/html,*/*")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(answer.body.decode())
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in tags)
    assert not any({"style", "src", "href", "onload", "onclick"} & attributes.keys() for _, attributes in tags)
    assert sum(tag == "svg" for tag, _ in tags) == 7


def test_an_unknown_model_and_a_reset_without_keys_are_refused(served: Served) -> None:
    assert served.send("GET", "/v1/models/other/drift").status == 404
    assert served.send("GET", "/v1/models/mixed/versions/9/drift").status == 404
    assert served.send("POST", "/v1/models/other/feedback", body=b"{}").status == 404
    assert served.send("DELETE", DRIFT).status == 403
    described = served.send("GET", "/openapi.json").json()["paths"]
    content = described["/v1/models/{model}/feedback"]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"]["feedback"][0]["labels"] == [3]


def test_keys_need_their_scopes_and_an_operator_begins_the_window_again(tmp_path: Path) -> None:
    keys = {scope: create_key(scope.value, [scope], None) for scope in (Scope.PREDICT, Scope.METRICS, Scope.ADMIN)}
    (tmp_path / "keys").write_text("\n".join(line for _, line in keys.values()))
    (tmp_path / "models").mkdir()
    write_square_root(tmp_path / "models")
    flags = ("--keys", tmp_path / "keys", "--access-log")
    with serving(tmp_path / "models", tmp_path / "log", *flags) as server:

        def ask(scope: Scope, method: str, path: str, body: bytes = b"") -> Answer:
            return server.send(method, f"/v1/models/roots{path}", f"X-API-Key: {keys[scope][0]}", body=body)

        # The server gives each prediction an id, because it writes an access log.
        answers = [ask(Scope.PREDICT, "POST", ":predict", b'{"instances": [[4, 0]]}') for _ in range(150)]
        made = [{"request_id": answer.headers["x-request-id"], "labels": [3]} for answer in answers]
        labelled = json.dumps({"feedback": made}).encode()
        allowed = {
            ("GET", "/drift", Scope.METRICS): 200,
            ("POST", "/feedback", Scope.PREDICT): 200,
            ("DELETE", "/drift", Scope.ADMIN): 204,
        }
        for (method, path, needed), code in allowed.items():
            for scope in keys:
                assert ask(scope, method, path, labelled).status == (code if scope is needed else 403)
            if method == "POST":
                assert ask(Scope.METRICS, "GET", "/drift").json()["quality"]["labels"] == 150
        after = ask(Scope.METRICS, "GET", "/drift").json()
        assert (after["rows"], after["quality"]["labels"]) == (0, 0)
        unload = server.send("POST", "/v2/repository/models/roots/unload", f"X-API-Key: {keys[Scope.ADMIN][0]}")
        assert unload.status == 200
        assert ask(Scope.PREDICT, "POST", "/feedback", labelled).status == 503


def test_a_server_without_drift_and_labels_says_so(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_square_root(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log", "--no-drift", "--feedback-rows", 0) as server:
        predict(server, "roots", [[4, 0]], "one")
        found = drift(server, "roots")
        assert (found["state"], found["rows"], found["quality"]["state"]) == ("off", 0, "off")
        assert any("--no-drift" in note for note in found["notes"])
        assert label(server, "roots", ("one", [2])).json()["unknown"]["count"] == 1
        assert b"foldserve_drift_rows{" not in server.send("GET", "/metrics").body
