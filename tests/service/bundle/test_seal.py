"""The seal finds every change of a manifest and names the field. A bundle without a seal is read with a warning."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, seal
from tests.service.bundle.changes import CHANGES, DIABETES_CHANGES, OLD, swap
from tests.service.mixed import write_mixed
from tests.service.support import edit_manifest


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as refused:
        bundle.read(folder)
    assert "\n" not in refused.value.reason
    return refused.value.reason


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_ten_lines_of_the_standard_library_check_the_seal(digits: bundle.Bundle) -> None:
    content = json.loads((digits.path / "manifest.json").read_bytes())
    found = content.pop("seal")
    assert found["digest"] == digits.digest == sha256(canonical(content)).hexdigest()
    assert found["parts"]["labels"] == sha256(canonical(content["labels"])).hexdigest()
    assert found["parts"]["features.3"] == sha256(canonical(content["features"][3])).hexdigest()
    assert found["parts"]["golden.inputs"] == sha256(canonical(content["golden"]["inputs"])).hexdigest()
    named = {path.partition(".")[0] for path in found["parts"]}
    assert named == content.keys()


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda content: json.dumps(content),
        lambda content: json.dumps(content, indent=7),
        lambda content: json.dumps(content, sort_keys=True),
        lambda content: json.dumps(dict(reversed(content.items()))),
        lambda content: json.dumps(content).replace('"labels"', '"l\\u0061bels"'),
    ],
    ids=["dense", "indented", "sorted", "reversed", "escaped"],
)
def test_spaces_escapes_and_the_order_of_members_do_not_affect_the_seal(
    rewrite: Callable[[dict[str, Any]], str], folder: Path, diabetes: bundle.Bundle
) -> None:
    file = folder / "manifest.json"
    file.write_text(rewrite(json.loads(file.read_text())))
    again = bundle.read(folder)
    assert (again.manifest, again.digest) == (diabetes.manifest, diabetes.digest)


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_of_the_meaning_is_refused_and_names_its_fields(name: str, models: Path) -> None:
    change, fields = CHANGES[name]
    folder = models / ("diabetes" if name in DIABETES_CHANGES else "digits") / "1"
    edit_manifest(folder, change, keep_seal=True)
    reason = refusal(folder)
    assert reason == f"manifest.json was changed after it was written: it differs from its seal in {fields}"


def test_two_swapped_categories_are_refused(empty: Path) -> None:
    folder = write_mixed(empty).path
    edit_manifest(folder, swap("features", 1, "categories"), keep_seal=True)
    assert refusal(folder).endswith("it differs from its seal in features.1")


def test_600_random_flips_do_not_change_the_meaning_of_a_manifest(digits: bundle.Bundle, models: Path) -> None:
    folder = models / "digits" / "1"
    file = folder / "manifest.json"
    whole = file.read_bytes()
    generator = random.Random(19)  # noqa: S311
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            found = bundle.read(folder)
        except BundleError:
            refused += 1
            continue
        assert (found.manifest, found.digest) == (digits.manifest, digits.digest)
    assert refused > 400  # most flips that are accepted turn one white-space character into another


def test_a_flip_in_the_seal_is_refused(folder: Path) -> None:
    def flip(content: dict[str, Any]) -> None:
        digest = content["seal"]["digest"]
        content["seal"]["digest"] = digest[:-1] + ("1" if digest[-1] == "0" else "0")

    edit_manifest(folder, flip, keep_seal=True)
    assert refusal(folder).endswith("it differs from its seal in seal")


@pytest.mark.parametrize(
    "spoilt", [None, 1, [], {}, {"digest": "0" * 64}, {"digest": 1, "parts": []}, {"digest": None, "parts": {}}]
)
def test_a_seal_of_another_form_is_refused(spoilt: object, folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(seal=spoilt), keep_seal=True)
    assert "it differs from its seal in " in refusal(folder)


def test_many_changed_fields_and_odd_names_fit_into_one_line(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["\n\x1b[31m" * 100] = 1
        for feature in content["features"]:
            feature["missing_share"] = 0.5

    edit_manifest(folder, change, keep_seal=True)
    assert refusal(folder).endswith("features.0, features.1, features.2, features.3 and 7 more")
    edit_manifest(folder, lambda content: content.update(seal=seal.compute(content)), keep_seal=True)
    edit_manifest(folder, lambda content: content.update({"\x1b": 2}), keep_seal=True)
    assert refusal(folder).endswith("in a field with another name")


# --- bundles without a seal ------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of a bundle with schema 1."""
    return Path(shutil.copytree(OLD, tmp_path / "old")) / "roots" / "1"


def test_a_bundle_of_schema_1_is_read_with_a_warning_that_names_the_remedy(old: Path) -> None:
    found = bundle.read(old)
    assert (found.manifest.schema_version, found.digest) == (1, None)
    assert found.warning is not None
    assert found.warning.endswith(f"foldserve reseal {old}")


def test_a_sealed_bundle_has_no_warning(digits: bundle.Bundle) -> None:
    assert digits.warning is None
    assert digits.manifest.schema_version == bundle.SCHEMA_VERSION == 2


def test_a_resealed_bundle_differs_only_by_its_schema_and_its_seal(old: Path) -> None:
    before, model = json.loads((old / "manifest.json").read_text()), (old / "model.onnx").read_bytes()
    sealed = bundle.reseal(bundle.read(old))
    after = json.loads((old / "manifest.json").read_text())
    assert after.pop("seal")["digest"] == sealed.digest
    assert after == before | {"schema_version": 2}
    assert (old / "model.onnx").read_bytes() == model
    assert sorted(file.name for file in old.iterdir()) == ["manifest.json", "model.onnx"]
    assert bundle.read(old) == sealed


def test_a_manifest_of_schema_2_can_not_lose_its_seal(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.pop("seal"), keep_seal=True)
    assert refusal(folder) == "manifest.json is not a valid manifest: seal: Field required"


def test_a_sealed_manifest_can_not_become_one_of_schema_1(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(schema_version=1), keep_seal=True)
    assert refusal(folder) == "manifest.json is not a valid manifest: seal: Extra inputs are not permitted"
