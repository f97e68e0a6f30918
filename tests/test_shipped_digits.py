"""The shipped model, models/digits/1, agrees with a fresh training by the same command."""

from pathlib import Path

import numpy as np
import pytest

from foldserve.service import bundle
from foldserve.training.cli import main
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load
from foldserve.training.table.split import split_rows
from tests.service.support import foldserve, oracle

SHIPPED = Path(__file__).parents[1] / "models" / "digits" / "1"


@pytest.fixture(scope="module")
def shipped():
    return bundle.read(SHIPPED)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    assert main(["fit", "digits", "--models", str(models)]) == 0
    return bundle.read(models / "digits" / "1")


def test_the_shipped_model_is_the_reference_topology_with_placement_pre(shipped):
    hyperparameters = shipped.manifest.provenance.hyperparameters
    assert (hyperparameters["hidden"], hyperparameters["placement"]) == ((64, 64), "pre")
    assert shipped.manifest.provenance.threads == 1


def test_the_provenance_equals_that_of_a_fresh_training(shipped, fresh):
    assert shipped.manifest.labels == fresh.manifest.labels
    assert shipped.manifest.features == fresh.manifest.features
    assert shipped.manifest.folded == fresh.manifest.folded
    theirs, ours = shipped.manifest.provenance, fresh.manifest.provenance
    # `best_epochs` and `temperature` are results of the training. A different kind of CPU may give different results.
    made_with = [p.hyperparameters | dict.fromkeys(("best_epochs", "temperature")) for p in (theirs, ours)]
    assert made_with[1] == made_with[0]
    same = ("source", "data_sha256", "rows", "seed", "threads")
    assert [getattr(theirs, name) for name in same] == [getattr(ours, name) for name in same]


def test_equal_versions_and_cpu_give_equal_bytes(shipped, fresh):
    theirs, ours = shipped.manifest.provenance, fresh.manifest.provenance
    if (theirs.versions, theirs.cpu) != (ours.versions, ours.cpu):
        pytest.skip(f"made with {theirs.versions} on {theirs.cpu}; here are {ours.versions} on {ours.cpu}")
    assert shipped.model == fresh.model


def test_the_predictions_agree_with_a_fresh_training(shipped, fresh):
    table = load(DataOptions("digits"))
    held_out = split_rows(table, test=0.2, validation=0.1, seed=0).test
    theirs, ours = (oracle(found.model)(table.x[held_out]) for found in (shipped, fresh))
    # Different kinds of CPU round differently. The training amplifies the differences, so a few labels may differ.
    assert (theirs.argmax(1) == ours.argmax(1)).mean() >= 0.97
    assert (theirs.argmax(1) == table.y[held_out]).mean() == shipped.manifest.metrics["test"]["accuracy"]
    assert np.abs(theirs - ours).mean() < 0.02


def test_foldserve_verify_accepts_the_shipped_model():
    done = foldserve("verify", SHIPPED)
    assert done.returncode == 0, done.stderr
    assert "digits/1 is the model that its manifest certifies" in done.stdout
