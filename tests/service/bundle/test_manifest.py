"""A manifest keeps its values and their JSON types when it is written and read. A manifest that contradicts itself is
refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from foldserve.service import bundle
from foldserve.service.bundle import BundleError
from tests.service.support import edit_manifest, feature_fields, manifest

BAD_NAMES = ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-flag", "_x", "a.", "a-", "a b", "a\n", "a\0b", "é"]


BAD_NAMES += ["a:predict", "a%2e", "x" * 65]


@pytest.mark.parametrize("name", ["a", "A1", "digits", "my-model_2.1", "x" * 64, "a_", "0"])
def test_a_name_has_letters_and_digits_with_signs_between_them(name: str) -> None:
    assert bundle.NAME.fullmatch(name)
    assert manifest(name=name).name == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_any_other_name_is_refused(name: str) -> None:
    assert not bundle.NAME.fullmatch(name)
    with pytest.raises(ValidationError, match="name"):
        manifest(name=name)


@pytest.mark.parametrize("content", ["[]", "null", "1", '"text"', "{}"])
def test_json_of_another_structure_is_refused(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not a valid manifest"):
        bundle.read(folder)


def test_a_manifest_of_a_newer_schema_is_refused_as_newer_with_any_fields(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(schema_version=3, invented_later=[]))
    with pytest.raises(BundleError, match="made by a newer foldserve: manifest schema 3, this one reads 2"):
        bundle.read(folder)


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", True, None, []], ids=repr)
def test_an_invalid_schema_version_is_refused(version: object, folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(schema_version=version))
    with pytest.raises(BundleError, match="schema_version"):
        bundle.read(folder)


def test_a_manifest_without_a_schema_version_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.pop("schema_version"))
    with pytest.raises(BundleError, match="schema_version"):
        bundle.read(folder)


@pytest.mark.parametrize("part", [(), ("model",), ("features", 0), ("certificate", "tolerance"), ("provenance",)])
def test_an_unknown_field_is_refused(part: tuple[Any, ...], folder: Path) -> None:
    def add(content: Any) -> None:
        for step in part:
            content = content[step]
        content["unheard_of"] = 1

    edit_manifest(folder, add)
    with pytest.raises(BundleError, match=r"unheard_of: Extra inputs are not permitted"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "field", ["name", "task", "model", "features", "labels", "certificate", "golden", "provenance"]
)
def test_a_missing_field_is_named(field: str, folder: Path) -> None:
    edit_manifest(folder, lambda content: content.pop(field))
    with pytest.raises(BundleError, match=f"is not a valid manifest: {field}: Field required"):
        bundle.read(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "place",
    [
        ("golden", "outputs", 0, 0),
        ("golden", "inputs", 0, 0),
        ("features", 0, "range", 0),
        ("metrics", "test", "rmse"),
        ("certificate", "tolerance", "absolute"),
        ("certificate", "measurements", 0, "parity", "worst"),
        ("provenance", "hyperparameters", "dropout"),
    ],
    ids=lambda place: place[0],
)
def test_a_number_outside_json_is_refused(place: tuple[Any, ...], value: float, folder: Path) -> None:
    def spoil(content: Any) -> None:
        *path, last = place
        for step in path:
            content = content[step]
        assert content[last] is not None  # the change must not add a field
        content[last] = value

    edit_manifest(folder, spoil)
    with pytest.raises(BundleError, match=r"manifest\.json is"):
        bundle.read(folder)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_beyond_float64_is_refused_in_a_field_of_any_type(number: str, folder: Path) -> None:
    value = float(number)  # edit_manifest renews the seal, so only the number is wrong
    edit_manifest(folder, lambda content: content["provenance"]["hyperparameters"].update(extra=value))
    manifest_file = folder / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace(f'"extra": {json.dumps(value)}', f'"extra": {number}'))
    with pytest.raises(BundleError, match=r"manifest\.json is"):
        bundle.read(folder)


@pytest.mark.parametrize("label", ["\ud800", 2**70, math.nan], ids=["lone surrogate", "2**70", "NaN"])
def test_a_label_that_json_can_not_carry_is_refused(label: Any, models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["labels"].__setitem__(0, label))
    with pytest.raises(BundleError, match=r"manifest\.json is"):
        bundle.read(models / "digits" / "1")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".a", "a\n"])
def test_a_manifest_with_an_invalid_name_is_refused(name: str, folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(name=name))
    with pytest.raises(BundleError, match="is not a valid manifest: name"):
        bundle.read(folder)


@pytest.mark.parametrize("file", ["../model.onnx", "/etc/passwd", "other.onnx"])
def test_a_manifest_can_not_point_at_another_file(file: str, folder: Path) -> None:
    edit_manifest(folder, lambda content: content["model"].update(file=file))
    with pytest.raises(BundleError, match=r"is not a valid manifest: model\.file"):
        bundle.read(folder)


def test_two_features_with_the_same_name_are_refused(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["features"][1].update(name=content["features"][0]["name"]))
    with pytest.raises(BundleError, match="features"):
        bundle.read(folder)


def feature(**changes: Any) -> bundle.Feature:
    return bundle.Feature.model_validate(feature_fields({"name": "a", **changes}))


@pytest.mark.parametrize(
    "categories", [("a", "b"), (1, 2), (0.5, 2), ("1", 1), ("", "é", 7, -0.5), (2**63,)], ids=lambda found: repr(found)
)
def test_categories_keep_their_json_type_and_order(categories: tuple[Any, ...], empty: Path) -> None:
    features = [{"name": "a", "kind": "categorical", "categories": categories, "missing": True, "missing_share": 0.5}]
    written = bundle.write(empty, "made", b"model", lambda n: manifest(b"model", version=n, features=features))
    (found,) = written.manifest.features
    assert [(type(one), one) for one in found.categories] == [(type(one), one) for one in categories]
    assert (found.kind, found.range, found.missing_share) == ("categorical", None, 0.5)
    assert found.histogram.edges[0] == -0.5
    assert len(found.histogram.counts) == len(categories)


def test_a_feature_of_an_older_manifest_is_numeric_and_never_missing() -> None:
    found = bundle.Feature.model_validate({"name": "a", "range": [0, 1], "histogram": {"edges": [0, 1], "counts": [1]}})
    assert (found.kind, found.missing, found.categories, found.missing_share) == ("numeric", False, (), 0)


CATEGORICAL = {"kind": "categorical", "categories": ("a", "b")}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "categorical", "categories": ()}, "a categorical feature has categories, and no other"),
        ({"categories": ("a",)}, "a categorical feature has categories, and no other"),
        ({"kind": "boolean", "categories": (0, 1)}, "a categorical feature has categories, and no other"),
        ({"range": None}, "a feature has a range, unless it is categorical"),
        ({"kind": "boolean", "range": None}, "a feature has a range, unless it is categorical"),
        ({**CATEGORICAL, "range": (0, 1)}, "a feature has a range, unless it is categorical"),
        ({"kind": "categorical", "categories": ("a", "b", "a")}, "two categories are the same"),
        ({"kind": "categorical", "categories": (1, 2, 1.0)}, "two categories are the same"),
        ({**CATEGORICAL, "histogram": {"edges": (-0.5, 0.5), "counts": (1,)}}, "one bin for each category"),
        ({"missing_share": 0.25}, "a share of the rows is missing in a feature without missing values"),
        ({"missing": True, "missing_share": 1.5}, "less than or equal to 1"),
        ({"missing": True, "missing_share": -0.5}, "greater than or equal to 0"),
        ({"kind": "text"}, "'numeric', 'boolean', 'categorical' or 'time'"),
        ({"kind": "time"}, "a feature of times has no reading"),
        *(
            ({"kind": "categorical", "categories": ("a", value)}, "categories")
            for value in (True, None, math.nan, math.inf, 2**64, -(2**63) - 1, [1])
        ),
    ],
    ids=repr,
)
def test_a_feature_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        feature(**changes)


@pytest.mark.parametrize(
    ("kind", "admitted", "refused"),
    [
        ({}, [0.0, -1.5, 1e30], [None]),
        ({"missing": True}, [0.0, None], []),
        ({"kind": "boolean"}, [0.0, 1.0], [2.0, -1.0, 0.5, None]),
        ({**CATEGORICAL, "missing": True}, [0.0, 1.0, 2.0, None], [3.0, -1.0, 1.5]),
    ],
)
def test_a_feature_admits_its_own_codes(kind: dict[str, Any], admitted: list[Any], refused: list[Any]) -> None:
    assert all(map(feature(**kind).admits, admitted))
    assert not any(map(feature(**kind).admits, refused))


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["certificate"].update(measurements=[]),
        lambda content: content["certificate"]["measurements"][0]["parity"].update(worst=900.0),
        lambda content: content["certificate"]["measurements"][0]["parity"].update(argmax_agreement=0.9),
        lambda content: content["certificate"]["tolerance"].update(absolute=1e9),
        lambda content: content["certificate"]["tolerance"].update(relative=1e9),
    ],
    ids=["no measurements", "one that fails", "another argmax", "wide absolute", "wide relative"],
)
def test_a_certificate_without_evidence_is_refused(edit: Callable[[Any], None], models: Path) -> None:
    edit_manifest(models / "digits" / "1", edit)
    with pytest.raises(BundleError, match="certif"):
        bundle.read(models / "digits" / "1")


def test_two_equal_labels_are_refused(models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["labels"].__setitem__(3, 7))
    with pytest.raises(BundleError, match="two labels are the same"):
        bundle.read(models / "digits" / "1")
