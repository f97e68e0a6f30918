"""An imported bundle behaves like any other: answers, explanations, metrics, page, verify, inspect, score, swap."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from foldserve.training.cli import main
from tests.service.http.test_workers import until
from tests.service.support import Served, foldserve, serving

KERAS = Path(__file__).parents[1] / "training" / "imports" / "keras_files" / "article_3.keras"
LABELS = ("low", "middle", "high")


def post(server: Served, action: str, rows: object) -> dict[str, object]:
    answer = server.send("POST", f"/v1/models/article:{action}", body=json.dumps({"instances": rows}).encode())
    assert answer.status == 200, answer
    return dict(answer.json())


def test_nothing_downstream_knows_the_difference(tmp_path: Path) -> None:
    """Import a model without a table, serve the model, send requests, and score a table.

    Import the model again, this time with the table. The second version has metrics and a report, and replaces the
    first version.
    """
    models, saved = tmp_path / "models", np.load(f"{KERAS}.npz")
    rows, expected = saved["rows"].astype(float).tolist(), saved["outputs"]
    labels = [LABELS[i] for i in expected.argmax(1)]
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([[*"abcdef", "y"], *([*row, y] for row, y in zip(rows, labels, strict=True))])
    train = ["import", str(KERAS), "--name", "article", "--models", str(models), "--labels", ",".join(LABELS)]
    assert main([*train, "--features", "a,b,c,d,e,f", "--ranges=-9:9"]) == 0
    with serving(models, tmp_path / "log", "--rescan", 0.1) as server:
        answer = post(server, "predict", rows)
        assert answer["predictions"] == labels
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4, atol=1e-5)
        explained = post(server, "explain", rows[:2])["explanations"]
        assert isinstance(explained, list)
        assert [each["class"] for each in explained] == labels[:2]
        assert list(explained[0]["contributions"]) == [*"abcdef"]
        post(server, "predict", [[99.0, 0, 0, 0, 0, 0]])
        metrics = server.send("GET", "/metrics").body.decode()
        assert 'foldserve_out_of_range_total{feature="a",model="article",version="1"} 1.0' in metrics
        described = server.send("GET", "/v1/models/article").json()
        assert described["versions"][0]["version"] == 1
        assert main([*train, "--data", str(table), "--target", "y"]) == 0
        until(lambda: post(server, "predict", rows[:1])["version"] == 2)
    report = (models / "article" / "2" / "report.html").read_text()
    assert "article_3.keras" in report
    assert "Learning curves" not in report
    assert "of the rows of rows.csv" in report
    assert "of the training rows" not in report
    for version in (1, 2):
        folder = models / "article" / str(version)
        assert foldserve("verify", folder).returncode == 0
        assert "article_3.keras, written by Keras" in foldserve("inspect", folder).stdout
    scored = foldserve("score", models / "article" / "2", table, "-o", tmp_path / "out.csv")
    assert scored.returncode == 0, scored.stderr
    with (tmp_path / "out.csv").open() as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == labels
