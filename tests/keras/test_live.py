"""`make test-keras`: the import of a file that Keras saves gives the outputs of Keras.

Keras, the oracle, runs on PyTorch. The import itself also runs a copy of the file in Keras.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import pytest

pytest.importorskip("keras", reason="make test-keras has an environment with Keras")

import keras
from hypothesis import HealthCheck, given, settings

import foldserve
from foldserve.training.imports.folding import fold
from foldserve.training.imports.imported import Options
from foldserve.training.imports.keras.reader import read
from tests.keras.architectures import model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
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
    original = imported.float32[f"Keras {keras.__version__} on torch float32, original"]
    for outputs in (imported.evaluate(rows), fold(imported.network).network.evaluate(rows), original(rows)):
        np.testing.assert_allclose(outputs, expected, rtol=2e-3, atol=2e-4)


def test_a_model_in_memory_becomes_a_bundle_that_predicts_the_same(tmp_path: Path) -> None:
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
    assert "Keras float32, original" in {measured.runtime for measured in written.manifest.certificate.measurements}
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    logits = np.asarray(made.predict([rows[:, :1], rows[:, 1:].reshape(9, 2, 2)], verbose=0), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(foldserve.load(written.path).predict_proba(rows), expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_memory_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    for made, message in (
        (keras.Sequential([keras.layers.Dense(2)]), "does not say how many features it has"),
        (keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)]), "Lambda 'lambda.*it has code"),
    ):
        with pytest.raises(foldserve.TrainingError, match=message):
            foldserve.import_model(made, name="live", models=tmp_path, ranges=(-3, 3))


def save(path: Path) -> Path:
    """Save a model with a standardisation, a hidden layer and a batch norm."""
    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Normalization(mean=[0.0, 1.0], variance=[0.01, 4.0]),
            layers.Dense(4, "relu"),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    made.save(path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], **entries: bytes) -> None:
    """Change the description in a `.keras` file. change: a function that changes the model's description."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()} | entries
    described = json.loads(contents["config.json"])
    change(described)
    contents["config.json"] = json.dumps(described).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def import_file(path: Path) -> tuple[Any, str]:
    """Import a file. Return the certificate, and the notes as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = foldserve.import_model(path, name="file", models=path.parent, ranges=(-3, 3))
    return written.manifest.certificate, " ".join(str(each.message) for each in caught)


def originals(certificate: Any) -> set[str]:
    return {each.runtime for each in certificate.measurements if each.runtime.endswith("original")}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_is_also_compared_with_keras(tmp_path: Path, suffix: str) -> None:
    certificate, _ = import_file(save(tmp_path / f"model{suffix}"))
    assert f"Keras {keras.__version__} on torch float32, original" in originals(certificate)
    assert certificate.widened == 1


@pytest.mark.parametrize("name", ["article_2.keras", "article_2.h5", "image_2.keras", "image_2.h5"])
def test_a_file_of_keras_2_is_also_compared_with_keras_3(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy(Path(__file__).parents[1] / "training" / "imports" / "keras_files" / name, path)
    certificate, _ = import_file(path)
    assert originals(certificate) == {f"Keras {keras.__version__} on torch float32, original"}


def test_a_file_that_keras_computes_in_another_way_is_refused(tmp_path: Path) -> None:
    path, epsilon = save(tmp_path / "model.keras"), keras.config.epsilon()
    keras.config.set_epsilon(0.5)  # the smallest standard deviation that a Normalization layer uses
    try:
        with pytest.raises(foldserve.TrainingError, match=r"Keras .*: the outputs differ from .* in a wrong way"):
            import_file(path)
    finally:
        keras.config.set_epsilon(epsilon)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("key", "kind", "note"),
    [
        ("kernel_initializer", "run", ""),
        ("kernel_regularizer", "run", ""),
        ("other", "run", "Keras is not asked, because the file has an object of the class 'run'"),
        ("other", "function", "Keras .* can't run the file .*; save the model again"),
        ("other", "__lambda__", "Keras is not asked, because the file has an object of the class '__lambda__'"),
    ],
)
def test_no_class_and_no_code_of_a_file_reaches_keras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, kind: str, note: str
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\nclass run: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = save(tmp_path / "model.keras")

    def add(described: dict[str, Any]) -> None:
        config = next(each["config"] for each in described["config"]["layers"] if each["class_name"] == "Dense")
        config[key] = {"module": "evil", "class_name": kind, "config": "run", "registered_name": "evil>run"}

    rewrite(path, add)
    certificate, notes = import_file(path)
    assert not (tmp_path / "proof").exists()
    assert bool(originals(certificate)) == (not note)
    assert re.search(note, notes)


@pytest.mark.parametrize(
    "lie",
    [
        lambda layer: layer.update(build_config={"input_shape": [None, 10**12]}),
        lambda layer: layer["config"].update(input_shape=[10**12]),
        lambda layer: layer["config"].update(input_dim=10**12),
    ],
)
def test_keras_allocates_no_memory_for_shapes_that_the_weights_do_not_have(
    tmp_path: Path, lie: Callable[[dict[str, Any]], None]
) -> None:
    path = save(tmp_path / "model.keras")
    rewrite(path, lambda described: lie(described["config"]["layers"][2]))
    certificate, _ = import_file(path)
    assert originals(certificate)


def test_weights_with_a_link_to_another_file_do_not_reach_keras(tmp_path: Path) -> None:
    import h5py

    path = save(tmp_path / "model.keras")
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r+") as file:
        file["other"] = h5py.ExternalLink("/etc/passwd", "/")
    rewrite(path, lambda _: None, **{"model.weights.h5": content.getvalue()})
    certificate, notes = import_file(path)
    assert "Keras is not asked, because the weights have a link to another place" in notes
    assert not originals(certificate)


def test_one_of_several_outputs_is_compared_with_the_same_output_of_keras(tmp_path: Path) -> None:
    first = keras.Input((3,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(4, "tanh")(first))
    outputs = {name: keras.layers.Dense(1, name=name)(hidden) for name in ("price", "area", "rooms")}
    keras.Model(first, outputs).save(tmp_path / "model.keras")
    for name in outputs:
        imported = read(tmp_path / "model.keras", Options(output=name))
        rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        (original,) = imported.float32.values()
        np.testing.assert_allclose(original(rows), imported.network.evaluate(rows), rtol=1e-4, atol=1e-6)
