"""The report compares a new version with the previous version, and shows the size and the speed of the model."""

import json
from dataclasses import replace

import numpy as np
import pytest

from foldserve.service import bundle
from foldserve.training.pipeline import run
from foldserve.training.plan import DataOptions, Plan, Recipe
from foldserve.training.report.latency import ROWS, Latency, measure_latency
from foldserve.training.report.previous import Previous, read_previous
from foldserve.training.report.report import render
from foldserve.training.report.sentences import summarise
from tests.training.report.support import Page, classification, regression


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three versions. The table of the third version is split with another seed."""
    folder = tmp_path_factory.mktemp("models")
    plan = Plan(DataOptions("iris"), "iris", folder, recipe=Recipe(epochs=2))
    for changed in (plan, replace(plan, recipe=Recipe(epochs=3)), replace(plan, seed=1)):
        run(changed)
    return folder / "iris"


def test_each_report_shows_the_metrics_of_the_version_before(models):
    pages = [Page(bundle.read_report(models / str(version))) for version in (1, 2, 3)]
    manifests = [bundle.read(models / str(version)).manifest for version in (1, 2, 3)]
    assert "There is no version before this one." in pages[0].text
    for before, page in zip(manifests, pages[1:], strict=False):
        rows = {row[0]: row[1:] for row in page.table("rows", "count")}
        shown = rows[f"test, version {before.version}"]
        assert shown[0] == str(before.provenance.rows["test"])
        assert [float(figure) for figure in shown[1:]] == pytest.approx(list(before.metrics["test"].values()), rel=1e-3)
    assert "measured on the same test rows" in pages[1].text
    assert "measured on its own test rows" in pages[2].text


def test_better_and_worse_follow_the_direction_of_each_metric():
    evidence = regression()
    before = evidence.manifest.model_copy(
        update={
            "version": 2,
            "metrics": {part: {"rmse": 100.0, "mae": 0.0, "r2": 0.99} for part in ("validation", "test")},
        }
    )
    line = summarise(replace(evidence, previous=Previous(2, before))).splitlines()[-1]
    assert "RMSE better by" in line
    assert "MAE worse by" in line
    assert "R2 worse by" in line


def test_a_metric_that_the_version_before_lacks_is_left_out():
    evidence = classification()
    before = evidence.manifest.model_copy(
        update={"metrics": {part: {"accuracy": 0.5} for part in ("validation", "test")}}
    )
    page = Page(render(replace(evidence, previous=Previous(2, before))))
    rows = {row[0]: row[2:] for row in page.table("rows", "count")}
    assert rows["test, version 2"] == ["0.5000", "\N{EN DASH}", "\N{EN DASH}"]
    assert "This version: accuracy better by" in page.text


def test_a_version_that_can_t_be_read_is_reported(models, tmp_path):
    damaged = tmp_path / "iris" / "4"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text(json.dumps({"schema_version": 1}))
    previous = read_previous(tmp_path / "iris", 5)
    assert (previous.version, previous.manifest) == (4, None)
    evidence = replace(classification(), previous=previous)
    assert "Version 4, the one before, can't be compared" in Page(render(evidence)).text
    assert "version 4, the one before, can't be compared" in summarise(evidence)
    assert read_previous(models, 1) is None
    assert read_previous(tmp_path / "none", 1) is None


def test_two_versions_with_test_files_may_have_other_rows(models):
    manifest = bundle.read(models / "1").manifest
    assert Previous(1, manifest).has_rows_of(manifest)
    settings = {**manifest.provenance.hyperparameters, "test": "held_out.csv"}
    provenance = manifest.provenance.model_copy(update={"hyperparameters": settings})
    with_file = manifest.model_copy(update={"provenance": provenance})
    assert not Previous(1, with_file).has_rows_of(with_file)


def test_latency_is_measured_for_1_and_1024_rows():
    batches = []

    def predict(rows):
        batches.append(rows.shape)
        return rows

    measured = measure_latency(predict, np.zeros((3, 5), np.float32))
    assert [latency.rows for latency in measured] == list(ROWS) == [1, 1024]
    assert set(batches) == {(1, 5), (1024, 5)}
    assert all(latency.seconds > 0 and 1 <= latency.runs <= 200 for latency in measured)


def test_size_and_latency_are_on_the_page_and_not_in_the_manifest(models):
    evidence = replace(classification(), latency=(Latency(1, 12.3e-6, 200), Latency(1024, 2.048e-3, 9)))
    facts = {row[0]: row[1] for rows in Page(render(evidence)).tables for row in rows if len(row) == 2}
    assert facts["model.onnx"] == "36,485 bytes"
    assert facts["1 row"] == "12.3 µs"
    assert facts["1,024 rows"] == "2.05 ms, 2.00 µs a row"
    assert "latency" not in (models / "1" / "manifest.json").read_text()
    assert "1,024 rows" in bundle.read_report(models / "1")


def test_a_binary_report_has_curves_with_the_threshold_and_the_lift():
    evidence = classification(classes=2, rows=300)
    page = Page(render(evidence))
    positive = evidence.outputs[:, 1] >= 0.5
    recall = positive[evidence.y == 1].mean()
    assert f"this finds {recall:.1%} of the rows of class 1 (recall)" in page.text
    lifts = {row[0]: row[1:] for row in page.table("rows with the highest probability")}
    first = np.argsort(-evidence.outputs[:, 1], kind="stable")[: round(0.5 * len(evidence.y))]
    assert lifts["first 50%"][0] == f"{(evidence.y[first] == 1).sum() / (evidence.y == 1).sum():.1%}"
    assert page.text.count("at the threshold") == 3
    labels = [svg["aria-label"] for svg in page.named("svg")]
    assert any(label.startswith("ROC curve.") for label in labels)


def test_a_report_with_test_rows_of_one_class_has_no_curves():
    evidence = classification(classes=2)
    of_one = evidence.y == 0
    evidence = replace(evidence, y=evidence.y[of_one], outputs=evidence.outputs[of_one])
    assert "ROC" not in Page(render(evidence)).text


def test_many_classes_get_the_curves_of_the_classes_with_the_lowest_auc():
    page = Page(render(classification(classes=6)))
    assert "of the 3 classes with the lowest AUC" in page.text
    assert "at the threshold" not in page.text
