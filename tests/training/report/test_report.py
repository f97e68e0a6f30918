"""Tests the contents of the report page. Every figure is compared with scikit-learn's or with plain arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
)

from foldserve.training.report.evaluate import Importances
from foldserve.training.report.evidence import Evidence
from foldserve.training.report.report import (
    MAX_CLASSES,
    MAX_MATRIX_CLASSES,
    MAX_PAIRS,
    render,
)
from tests.training.report.support import HOSTILE, Page, classification, history, manifest, regression


def test_metrics_are_shown_beside_the_best_constant_answer():
    evidence = classification()
    rows = {row[0]: row[2:] for row in Page(render(evidence)).table("rows", "count")}
    shares = np.bincount(evidence.y) / len(evidence.y)
    entropy = log_loss(evidence.y, np.tile(shares, (len(evidence.y), 1)), labels=range(4))
    assert rows["test"] == [f"{value:.4f}" for value in evidence.manifest.metrics["test"].values()]
    assert rows["test, baseline"] == [f"{shares.max():.4f}", f"{entropy:.3f}", "0.5000"]


def test_a_regression_is_shown_beside_the_mean():
    evidence = regression()
    page = Page(render(evidence))
    rows = {row[0]: row[2:] for row in page.table("rows", "count")}
    distance = abs(evidence.y - evidence.y.mean()).mean()
    assert rows["test, baseline"] == [f"{evidence.y.std():.2f}", f"{distance:.2f}", "0"]
    assert rows["test"][1] == f"{mean_absolute_error(evidence.y, evidence.outputs):.3f}"
    assert rows["test"][2] == f"{r2_score(evidence.y, evidence.outputs):.4f}"
    assert f"50% below {np.median(evidence.outputs[:, 0] - evidence.y):.4g}" in page.text
    # The page has charts of scores, losses, predictions and residuals, and one histogram per feature.
    assert len(page.named("svg")) == 4 + 2


def test_class_scores_are_scikit_learn_s():
    evidence = classification()
    predicted = evidence.outputs.argmax(1)
    rows = Page(render(evidence)).table("class")
    scores = [
        np.bincount(evidence.y),
        np.bincount(predicted, minlength=4),
        *(score(evidence.y, predicted, average=None) for score in (precision_score, recall_score, f1_score)),
    ]
    for i, row in enumerate(rows[:-1]):
        assert row[:6] == [f"class {i}", *(str(s[i]) for s in scores[:2]), *(f"{s[i]:.4f}" for s in scores[2:])]
    majority = np.bincount(evidence.y).max() / len(evidence.y)
    assert sorted(row[6] for row in rows[:-1])[-1] == f"{2 * majority / (1 + majority):.4f}"
    assert rows[-1][5] == f"{f1_score(evidence.y, predicted, average='macro'):.4f}"


def test_the_confusion_matrix_is_scikit_learn_s():
    evidence = classification()
    expected = confusion_matrix(evidence.y, evidence.outputs.argmax(1))
    rows = Page(render(evidence)).table("true", "class 0")
    cells = [[cell.split() for cell in row[1:]] for row in rows]
    assert [[int(cell[0]) for cell in row] for row in cells] == expected.tolist()
    shares = expected / expected.sum(1, keepdims=True)
    assert [row[place][1] for place, row in enumerate(cells)] == [f"{share:.1%}" for share in shares.diagonal()]


def test_many_classes_get_the_most_frequent_confusions_and_the_worst_classes():
    evidence = classification(classes=MAX_MATRIX_CLASSES + 30, rows=3000)
    page = Page(render(evidence))
    assert not any(row[:2] == ["true", "class 0"] for rows in page.tables for row in rows[:1])
    pairs = page.table("true", "predicted")
    wrong = confusion_matrix(evidence.y, evidence.outputs.argmax(1))
    np.fill_diagonal(wrong, 0)
    assert [int(row[2]) for row in pairs] == np.sort(wrong, axis=None)[::-1][:MAX_PAIRS].tolist()
    assert wrong[int(pairs[0][0].split()[1]), int(pairs[0][1].split()[1])] == wrong.max()
    classes = page.table("class")
    assert len(classes) == MAX_CLASSES + 1
    worst = np.sort(f1_score(evidence.y, evidence.outputs.argmax(1), average=None))[:MAX_CLASSES]
    assert [row[5] for row in classes[:-1]] == [f"{value:.4f}" for value in worst]
    assert f"The {MAX_CLASSES} of 60 classes with the lowest F1" in page.text


def test_features_are_sorted_by_importance_and_described_by_the_manifest():
    evidence = classification(features=5)
    kinds = [
        {"kind": "categorical", "categories": ("NA", HOSTILE, "c"), "range": None},
        {"missing": True, "missing_share": 0.125},
        {"range": (3.0, 3.0)},
        {"kind": "boolean", "categories": (False, True), "range": None},
        {"range": (-0.25, 1e9)},
    ]
    features = [f.model_copy(update=kind) for f, kind in zip(evidence.manifest.features, kinds, strict=True)]
    evidence = replace(evidence, manifest=evidence.manifest.model_copy(update={"features": tuple(features)}))
    page = Page(render(evidence))
    rows = page.table("feature")
    order = np.argsort(-evidence.importances.mean)
    assert [row[0] for row in rows] == [f"column {i}" for i in order]
    assert rows[0][6] == f"{evidence.importances.mean.max():.3f} ± 0.010"
    by_name = {row[0]: row[1:4] for row in rows}
    assert by_name["column 0"] == ["categorical", f"3: NA, {HOSTILE}, c", "none"]
    assert by_name["column 1"] == ["numeric", "0 to 16", "12.5%"]
    assert by_name["column 2"] == ["numeric", "always 3", "none"]
    assert by_name["column 3"][:2] == ["boolean", "2: False, True"]
    assert by_name["column 4"][1] == "-0.25 to 1,000,000,000"


def test_folding_certificate_and_provenance_are_those_of_the_manifest():
    page = Page(render(classification()))
    assert page.table("layer") == [["norm1", "W' = diag(s) W", "dense1"]]
    assert page.table("runtime")[0] == [
        *("onnxruntime CPU", "random", "4,096", "4,096", "4.1e-07", "3.0e-06", "1.0%", "100.0% of 4,096")
    ]
    facts = {row[0]: row[1] for rows in page.tables for row in rows if len(row) == 2}
    assert facts["data sha256"] == "b" * 64
    assert facts["hidden"] == "64, 64"
    assert facts["torch"] == "2.13.0"
    assert "trained 2026-01-02 03:04:05 UTC on table.csv, preset best" in page.text


@pytest.mark.parametrize("histories", [(), ((),), (history(1),), (history(), (), history(3)), 40 * (history(),)])
def test_histories_can_be_missing_short_or_many(histories):
    page = Page(render(replace(classification(), histories=histories)))
    kept = [found for found in histories if found]
    if not kept:
        assert "No history of the losses was kept" in page.text
    elif len(kept) > 1:
        assert f"{len(kept)} members" in page.text
    else:
        assert "Lowest validation loss, 1.040, after epoch 1 of 1." in page.text


def test_the_best_epoch_has_the_lowest_validation_loss():
    lowest = min(history(20), key=lambda epoch: epoch.validation_loss)
    text = Page(render(replace(classification(), histories=(history(20),)))).text
    assert f"Lowest validation loss, {lowest.validation_loss:.4f}, after epoch {lowest.number} of 20." in text


def test_constant_targets_and_outputs_can_be_drawn():
    y = np.full(10, 3.0)
    outputs = np.full((10, 1), 3.0, np.float32)
    made = manifest("regression", y, outputs, ["a"], ())
    Page(render(Evidence(made, (), y, outputs, Importances("rmse", 10, 5, np.zeros(1), np.zeros(1)))))
