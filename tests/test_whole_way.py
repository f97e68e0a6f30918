"""Train, fold, certify, export, serve: the answers over HTTP agree with the trained network."""

import httpx
import numpy as np
import pytest
import torch

from foldserve.training import pipeline
from foldserve.training.plan import Architecture, DataOptions, Plan, Recipe
from tests.service.support import serving


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_served_model_gives_the_labels_and_probabilities_of_the_unfolded_network(tmp_path, placement):
    models = tmp_path / "models"
    models.mkdir()
    architecture, recipe = Architecture(placement=placement), Recipe(epochs=15)
    plan = Plan(DataOptions("digits"), "digits", models, architecture=architecture, recipe=recipe)
    trained = pipeline.train(plan)
    pipeline.export(plan, trained)
    rows = trained.table.x[trained.split.test]
    with torch.no_grad():
        expected = trained.network(torch.from_numpy(rows)).softmax(1)
    with serving(models, tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json={"instances": rows.tolist()}).raise_for_status().json()
    assert (answer["model"], answer["version"]) == ("digits", 1)
    assert answer["predictions"] == expected.argmax(1).tolist()
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4, atol=1e-5)
    assert np.mean(np.array(answer["predictions"]) == trained.table.y[trained.split.test]) > 0.95


def test_a_served_regression_gives_the_values_of_the_unfolded_network(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    plan = Plan(DataOptions("diabetes"), "diabetes", models, recipe=Recipe(epochs=15))
    trained = pipeline.train(plan)
    pipeline.export(plan, trained)
    rows = trained.table.x[trained.split.test]
    with torch.no_grad():
        expected = trained.network(torch.from_numpy(rows))[:, 0]
    named = [dict(zip(trained.table.features, row, strict=True)) for row in rows.tolist()]
    with serving(models, tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json={"instances": named}).raise_for_status().json()
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-4)
