"""A metadata entry of model.onnx describes the features and labels. When a bundle is loaded, this description is
compared with the manifest.
"""

from __future__ import annotations

import json
from hashlib import sha256

import onnx
import onnxruntime as ort
import pytest

from foldserve.service import bundle
from foldserve.service.errors import BundleError
from foldserve.service.runtime.load import load
from foldserve.service.runtime.session import Options
from foldserve.training.pipeline import run
from foldserve.training.plan import DataOptions, Plan, Recipe
from tests.service.support import edit_manifest

ROWS = [f"{i % 7},{('x', 'y', '?')[i % 3]},{('no', 'yes')[i % 2]}" for i in range(60)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A bundle with a category that may be missing."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "t.csv").write_text("\n".join(["n,c,answer", *ROWS]))
    data = DataOptions(str(folder / "t.csv"), missing=("?",))
    written = run(Plan(data=data, name="mixed", models=folder / "models", recipe=Recipe(epochs=2)))
    return written.bundle


def test_the_file_alone_tells_its_labels_features_categories_and_missing_texts(mixed):
    session = ort.InferenceSession(mixed.model, providers=["CPUExecutionProvider"])
    (entry,) = session.get_modelmeta().custom_metadata_map.items()
    assert entry[0] == "foldserve"
    assert json.loads(entry[1]) == {
        "task": "classification",
        "target": {"name": "answer"},
        "labels": ["no", "yes"],
        "features": [
            {"name": "n", "kind": "numeric", "missing": False, "reading": {"missing": ["?"]}},
            {
                "name": "c",
                "kind": "categorical",
                "missing": True,
                "categories": ["x", "y"],
                "reading": {"missing": ["?"]},
            },
        ],
    }


def repackage(found, model, folder):
    """Copy a bundle, and replace the model in the copy by `model`. The hash and the seal of the copy are right."""
    copy = bundle.write(folder, found.manifest.name, found.model, lambda _: found.manifest)
    (copy.path / bundle.MODEL_FILE).write_bytes(model)
    hashed = {"size": len(model), "sha256": sha256(model).hexdigest()}
    edit_manifest(copy.path, lambda content: content["model"].update(hashed))
    return copy.path


def with_description(model, edit):
    proto = onnx.load_model_from_string(model)
    content = json.loads(proto.metadata_props[0].value)
    edit(content)
    proto.metadata_props[0].value = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return proto.SerializeToString()


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["labels"].reverse(),
        lambda content: content["features"].reverse(),
        lambda content: content["features"][1]["categories"].reverse(),
        lambda content: content["features"][1]["reading"].update(missing=["NA"]),
        lambda content: content.pop("target"),
    ],
    ids=["labels", "features", "categories", "missing texts", "target"],
)
def test_a_description_that_differs_from_the_manifest_is_refused(mixed, tmp_path, edit):
    path = repackage(mixed, with_description(mixed.model, edit), tmp_path)
    with pytest.raises(BundleError, match=r"the description in model\.onnx does not have the manifest's features"):
        load(bundle.read(path), Options("cpu"))


def test_a_changed_manifest_with_a_new_seal_is_refused_too(mixed, tmp_path):
    copy = bundle.write(tmp_path, "mixed", mixed.model, lambda _: mixed.manifest)
    edit_manifest(copy.path, lambda content: content["labels"].reverse())
    with pytest.raises(BundleError, match=r"the description in model\.onnx"):
        load(bundle.read(copy.path), Options("cpu"))


def test_a_model_without_a_description_loads(mixed, tmp_path):
    proto = onnx.load_model_from_string(mixed.model)
    del proto.metadata_props[:]
    load(bundle.read(repackage(mixed, proto.SerializeToString(), tmp_path)), Options("cpu"))
