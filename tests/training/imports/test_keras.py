"""An import keeps the outputs of real files of Keras 2 and 3.

A damaged file, or a file with code, gives a one-line error. keras_files/make.py made the files with Keras 3.15 and
Keras 2.15. The same versions of Keras computed the outputs.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import foldserve
from foldserve.training.cli import main
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.folding import fold
from foldserve.training.imports.imported import Options
from foldserve.training.imports.keras.reader import read
from foldserve.training.imports.layers import Affine

FILES = Path(__file__).parent / "keras_files"
SAVED = sorted(path.with_suffix("") for path in FILES.glob("*.npz"))
ARTICLE = FILES / "article_3.keras"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_a_file_gives_the_outputs_of_keras(path: Path) -> None:
    saved = np.load(f"{path}.npz")
    imported = read(path, Options())
    expected = saved["outputs"].astype(np.float64)
    if path.name.startswith("image"):  # the outputs of this model are logits
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    if path.name.startswith("branches"):  # one probability
        expected = np.concatenate([1 - expected, expected], 1)
        assert [column.name for column in imported.columns] == ["age", "rest_0", "rest_1", "rest_2", "rest_3"]
    assert imported.framework_version.partition(".")[0] == path.stem.rpartition("_")[2]
    folded = fold(imported.network).network
    np.testing.assert_allclose(imported.evaluate(saved["rows"]), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(folded.evaluate(saved["rows"]), imported.evaluate(saved["rows"]), rtol=1e-9, atol=1e-12)
    assert not any(isinstance(node.layer, Affine) for node in folded.nodes)


def test_the_ranges_of_the_features_come_from_the_first_normalisation() -> None:
    ranges = read(FILES / "branches_3.keras", Options()).ranges
    assert ranges is not None
    assert np.isnan(ranges[0]).all()
    assert ((ranges[1:, 0] < 2) & (ranges[1:, 1] > 8)).all()  # the data has the mean 5 and the standard deviation 2


def test_names_and_labels_of_the_user_replace_the_defaults() -> None:
    options = Options(features=tuple("abcdef"), labels=("low", "middle", "high"))
    imported = read(ARTICLE, options)
    assert ([column.name for column in imported.columns], imported.named) == (list("abcdef"), True)
    assert imported.labels == ("low", "middle", "high")


def test_one_command_makes_a_bundle_of_the_network_of_the_article(tmp_path: Path) -> None:
    flags = ["--name", "article", "--models", str(tmp_path), "--ranges", "0:16", "--labels", "low,middle,high"]
    main(["import", str(ARTICLE), *flags])
    model = foldserve.load(tmp_path / "article" / "1")
    saved = np.load(f"{ARTICLE}.npz")
    np.testing.assert_allclose(model.predict_proba(saved["rows"]), saved["outputs"], rtol=1e-4, atol=1e-5)
    assert model.manifest.source is not None
    assert (model.manifest.source.framework, model.manifest.labels) == ("Keras", ("low", "middle", "high"))


@pytest.mark.skipif(importlib.util.find_spec("keras") is not None, reason="make test-keras covers an installed Keras")
def test_an_import_without_keras_says_how_to_compare_with_keras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--name", "article", "--models", str(tmp_path), "--ranges", "0:16"]
    assert main(["import", str(ARTICLE), *flags]) == 0
    printed = capsys.readouterr().out
    assert "\ncompared     with the layers as foldserve reads them, float64\n" in printed
    assert (
        "foldserve's own reading of the file: Keras is not installed; to compare with Keras itself, pip install"
        in printed
    )


@pytest.mark.parametrize("name", ["image_2.keras", "branches_3.h5"])
def test_functions_with_whole_numbers_as_parameters_become_a_bundle(tmp_path: Path, name: str) -> None:
    assert main(["import", str(FILES / name), "--name", "made", "--models", str(tmp_path), "--ranges", "0:1"]) == 0


def test_the_user_chooses_one_of_several_outputs(tmp_path: Path) -> None:
    def expose(config: dict[str, Any]) -> None:
        config["config"]["output_layers"] = [["dropout", 0, 0], ["aa_head", 0, 0]]

    path = rewrite(FILES / "branches_3.keras", tmp_path / "two.keras", expose)
    assert read(path, Options(output="aa_head")).task == "classification"


def rewrite(source: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a copy of an archive with another description of the model."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    change(config)
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def layer(config: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = config["config"]["layers"][index]
    return found


def settings(config: dict[str, Any], index: int, **changes: Any) -> None:
    layer(config, index)["config"].update(changes)


def call(config: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in config["config"]["layers"] if each["name"] == name)
    return found["inbound_nodes"][0]  # type: ignore[no-any-return]


def history(config: dict[str, Any], name: str, source: str) -> None:
    call(config, name)["args"][0]["config"]["keras_history"] = [source, 0, 0]


# The layers of article_3.keras: InputLayer, Dense, BatchNormalization, Dense, BatchNormalization, Dense.
LIES = [
    (lambda c: layer(c, 1).update(class_name="Lambda"), "Lambda 'dense': it has code; no code of a file is ever run"),
    (lambda c: layer(c, 1).update(registered_name="me>Dense"), "Dense 'dense': it is a class of the author"),
    (lambda c: layer(c, 1).update(module="os", class_name="system"), "system 'dense': it is a class of the author"),
    (
        lambda c: layer(c, 1).update(class_name="Conv2D"),
        "Conv2D 'dense': this layer is not supported; export the model",
    ),
    (lambda c: settings(c, 1, activation="evil"), "Activation 'dense': its function is not one of Keras"),
    (lambda c: settings(c, 1, units=10**12), "the shape (6, 8); its description needs (6, 1000000000000)"),
    (lambda c: settings(c, 1, units=-1), "units is not a positive integer"),
    (lambda c: settings(c, 1, use_bias=False), "the layer 'dense' has 2 arrays of weights; its description needs 1"),
    (lambda c: settings(c, 1, quantization_config={"mode": "int8"}), "quantization_config is not supported"),
    (lambda c: settings(c, 1, dtype={"class_name": "QuantizedDTypePolicy"}), "its weights are quantised"),
    (lambda c: settings(c, 2, axis=0), "it does not normalise the last axis"),
    (lambda c: settings(c, 2, epsilon=-100), "its variance + epsilon is not above 0"),
    (lambda c: settings(c, 2, renorm=True), "renorm is not supported"),
    (lambda c: settings(c, 0, batch_shape=[None, 10**12]), "the input 'input_layer' has a size that is not known"),
    (lambda c: settings(c, 0, batch_shape=[None, None]), "the input 'input_layer' has a size that is not known"),
    (lambda c: settings(c, 0, batch_shape=[None, 5]), "has the shape (6, 8); its description needs (5, 8)"),
    (lambda c: settings(c, 0, dtype="string"), "is text, sparse or ragged"),
    (lambda c: settings(c, 1, name="other"), "the weights of the layer 'other' belong to another layer"),
    (lambda c: c["config"]["layers"].insert(1, layer(c, 1)), "the layer 'dense' has the shape|belong to another layer"),
    (lambda c: c.update(class_name="MyModel"), "it is not a Sequential or Functional model"),
    (lambda c: c["config"].update(layers=[layer(c, 0)] * 3000), "the model has more than 2000 layers"),
    (lambda c: c["config"].pop("layers"), "is damaged"),
    (lambda c: c["config"].update(layers=7), "is damaged"),
]


@pytest.mark.parametrize(("change", "message"), LIES, ids=[message[:40] for _, message in LIES])
def test_a_description_that_lies_gets_one_line(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    path = rewrite(ARTICLE, tmp_path / "lie.keras", change)
    with pytest.raises(ModelImportError) as error:
        read(path, Options())
    assert any(part in str(error.value) for part in message.split("|"))
    assert "\n" not in str(error.value)


GRAPHS = [
    (lambda c: history(c, "standardise", "aa_head"), "needs a value that no layer gives, or its own result"),
    (lambda c: history(c, "standardise", "nothing"), "needs a value that no layer gives, or its own result"),
    (
        lambda c: call(c, "dropout")["kwargs"].update(training=True),
        "Dropout 'dropout': it is called with training=True",
    ),
    (lambda c: call(c, "dropout")["kwargs"].update(noise=[1]), "its call has a further argument"),
    (lambda c: call(c, "dropout").update(args=[1.5]), "an argument of its call is no value of a layer"),
    (lambda c: c["config"]["output_layers"].__setitem__(0, "nothing"), "no layer 'nothing' gives the output"),
    (
        lambda c: c["config"].update(output_layers=[["dropout", 0, 0], ["aa_head", 0, 0]]),
        "the model has several outputs: choose one of dropout, aa_head with --output",
    ),
    (
        lambda c: c["config"]["layers"][8]["config"]["layers"][0]["config"].update(batch_shape=[None, 10**9]),
        "Sequential 'sequential_1': its description has the input shape [None, 1000000000], and it gets [5]",
    ),
    (
        lambda c: c["config"].update(input_layers=[["nothing", 0, 0]]),
        "the input 'nothing' of the model has no InputLayer",
    ),
]


@pytest.mark.parametrize(("change", "message"), GRAPHS, ids=[message[:40] for _, message in GRAPHS])
def test_a_graph_that_lies_gets_one_line(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    path = rewrite(FILES / "branches_3.keras", tmp_path / "lie.keras", change)
    with pytest.raises(ModelImportError) as error:
        read(path, Options())
    assert message in str(error.value)


def test_models_that_call_each_other_are_bounded(tmp_path: Path) -> None:
    def tensor(name: str, number: int) -> dict[str, Any]:
        history = {"shape": [None, 6], "keras_history": [name, number, 0]}
        return {"args": [{"class_name": "__keras_tensor__", "config": history}], "kwargs": {}}

    def nest(config: dict[str, Any]) -> None:
        """Each level calls the level below four times, which gives 4^12 calls."""
        source = {**layer(config, 0), "name": "i", "inbound_nodes": []}
        inner = {"module": "keras.layers", "class_name": "Dropout", "config": {"name": "drop"}}
        for _ in range(12):
            calls = [tensor("i", 0), *(tensor("m", number) for number in range(3))]
            inner = {
                "module": "keras.models",
                "class_name": "Functional",
                "config": {
                    "name": "m",
                    "layers": [source, {**inner, "name": "m", "inbound_nodes": calls}],
                    "input_layers": ["i", 0, 0],
                    "output_layers": ["m", 3, 0],
                },
            }
        config.update(inner)

    with pytest.raises(ModelImportError, match="more than 2000 calls of layers"):
        read(rewrite(ARTICLE, tmp_path / "nested.keras", nest), Options())


def archive_with(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def entries(**changes: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(ARTICLE) as archive:
        return {name: archive.read(name) for name in archive.namelist()} | changes


ARCHIVES = [
    ({"config.json": b"{}"}, "the archive has no metadata.json: it was not saved by Keras"),
    ({"config.json": b"{}", "metadata.json": b"{}"}, "the archive has no model.weights.h5"),
    (entries(**{"config.json": b"["}), "config.json is not JSON"),
    (entries(**{"config.json": b"[" * 100_000}), "nested too deeply"),
    (entries(**{"config.json": b"[]"}), "config.json is not a JSON object"),
    (entries(**{"config.json": b" " * (2**24 + 1)}), "config.json has more than 16 MiB"),
    (entries(**{"model.weights.h5": b"text"}), "is damaged"),
    (entries(**{"/etc/evil": b"text"}), "a path that leaves the archive"),
]


@pytest.mark.parametrize(("content", "message"), ARCHIVES, ids=[message[:40] for _, message in ARCHIVES])
def test_an_archive_that_lies_gets_one_line(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    with pytest.raises(ModelImportError, match=message):
        read(archive_with(tmp_path / "lie.keras", content), Options())


def link_to_a_file(file: h5py.File, folder: Path) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def link_in_the_file(file: h5py.File, folder: Path) -> None:
    del folder, file["layers/dense/vars"]
    file["layers/dense/vars"] = h5py.SoftLink("/layers/dense_1/vars")


def store_outside(file: h5py.File, folder: Path) -> None:
    (folder / "secret.bin").write_bytes(b"\0" * 192)
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", (6, 8), "f4", external=[(str(folder / "secret.bin"), 0, 192)])


def store_virtually(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((6, 8), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (6, 8))
    del file["layers/dense/vars/0"]
    file.create_virtual_dataset("layers/dense/vars/0", layout)


def store_text(file: h5py.File, folder: Path) -> None:
    del folder, file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = np.full((6, 8), b"text")


def store_infinity(file: h5py.File, folder: Path) -> None:
    del folder
    file["layers/dense/vars/1"][0] = np.inf


WEIGHTS = [
    (link_to_a_file, "the file has a link to another place"),
    (link_in_the_file, "the file has a link to another place"),
    (store_outside, "the array 'kernel' of the layer 'dense' is in another file"),
    (store_virtually, "the array 'kernel' of the layer 'dense' is in another file"),
    (store_text, "which is no number"),
    (store_infinity, "the array 'bias' of the layer 'dense' has a value that is not finite"),
]


@pytest.mark.parametrize(("change", "message"), WEIGHTS, ids=[change.__name__ for change, _ in WEIGHTS])
def test_weights_that_lie_get_one_line(tmp_path: Path, change: Callable[[h5py.File, Path], None], message: str) -> None:
    weights = io.BytesIO(entries()["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        change(file, tmp_path)
    path = archive_with(tmp_path / "lie.keras", entries(**{"model.weights.h5": weights.getvalue()}))
    with pytest.raises(ModelImportError, match=message):
        read(path, Options())


def test_a_huge_array_without_numbers_is_not_allocated(tmp_path: Path) -> None:
    weights = io.BytesIO(entries()["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        for name in ("0", "1"):
            del file[f"layers/dense/vars/{name}"]
        file.create_dataset("layers/dense/vars/0", (6, 2**25), "f4", chunks=(6, 2**10))  # no chunk is written
        file.create_dataset("layers/dense/vars/1", (2**25,), "f4", chunks=(2**10,))
    lie = tmp_path / "weights.keras"
    archive_with(lie, entries(**{"model.weights.h5": weights.getvalue()}))
    path = rewrite(lie, tmp_path / "lie.keras", lambda config: settings(config, 1, units=2**25))
    with pytest.raises(ModelImportError, match="more than the file holds"):
        read(path, Options())


def test_weights_alone_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(entries()["model.weights.h5"])
    with pytest.raises(ModelImportError, match=r"no layers: save the whole model with model.save\('model.keras'\)"):
        read(path, Options())


@pytest.mark.parametrize("name", ["article_3.keras", "article_2.h5"])
def test_a_file_that_is_cut_or_has_other_bytes_never_gives_a_traceback(tmp_path: Path, name: str) -> None:
    content = (FILES / name).read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / name
    for trial in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(damaged[: len(content) if trial % 2 else int(random.integers(len(content)))]))
        try:
            read(path, Options())
        except ModelImportError as error:
            assert "\n" not in str(error)  # noqa: PT017 (a damage in unused bytes changes nothing)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with pytest.raises(ModelImportError, match="no such file"):
        read(path, Options())
    shutil.copy(__file__, path)
    with pytest.raises(ModelImportError, match="is not a Keras file: it is neither a zip archive nor HDF5"):
        read(path, Options())
