"""`make test-keras`: files that a live Keras saves give the outputs of Keras. The oracle runs on PyTorch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import pytest

pytest.importorskip("keras", reason="make test-keras has an environment with Keras")

from hypothesis import HealthCheck, given, settings

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
