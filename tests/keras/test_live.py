"""`make test-keras`: the import of a file that Keras saves gives the outputs of Keras.

Keras, the oracle, runs on PyTorch.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import pytest

pytest.importorskip("keras", reason="make test-keras has an environment with Keras")

from hypothesis import HealthCheck, given, settings

import foldserve
from foldserve.training.imports.folding import fold
from foldserve.training.imports.imported import Options
from foldserve.training.imports.keras.reader import read
from tests.keras.architectures import model


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=int(os.environ.get("KERAS_EXAMPLES", "150")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(made=model())
def test_a_saved_model_gives_the_outputs_of_keras(suffix: str, made: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        made.save(path)
        imported = read(path, Options())
    sizes = [each.shape[1] for each in made.inputs]
    rows = np.random.default_rng(0).normal(0, 2, (7, sum(sizes))).astype(np.float32)
    parts = np.split(rows, np.cumsum(sizes)[:-1], 1)
    expected = np.asarray(made.predict(parts if len(parts) > 1 else rows, verbose=0), np.float64)
    if imported.task == "classification" and expected.shape[1] == 1:
        expected = np.concatenate([1 - expected, expected], 1)
    for outputs in (imported.evaluate(rows), fold(imported.network).network.evaluate(rows)):
        np.testing.assert_allclose(outputs, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_model_in_memory_becomes_a_bundle_that_predicts_the_same(tmp_path: Path) -> None:
    import keras

    inputs = [keras.Input((1,), name="age"), keras.Input((2, 2), name="grid")]
    joined = keras.layers.Concatenate()([inputs[0], keras.layers.Flatten()(inputs[1])])
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(joined))
    made = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", foldserve.TableWarning)
        written = foldserve.import_model(made, name="live", models=tmp_path, ranges=(-3, 3))
    assert written.manifest.source is not None
    assert written.manifest.source.file == "Functional"
    assert "Keras, original" in {measured.runtime for measured in written.manifest.certificate.measurements}
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    logits = np.asarray(made.predict([rows[:, :1], rows[:, 1:].reshape(9, 2, 2)], verbose=0), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(foldserve.load(written.path).predict_proba(rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_model_in_memory_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    import keras

    for made, message in (
        (keras.Sequential([keras.layers.Dense(2)]), "does not say how many features it has"),
        (keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)]), "Lambda 'lambda.*it has code"),
    ):
        with pytest.raises(foldserve.TrainingError, match=message):
            foldserve.import_model(made, name="live", models=tmp_path, ranges=(-3, 3))
