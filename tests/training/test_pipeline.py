"""Tests the pipeline from a plan to a bundle. The same plan must give the same bytes again."""

import copy
import hashlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from foldserve.service import bundle
from foldserve.training import pipeline
from foldserve.training.certify import certificate
from foldserve.training.errors import ParityError
from foldserve.training.plan import Architecture, DataOptions, Plan, Recipe
from foldserve.training.table.load import load

QUICK = Recipe(epochs=4)


def plan(models, source="digits", **changes):
    return Plan(**{"data": DataOptions(source), "name": source, "models": models, "recipe": QUICK} | changes)


@pytest.fixture(scope="module")
def trained():
    return pipeline.train(plan(None))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return pipeline.run(plan(tmp_path_factory.mktemp("models"))).bundle


def test_a_bundle_is_complete_and_its_version_is_the_next_integer(tmp_path):
    first, second = (pipeline.run(plan(tmp_path, "iris")).bundle for _ in range(2))
    assert [first.path, second.path] == [tmp_path / "iris" / "1", tmp_path / "iris" / "2"]
    assert {file.name for file in first.path.iterdir()} == {"manifest.json", "model.onnx", "report.html"}
    assert bundle.read(first.path) == first


def test_the_manifest_records_the_run(written):
    manifest = written.manifest
    provenance = manifest.provenance
    assert (manifest.name, manifest.version, manifest.task) == ("digits", 1, "classification")
    assert manifest.model.sha256 == hashlib.sha256(written.model).hexdigest()
    assert manifest.labels == tuple(range(10))
    assert sum(provenance.rows.values()) == 1797
    assert provenance.hyperparameters["hidden"] == (64, 64)
    assert provenance.hyperparameters["epochs"] == 4
    assert provenance.versions["torch"] == torch.__version__
    assert provenance.versions["onnxruntime"] == ort.__version__
    assert provenance.threads == 1
    assert [f.layer for f in manifest.folded if f.into != "-"] == ["standardise", "norm1", "norm2", "temperature"]


def test_ranges_and_histograms_describe_the_training_rows(written, trained):
    seen = trained.table.x[trained.split.train]
    for feature, column in zip(written.manifest.features, seen.T, strict=True):
        assert feature.range == (column.min(), column.max())
        assert sum(feature.histogram.counts) == len(column)
        assert len(feature.histogram.edges) == len(feature.histogram.counts) + 1


def test_golden_outputs_come_from_the_unfolded_network_in_float64(written, trained):
    golden = written.manifest.golden
    rows = torch.tensor(golden.inputs, dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(trained.network).double()(rows).softmax(1)
    np.testing.assert_allclose(golden.outputs, expected, rtol=1e-12)
    assert all(value == int(value) for row in golden.inputs for value in row)


def test_the_graph_of_digits_has_only_dense_layers_and_activations(written):
    graph = onnx.load_model_from_string(written.model).graph
    assert [node.op_type for node in graph.node] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax"]


def test_the_metrics_are_those_of_the_exported_model(written, trained):
    session = ort.InferenceSession(written.model, providers=["CPUExecutionProvider"])
    rows = trained.split.test
    probabilities = session.run(None, {"input": trained.table.x[rows]})[0].astype(np.float64)
    truth = trained.table.y[rows]
    assert written.manifest.metrics["test"]["accuracy"] == (probabilities.argmax(1) == truth).mean()
    log_loss = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    assert written.manifest.metrics["test"]["log_loss"] == pytest.approx(log_loss, rel=1e-5)


def test_a_regression_gives_values_in_the_target_s_own_units(tmp_path):
    found = pipeline.run(plan(tmp_path, "diabetes", recipe=Recipe(epochs=20))).bundle
    table = pipeline.train(plan(None, "diabetes")).table
    values = ort.InferenceSession(found.model, providers=["CPUExecutionProvider"]).run(None, {"input": table.x})[0]
    assert values.shape == (442, 1)
    assert abs(values.mean() - table.y.mean()) < 0.2 * table.y.std()
    assert found.manifest.metrics["test"]["r2"] > 0
    assert "unstandardise" in [f.layer for f in found.manifest.folded]
    assert found.manifest.output.name == "value"


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_same_plan_gives_the_same_bytes_in_another_process_and_folder(tmp_path, placement):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from foldserve.training.pipeline import run
        from foldserve.training.plan import Architecture, DataOptions, Plan, Recipe
        network, quick = Architecture(placement=sys.argv[2]), Recipe(epochs=4)
        run(Plan(DataOptions("digits"), "digits", Path(sys.argv[1]), architecture=network, recipe=quick))
    """)
    architecture = Architecture(placement=placement)
    here = pipeline.run(plan(tmp_path, architecture=architecture)).bundle.model
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", script, str(elsewhere), placement], check=True, cwd=elsewhere, env=environment
    )
    assert bundle.read(elsewhere / "digits" / "1").model == here


def test_the_caller_s_threads_and_determinism_are_restored(tmp_path):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    pipeline.run(plan(tmp_path, "iris", threads=2))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_a_file_in_place_of_the_models_folder_is_refused_before_any_training(tmp_path):
    seen = []
    (tmp_path / "file").touch()
    with pytest.raises(bundle.BundleError, match="not a folder"):
        pipeline.run(plan(tmp_path / "file"), context=pipeline.Context(on_epoch=seen.append))
    assert not seen


def test_a_model_that_fails_its_certificate_is_not_written(tmp_path, trained):
    wrong = copy.deepcopy(trained)
    with torch.no_grad():
        wrong.folded.network[0].weight.mul_(1.01)
    with pytest.raises(ParityError):
        pipeline.export(plan(tmp_path), wrong)
    assert not list(tmp_path.iterdir())


def test_the_bundle_has_no_paths_of_the_machine(written):
    text = (written.path / "manifest.json").read_text()
    for place in (str(written.path.parent), str(Path.cwd()), sys.prefix):
        assert place not in text
        assert place.encode() not in written.model


@pytest.mark.slow
def test_the_accuracy_on_digits_is_high_for_five_seeds():
    """The default recipe has a mean test accuracy of at least 0.98."""
    accuracies = []
    for seed in range(5):
        result = pipeline.train(plan(None, recipe=Recipe(), seed=seed))
        rows = result.split.test
        with torch.no_grad():
            predicted = result.folded.network(torch.from_numpy(result.table.x[rows])).argmax(1).numpy()
        accuracies.append((predicted == result.table.y[rows]).mean())
    assert np.mean(accuracies) >= 0.98


def test_golden_rows_are_not_rows_of_the_table(written, trained):
    table = {tuple(row) for row in trained.table.x.tolist()}
    assert len(written.manifest.golden.inputs) == certificate.GOLDEN_ROWS
    assert not any(tuple(row) in table for row in written.manifest.golden.inputs)


def test_a_large_target_mean_does_not_widen_the_tolerance(tmp_path):
    table = load(DataOptions("diabetes"))
    far = replace(table, y=1.7e9 + 1e4 * (table.y - table.y.mean()) / table.y.std())
    trained = pipeline.train(plan(None, "diabetes"), far)
    pipeline.export(plan(tmp_path, "diabetes"), trained)
    with torch.no_grad():
        trained.folded.network[0].weight.zero_()
    with pytest.raises(ParityError):
        pipeline.export(plan(tmp_path, "diabetes"), trained)


def test_training_does_not_change_the_caller_s_random_state():
    before = torch.get_rng_state()
    pipeline.train(plan(None, "iris"))
    assert torch.equal(torch.get_rng_state(), before)
