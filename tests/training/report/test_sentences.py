"""Compares each figure in the findings and in the lines for the terminal with scikit-learn's."""

from dataclasses import replace

import numpy as np
from sklearn.metrics import f1_score

from foldserve.training.report.report import (
    render,
)
from foldserve.training.report.sentences import summarise
from tests.training.report.support import HOSTILE, Page, classification, manifest, regression


def test_a_note_on_the_table_is_on_the_page_but_not_in_the_summary():
    evidence = replace(classification(), notes=(f"Dropped {HOSTILE}.",))
    assert f"Dropped {HOSTILE}." in Page(render(evidence)).text
    assert "Dropped" not in summarise(evidence)


def test_a_class_that_is_never_predicted_is_named_and_its_precision_is_undefined():
    evidence = classification(never=2)
    page = Page(render(evidence))
    row = page.table("class")[2]
    assert row[2:6] == ["0", "\N{EN DASH}", "0", "0"]
    assert "Classes of the test rows that the model never predicts: class 2." in page.text
    assert summarise(evidence).splitlines()[1].startswith("worst        class 2: 0.0% of")


def test_a_useless_model_is_called_useless():
    evidence = classification()
    constant = np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), (len(evidence.y), 1))
    made = manifest("classification", evidence.y, constant, ["a", "b", "c"], evidence.manifest.labels)
    text = Page(render(replace(evidence, manifest=made, outputs=constant))).text
    assert "no better than an answer that looks at no feature" in text
    assert "no better than an answer that looks at no feature" not in Page(render(evidence)).text


def test_useless_probabilities_of_useful_answers_are_reported():
    assert "its probabilities are not: see log_loss" in summarise(classification(never=2))
    assert "probabilities are not" not in summarise(classification())


def test_the_summary_has_the_baseline_the_worst_classes_and_the_best_features():
    evidence = classification()
    lines = summarise(evidence).splitlines()
    assert len(lines) == 5
    worst = f1_score(evidence.y, evidence.outputs.argmax(1), average=None).argmin()
    best = evidence.importances.mean.argmax()
    assert lines[0].startswith(
        f"baseline     accuracy {(np.bincount(evidence.y) / len(evidence.y)).max():.4f}, log_loss "
    )
    assert lines[1].startswith(f"worst        class {worst}: ")
    assert lines[4].startswith(f"features     column {best} +{evidence.importances.mean[best]:.4f}, ")


def test_the_summary_of_a_regression_has_the_size_of_its_errors():
    evidence = regression()
    off = np.quantile(abs(evidence.outputs[:, 0] - evidence.y), [0.5, 0.9])
    assert f"residuals    half within {off[0]:.3f}, 90% within {off[1]:.3f}" in summarise(evidence).splitlines()
