"""Imports of files from tf2onnx, Keras, two exporters of PyTorch, and Hummingbird give the outputs of the frameworks.

exporter_files/README.md has the versions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foldserve.training.imports.folding import fold
from foldserve.training.imports.front_ends import read_model
from foldserve.training.imports.imported import Options
from foldserve.training.imports.layers import Affine
from tests.training.imports.support import run_folded

FILES = Path(__file__).parent / "exporter_files"


@pytest.mark.parametrize("path", sorted(FILES.glob("*.onnx")), ids=lambda path: path.stem)
def test_a_file_of_an_exporter_gives_the_outputs_of_its_framework(path: Path) -> None:
    saved = np.load(path.with_suffix(".npz"))
    expected = saved["outputs"].astype(np.float64)
    if (expected < 0).all():  # a log-softmax
        expected = np.exp(expected)
    imported = read_model(path, Options())
    if imported.task == "classification" and expected.shape[1] == 1:
        expected = np.concatenate([1 - expected, expected], 1)
    np.testing.assert_allclose(imported.evaluate(saved["rows"]), expected, rtol=1e-4, atol=1e-6)
    outputs, _ = run_folded(imported, saved["rows"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(node.layer, Affine) for node in fold(imported.network).network.nodes)


def test_the_classes_of_hummingbird_become_labels() -> None:
    imported = read_model(FILES / "hummingbird_logistic.onnx", Options())
    assert imported.labels == (0, 1)
    assert not any("does not name its classes" in note for note in imported.notes)
