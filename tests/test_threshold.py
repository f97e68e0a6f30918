"""The training chooses a threshold, the manifest keeps the threshold, and the service applies the threshold."""

import json

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.training import pipeline
from foldserve.training.certify.certificate import onnx_runtime_cpu
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions, DecisionOptions, Plan, Recipe
from foldserve.training.report.sentences import summarise
from foldserve.training.table.load import load


@pytest.fixture(scope="module")
def table():
    return load(DataOptions("breast_cancer"))


@pytest.fixture(scope="module")
def written(table, tmp_path_factory):
    decision = DecisionOptions(threshold="cost:1,10", positive="benign")
    models = tmp_path_factory.mktemp("models")
    plan = Plan(DataOptions("breast_cancer"), "cancer", models, recipe=Recipe(epochs=3), decision=decision)
    return pipeline.run(plan, table)


def test_the_metrics_and_the_report_are_those_of_the_threshold(written):
    manifest, evidence = written.bundle.manifest, written.evidence
    threshold = manifest.threshold
    assert (threshold.positive, threshold.rule) == ("benign", "cost:1,10")
    assert manifest.provenance.hyperparameters["threshold"] == "cost:1,10"
    benign = manifest.labels.index("benign")
    predicted, true = evidence.outputs[:, benign] >= np.float32(threshold.value), evidence.y == benign
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, average="binary")
    cost = (np.sum(predicted & ~true) + 10 * np.sum(~predicted & true)) / len(true)
    expected = {
        "accuracy": np.mean(predicted == true),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "cost": cost,
    }
    assert {name: manifest.metrics["test"][name] for name in expected} == pytest.approx(expected)
    assert evidence.classes[benign].predicted == predicted.sum()
    lines = summarise(evidence).splitlines()
    assert lines[0].startswith("threshold    benign from a probability of ")
    assert lines[0].endswith(
        "the smallest cost of the 57 validation rows, 1 for a false positive and 10 for a false negative."
    )
    assert lines[0].removeprefix("threshold    ") in (written.bundle.path / "report.html").read_text()
    assert "the threshold is uncertain: " in written.notes[-1]


def test_the_service_predicts_with_the_threshold(written, table):
    manifest = written.bundle.manifest
    outputs = onnx_runtime_cpu(written.bundle.model)(table.x)
    body = json.dumps({"instances": table.x.tolist()}).encode()
    answer = json.loads(FriendlyCodec(manifest, 1_000).decode({}, body).encode(outputs).body)
    benign = manifest.labels.index("benign")
    expected = ["benign" if row[benign] >= manifest.threshold.value else "malignant" for row in answer["probabilities"]]
    assert answer["predictions"] == expected
    assert expected != [manifest.labels[i] for i in outputs.argmax(1)]


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("iris", {}, "--threshold needs a target of two classes, but 'target' has 3 classes"),
        ("diabetes", {}, "--threshold needs a target of two classes, but 'target' has numbers"),
        ("breast_cancer", {"positive": "bening"}, "'bening' is not a class of 'target'; it has benign, malignant"),
    ],
)
def test_a_table_without_two_classes_is_refused_before_the_training(source, options, reason, tmp_path):
    plan = Plan(DataOptions(source), "made", tmp_path, decision=DecisionOptions(threshold="f1", **options))
    with pytest.raises(DataError, match=reason):
        pipeline.run(plan)
    assert not list(tmp_path.iterdir())
