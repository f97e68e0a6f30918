"""For the user's recipe, the diagnosis shows the same figures as `fit`, and its text agrees with these figures."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, r2_score

from foldserve.training import pipeline
from foldserve.training.diagnose import recipe
from foldserve.training.diagnose.sample import MAX_ROWS
from foldserve.training.diagnose.tables import list_graphs, list_trainings
from foldserve.training.plan import Architecture, DataOptions
from foldserve.training.table.load import load
from tests.training.diagnose.support import NAN, OWN, TINY, nothing

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_first_training_is_that_of_fit(tmp_path):
    plan = replace(OWN, models=tmp_path, recipe=replace(OWN.recipe, calibrate=False))
    table = load(plan.data)
    study = recipe.measure(table, plan, TINY, nothing)
    written = pipeline.run(plan, table)
    first = study.select(batch_norm=True)[0]
    (history,) = written.evidence.histories
    assert first.losses == tuple(epoch.validation_loss for epoch in history)
    assert first.test_score == written.bundle.manifest.metrics["test"]["accuracy"]
    exact = written.evidence.outputs.astype(float)
    exact /= exact.sum(1, keepdims=True)
    assert first.test_loss == pytest.approx(log_loss(written.evidence.y, exact, labels=range(3)), rel=1e-5)
    assert study.rows == tuple(
        written.bundle.manifest.provenance.rows[part] for part in ("train", "validation", "test")
    )
    unfolded, folded = study.graphs
    assert folded.size == pytest.approx(len(written.bundle.model), rel=0.2)
    assert unfolded.nodes > folded.nodes


def test_every_repeat_trains_both_networks_from_other_weights():
    study = recipe.measure(load(OWN.data), OWN, TINY, nothing)
    assert [(t.repeat, t.batch_norm) for t in study.trainings] == [(0, False), (0, True), (1, False), (1, True)]
    assert len({t.losses for t in study.trainings}) == 4
    assert len(list_trainings(study, "accuracy")) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": Architecture(hidden=(8,), placement="post", members=3, input_norm=True)},
        {"architecture": Architecture(hidden=(), batch_norm=False)},
        {"data": DataOptions("diabetes"), "architecture": Architecture(hidden=(8,), binned="all", bins=4)},
    ],
)
def test_any_recipe_can_be_studied(changes):
    plan = replace(OWN, **changes)
    study = recipe.measure(load(plan.data), plan, TINY, nothing)
    assert all(np.isfinite([t.test_loss, t.test_score]).all() for t in study.trainings)
    assert len(study.graphs) == 2
    assert list_graphs(study)[1][0] == "nodes"


def test_the_test_score_of_a_regression_is_r2(tmp_path):
    plan = replace(OWN, data=DataOptions("diabetes"), models=tmp_path)
    table = load(plan.data)
    first = recipe.measure(table, plan, TINY, nothing).select(batch_norm=True)[0]
    written = pipeline.run(plan, table)
    evidence = written.evidence
    assert first.test_score == pytest.approx(r2_score(evidence.y, evidence.outputs[:, 0]), abs=1e-4)


def test_a_large_table_is_cut_and_its_size_is_reported():
    table = load(OWN.data)
    rows = np.arange(len(table.x)).repeat(2 * MAX_ROWS // len(table.x))
    study = recipe.measure(table.select(rows), replace(OWN, recipe=replace(OWN.recipe, epochs=1)), TINY, nothing)
    assert sum(study.rows) == MAX_ROWS
    assert study.total == len(rows)


def test_a_divergence_is_a_result():
    plan = replace(OWN, recipe=replace(OWN.recipe, learning_rate=1e30))
    study = recipe.measure(load(plan.data), plan, TINY, nothing)
    assert study.graphs == ()
    assert "diverged" in recipe.describe_trainings(study)
    assert "diverged" in recipe.describe_graphs(study)
    assert {row[3] for row in list_trainings(study, "accuracy")[1:]} == {"diverged"}
    assert list_graphs(study) == ()


def study(*pairs):
    """Invent a study. pairs: the test losses without and with batch norm."""
    trainings = [
        recipe.Training(batch_norm, i, (1.0,), (0.5,), 1, pair[batch_norm], 0.5, 2.0)
        for i, pair in enumerate(pairs)
        for batch_norm in (False, True)
    ]
    graphs = (recipe.Graph(False, 12, 100, 1000, {1: 2e-5}), recipe.Graph(True, 6, 90, 900, {1: 1e-5}))
    return recipe.Study(OWN, (1, 1, 1), 3, tuple(trainings), graphs)


def test_the_sentences_follow_the_figures():
    lowers = recipe.describe_trainings(study((0.5, 0.4), (0.3, 0.2)))
    assert "lowers the loss of your recipe on the test rows in each of 2 pairs, from 0.4000 to 0.3000" in lowers
    assert "--no-batch-norm" in recipe.describe_trainings(study((0.4, 0.5)))
    assert "no clear difference" in recipe.describe_trainings(study((0.4, 0.5), (0.5, 0.4)))
    assert "no clear difference" in recipe.describe_trainings(study((0.400, 0.399)))
    assert "diverged" in recipe.describe_trainings(study((0.4, NAN)))
    assert recipe.describe_graphs(study((0.4, 0.5))) == (
        "Folding reduces your network from 12 nodes to 6, and a run with 1 row takes 50% less time."
    )
    assert list_graphs(study((0.4, 0.5)))[1:] == (
        ("nodes", "12", "6", "-50%"),
        ("parameters", "100", "90", "-10%"),
        ("file, bytes", "1,000", "900", "-10%"),
        ("run, 1 row", "20.0 µs", "10.0 µs", "-50%"),
    )
