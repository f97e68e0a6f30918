"""The contract: what is written is read back, and what is not whole is refused with the reason."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, Manifest, Tolerance
from tests.service.support import PATIENCE, described, edit_manifest, flip_byte, manifest


def numbered(whole: bundle.Bundle, name: str | None = None) -> Callable[[int], Manifest]:
    """Give `whole`'s manifest any version."""
    changes = {"name": name} if name else {}
    return lambda version: whole.manifest.model_copy(update={"version": version, **changes})


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(models: Path) -> Path:
    """A whole bundle, to be damaged."""
    return models / "diabetes" / "1"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(digits: bundle.Bundle, empty: Path) -> None:
    written = bundle.write(empty, "digits", digits.model, numbered(digits))
    assert written == bundle.read(empty / "digits" / "1")
    assert written.manifest == digits.manifest
    assert written.model == digits.model == (empty / "digits" / "1" / "model.onnx").read_bytes()
    assert everything_in(empty) == ["digits", "digits/1", "digits/1/manifest.json", "digits/1/model.onnx"]


def test_the_manifest_on_disk_is_json_with_the_hash_and_size_of_the_model(digits: bundle.Bundle) -> None:
    content = json.loads((digits.path / "manifest.json").read_bytes(), parse_constant=pytest.fail)
    assert content["schema_version"] == 1
    assert content["model"]["size"] == len(digits.model)
    assert content["model"]["sha256"] == sha256(digits.model).hexdigest()


@pytest.mark.parametrize(
    "labels", [(False, True), (0, 1, 2), (0.5, 1.0), ("0", "one"), (True, 2, 3.5, "4")], ids=lambda found: repr(found)
)
def test_labels_keep_their_json_type(labels: tuple[bundle.Label, ...], empty: Path) -> None:
    written = bundle.write(empty, "made", b"model", lambda n: manifest(b"model", version=n, labels=labels))
    assert [(type(label), label) for label in written.manifest.labels] == [(type(label), label) for label in labels]


def test_a_bundle_can_be_read_by_another_user(digits: bundle.Bundle, empty: Path) -> None:
    written = bundle.write(empty, "digits", digits.model, numbered(digits))
    assert written.path.stat().st_mode & 0o777 == 0o755


def test_versions_count_up(diabetes: bundle.Bundle, empty: Path) -> None:
    written = [bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes)) for _ in range(3)]
    assert [whole.manifest.version for whole in written] == [1, 2, 3]
    assert [whole.path.name for whole in written] == ["1", "2", "3"]
    assert bundle.versions(empty / "diabetes") == [1, 2, 3]


def test_versions_are_ordered_as_numbers_and_a_gap_is_not_filled(diabetes: bundle.Bundle, empty: Path) -> None:
    for name in ("2", "10", "9"):
        (empty / "diabetes" / name).mkdir(parents=True)
    assert bundle.versions(empty / "diabetes") == [2, 9, 10]
    assert bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes)).path.name == "11"


@pytest.mark.parametrize("name", [".partial-x", "01", "abc", "0", "-2", "2.0", "2 ", "+2", "٢", "²", "2_0", "9" * 19])
def test_a_folder_that_is_no_plain_integer_is_no_version(name: str, models: Path, diabetes: bundle.Bundle) -> None:
    (models / "diabetes" / name).mkdir()
    assert bundle.versions(models / "diabetes") == [1]
    assert bundle.write(models, "diabetes", diabetes.model, numbered(diabetes)).path.name == "2"


def test_a_file_with_the_name_of_a_version_does_not_hang_the_writer(models: Path, diabetes: bundle.Bundle) -> None:
    (models / "diabetes" / "2").write_text("no folder")
    asked: list[int] = []

    def once(version: int) -> Manifest:
        # A writer that lost a race is asked for another number: the same one twice means that it spins.
        assert version not in asked
        asked.append(version)
        return numbered(diabetes)(version)

    try:
        written = bundle.write(models, "diabetes", diabetes.model, once)
    except BundleError:
        assert bundle.versions(models / "diabetes") == [1]
    else:
        assert written.path.name == "3"


def test_writers_at_the_same_time_get_different_versions_and_every_bundle_is_whole(
    digits: bundle.Bundle, diabetes: bundle.Bundle, empty: Path
) -> None:
    writers = 4
    all_want_the_same_version = threading.Barrier(writers, timeout=PATIENCE)

    def write(whole: bundle.Bundle) -> bundle.Bundle:
        asked: list[int] = []

        def manifest_for(version: int) -> Manifest:
            asked.append(version)
            if len(asked) == 1:
                all_want_the_same_version.wait()
            return numbered(whole, "mixed")(version)

        written = bundle.write(empty, "mixed", whole.model, manifest_for)
        assert asked[0] == 1
        return written

    sources = [digits, diabetes] * (writers // 2)
    with ThreadPoolExecutor(writers) as pool:
        written = list(pool.map(write, sources))
    assert sorted(whole.manifest.version for whole in written) == [1, 2, 3, 4]
    for source, whole in zip(sources, written, strict=True):
        assert bundle.read(empty / "mixed" / str(whole.manifest.version)) == whole
        assert whole.model == source.model
    assert sorted(path.name for path in (empty / "mixed").iterdir()) == ["1", "2", "3", "4"]


def test_a_writer_that_fails_leaves_nothing_behind(diabetes: bundle.Bundle, empty: Path) -> None:
    def fails(_: int) -> Manifest:
        raise LookupError

    with pytest.raises(LookupError):
        bundle.write(empty, "diabetes", diabetes.model, fails)
    assert everything_in(empty) == []


def test_a_writer_that_fails_leaves_the_versions_before_it(diabetes: bundle.Bundle, models: Path) -> None:
    before = everything_in(models)

    def fails(_: int) -> Manifest:
        raise LookupError

    with pytest.raises(LookupError):
        bundle.write(models, "diabetes", diabetes.model, fails)
    assert everything_in(models) == before
    assert bundle.read(models / "diabetes" / "1").manifest == diabetes.manifest


def test_a_report_lies_beside_the_model_and_no_reader_minds(diabetes: bundle.Bundle, empty: Path) -> None:
    written = bundle.write(empty, "d", diabetes.model, numbered(diabetes, "d"), lambda found: f"<p>é {found.name}</p>")
    assert everything_in(empty) == ["d", "d/1", "d/1/manifest.json", "d/1/model.onnx", "d/1/report.html"]
    assert (written.path / "report.html").read_bytes() == "<p>é d</p>".encode()
    assert bundle.read(written.path) == written
    assert bundle.versions(empty / "d") == [1]


def test_a_report_is_of_the_version_that_was_written(diabetes: bundle.Bundle, empty: Path) -> None:
    def takes_the_first(version: int) -> Manifest:
        if version == 1:
            (empty / "diabetes" / "1" / "in the way").mkdir(parents=True)
        return numbered(diabetes)(version)

    written = bundle.write(empty, "diabetes", diabetes.model, takes_the_first, lambda found: str(found.version))
    assert written.path.name == (written.path / "report.html").read_text() == "2"


def test_a_report_that_fails_leaves_nothing_behind(diabetes: bundle.Bundle, empty: Path) -> None:
    def fails(_: Manifest) -> str:
        raise LookupError

    with pytest.raises(LookupError):
        bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes), fails)
    assert everything_in(empty) == []


def test_a_manifest_of_another_model_is_not_written(diabetes: bundle.Bundle, empty: Path) -> None:
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        bundle.write(empty, "diabetes", diabetes.model + b"x", numbered(diabetes))
    assert everything_in(empty) == []


def test_a_missing_models_folder_is_refused(diabetes: bundle.Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        bundle.write(tmp_path / "none", "diabetes", diabetes.model, numbered(diabetes))
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("name", ["models", "models/diabetes"])
def test_a_file_in_place_of_a_folder_is_refused_and_stays(name: str, diabetes: bundle.Bundle, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(BundleError):
        bundle.write(tmp_path / "models", "diabetes", diabetes.model, numbered(diabetes))
    assert file.read_text() == "mine"


def test_a_folder_that_vanishes_meanwhile_is_a_refusal(diabetes: bundle.Bundle, empty: Path) -> None:
    def removes_the_folder(version: int) -> Manifest:
        shutil.rmtree(empty / "diabetes")
        return numbered(diabetes)(version)

    with pytest.raises(BundleError, match="can't write there"):
        bundle.write(empty, "diabetes", diabetes.model, removes_the_folder)


# --- names -----------------------------------------------------------------------------------------------------------

BAD_NAMES = ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-flag", "_x", "a.", "a-", "a b", "a\n", "a\0b", "é"]
BAD_NAMES += ["a:predict", "a%2e", "x" * 65]


@pytest.mark.parametrize("name", ["a", "A1", "digits", "my-model_2.1", "x" * 64, "a_", "0"])
def test_a_name_is_letters_digits_and_signs_in_between(name: str) -> None:
    assert bundle.NAME.fullmatch(name)
    assert manifest(name=name).name == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_more_than_a_plain_folder_is_refused(name: str) -> None:
    assert not bundle.NAME.fullmatch(name)
    with pytest.raises(ValidationError, match="name"):
        manifest(name=name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_nothing_is_written_under_a_name_that_is_none(name: str, diabetes: bundle.Bundle, empty: Path) -> None:
    with pytest.raises(BundleError):
        bundle.write(empty, name, diabetes.model, numbered(diabetes))
    assert everything_in(empty.parent) == ["models"]


def test_nothing_is_written_for_a_manifest_of_another_name_or_version(diabetes: bundle.Bundle, empty: Path) -> None:
    with pytest.raises(BundleError):
        bundle.write(empty, "other", diabetes.model, numbered(diabetes))
    with pytest.raises(BundleError):
        bundle.write(empty, "diabetes", diabetes.model, lambda n: numbered(diabetes)(n + 1))
    assert everything_in(empty) == []


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.read(tmp_path / "none")


def test_a_refusal_names_the_folder_and_keeps_the_reason_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as refused:
        bundle.read(tmp_path)
    assert str(refused.value) == f"{tmp_path}: can't read manifest.json: No such file or directory"
    assert refused.value.reason == "can't read manifest.json: No such file or directory"


@pytest.fixture(scope="module")
def copied(diabetes: bundle.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle whose model every example replaces."""
    return Path(shutil.copytree(diabetes.path, tmp_path_factory.mktemp("copied") / "1"))


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_at_any_position_is_refused(
    diabetes: bundle.Bundle, copied: Path, share: float, bit: int
) -> None:
    damaged = bytearray(diabetes.model)
    damaged[int(share * len(damaged))] ^= 1 << bit
    (copied / "model.onnx").write_bytes(damaged)
    with pytest.raises(BundleError, match="its sha256 is not the manifest's"):
        bundle.read(copied)


@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_flipped_byte_at_either_end_is_refused(position: int, folder: Path) -> None:
    flip_byte(folder / "model.onnx", position)
    with pytest.raises(BundleError, match="its sha256 is not the manifest's"):
        bundle.read(folder)


@pytest.mark.parametrize("size", [0, 1, 5000, -1])
def test_a_truncated_model_is_refused(size: int, folder: Path, diabetes: bundle.Bundle) -> None:
    (folder / "model.onnx").write_bytes(diabetes.model[:size])
    with pytest.raises(BundleError, match=rf"bytes, the manifest says {len(diabetes.model)}"):
        bundle.read(folder)


def test_a_model_with_something_behind_it_is_refused(folder: Path, diabetes: bundle.Bundle) -> None:
    (folder / "model.onnx").write_bytes(diabetes.model + b"\0")
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        bundle.read(folder)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"can't read {name}: No such file or directory"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not JSON",
        b"\xff\xfe{}",
        b"{} {}",
        b"\0" * 100,
        b'{"schema_version": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "text", "bytes", "trailing", "zeros", "5000 digits", "nested"],
)
def test_a_manifest_that_is_not_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        bundle.read(folder)


@pytest.mark.parametrize("content", ["[]", "null", "1", '"text"', "{}"])
def test_json_that_is_no_manifest_is_refused(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not a valid manifest"):
        bundle.read(folder)


def test_a_manifest_of_a_newer_schema_is_named_as_such_whatever_else_it_holds(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(schema_version=2, invented_later=[]))
    with pytest.raises(BundleError, match="made by a newer foldserve: manifest schema 2, this one reads 1"):
        bundle.read(folder)


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", True, None, []], ids=repr)
def test_a_schema_version_that_never_was_is_refused(version: object, folder: Path) -> None:
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
def test_a_number_that_json_does_not_have_is_refused(place: tuple[Any, ...], value: float, folder: Path) -> None:
    def spoil(content: Any) -> None:
        *path, last = place
        for step in path:
            content = content[step]
        assert content[last] is not None  # the place is there
        content[last] = value

    edit_manifest(folder, spoil)
    with pytest.raises(BundleError, match=r"manifest\.json is"):
        bundle.read(folder)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_past_a_double_is_refused_wherever_any_value_may_stand(number: str, folder: Path) -> None:
    edit_manifest(folder, lambda content: content["provenance"]["hyperparameters"].update(extra="HERE"))
    manifest_file = folder / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace('"HERE"', number))
    with pytest.raises(BundleError, match=r"manifest\.json is"):
        bundle.read(folder)


@pytest.mark.parametrize("label", ["\ud800", 2**70, math.nan], ids=["lone surrogate", "2**70", "NaN"])
def test_a_label_that_no_answer_can_carry_is_refused(label: Any, models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["labels"].__setitem__(0, label))
    with pytest.raises(BundleError, match=r"manifest\.json is"):
        bundle.read(models / "digits" / "1")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".a", "a\n"])
def test_a_manifest_with_a_name_that_is_no_folder_is_refused(name: str, folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(name=name))
    with pytest.raises(BundleError, match="is not a valid manifest: name"):
        bundle.read(folder)


@pytest.mark.parametrize("file", ["../model.onnx", "/etc/passwd", "other.onnx"])
def test_a_manifest_can_not_point_at_another_file(file: str, folder: Path) -> None:
    edit_manifest(folder, lambda content: content["model"].update(file=file))
    with pytest.raises(BundleError, match=r"is not a valid manifest: model\.file"):
        bundle.read(folder)


def test_two_features_of_one_name_are_refused(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["features"][1].update(name=content["features"][0]["name"]))
    with pytest.raises(BundleError, match="features"):
        bundle.read(folder)


def feature(**changes: Any) -> bundle.Feature:
    return bundle.Feature.model_validate(described({"name": "a", **changes}))


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
        ({"kind": "text"}, "'numeric', 'boolean' or 'categorical'"),
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


# --- tolerance -------------------------------------------------------------------------------------------------------

# Powers of two, so that the boundary is met exactly.
TOLERANCE = Tolerance(absolute=0.25, relative=0.125)


def measured_by_hand(reference: np.ndarray, output: np.ndarray, tolerance: Tolerance) -> dict[str, float]:
    """The definitions of `Parity`, one number at a time."""
    absolute, relative, worst, clear, same = [0.0], [0.0], [0.0], 0, 0
    for expected, found in zip(reference.tolist(), output.tolist(), strict=True):
        for want, have in zip(expected, found, strict=True):
            off = abs(have - want)
            absolute.append(off)
            worst.append(off / (tolerance.absolute + tolerance.relative * abs(want)))
            if tolerance.relative * abs(want) >= tolerance.absolute:
                relative.append(off / abs(want))
        second, first = sorted(expected)[-2:] if len(expected) > 1 else (0.0, 0.0)
        if first - second > tolerance.absolute + tolerance.relative * abs(first):
            clear += 1
            same += max(range(len(found)), key=found.__getitem__) == expected.index(first)
    return {
        "rows": len(reference),
        "max_absolute": max(absolute),
        "max_relative": max(relative),
        "worst": max(worst),
        "argmax_rows": clear,
        "argmax_agreement": same / clear if clear else 1.0,
    }


@given(
    st.tuples(st.integers(1, 6), st.integers(2, 4)).flatmap(
        lambda shape: st.tuples(
            arrays.arrays(np.float64, shape, elements=st.floats(-8, 8)),
            arrays.arrays(np.float32, shape, elements=st.floats(-8, 8, width=32)),
        )
    )
)
def test_a_measurement_is_what_its_definitions_say(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, output = pair
    assert TOLERANCE.measure(reference, output).model_dump() == pytest.approx(
        measured_by_hand(reference, output, TOLERANCE), rel=1e-12, abs=1e-300
    )


def test_what_lies_exactly_on_the_tolerance_holds_and_the_next_number_does_not() -> None:
    reference = np.array([[2.0], [-2.0], [0.0]])
    allowed = np.array([[0.5], [0.5], [0.25]])
    on = TOLERANCE.measure(reference, reference + allowed)
    assert on.worst == 1
    assert on.holds
    past = TOLERANCE.measure(reference, np.nextafter(reference + allowed, np.inf))
    assert past.worst > 1
    assert not past.holds


def test_the_argmax_counts_only_where_the_reference_is_clear() -> None:
    reference = np.array([[0.9, 0.1], [0.5, 0.5001], [0.1, 0.9]])
    swapped_where_unclear = np.array([[0.9, 0.1], [0.5001, 0.5], [0.1, 0.9]])
    parity = TOLERANCE.measure(reference, swapped_where_unclear)
    assert (parity.argmax_rows, parity.argmax_agreement) == (2, 1.0)
    assert parity.holds
    swapped_where_clear = np.array([[0.1, 0.9], [0.5, 0.5001], [0.1, 0.9]])
    parity = TOLERANCE.measure(reference, swapped_where_clear)
    assert (parity.argmax_rows, parity.argmax_agreement) == (2, 0.5)
    assert not parity.holds


def test_another_argmax_fails_even_where_every_value_is_within_the_tolerance() -> None:
    # Both move by just under what is allowed, towards each other: the gap may be twice that.
    parity = TOLERANCE.measure(np.array([[1.0, 0.5]]), np.array([[0.7, 0.8]]))
    assert parity.worst <= 1
    assert parity.argmax_agreement == 0
    assert not parity.holds


def test_no_clear_row_is_no_disagreement() -> None:
    parity = TOLERANCE.measure(np.array([[0.5, 0.5]]), np.array([[0.4, 0.6]]))
    assert (parity.argmax_rows, parity.argmax_agreement) == (0, 1.0)
    assert parity.holds


def test_one_output_has_no_argmax() -> None:
    parity = TOLERANCE.measure(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]))
    assert (parity.argmax_rows, parity.argmax_agreement) == (None, None)
    assert parity.holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(BundleError, match="not finite"):
        TOLERANCE.measure(np.zeros((2, 2)), np.array([[0, 0], [0, value]], np.float32))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 2), (2, 1), (2,), (4,), (1, 2, 2)])
def test_an_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match="expected \\(2, 2\\)"):
        TOLERANCE.measure(np.zeros((2, 2)), np.zeros(shape, np.float32))


@pytest.mark.parametrize("values", [{"absolute": 0}, {"relative": 0}, {"absolute": -1}, {"relative": math.nan}])
def test_a_tolerance_is_above_zero(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Tolerance(**{"absolute": 1.0, "relative": 1.0} | values)


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
def test_a_certificate_that_certifies_nothing_is_refused(edit: Callable[[Any], None], models: Path) -> None:
    edit_manifest(models / "digits" / "1", edit)
    with pytest.raises(BundleError, match="certif"):
        bundle.read(models / "digits" / "1")


def test_two_labels_that_are_the_same_are_refused(models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["labels"].__setitem__(3, 7))
    with pytest.raises(BundleError, match="two labels are the same"):
        bundle.read(models / "digits" / "1")


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from foldserve.service import bundle

    source, folder = bundle.read(Path(sys.argv[1])), Path(sys.argv[2])

    def write(models):
        manifest = lambda number: source.manifest.model_copy(update={"version": number})
        return bundle.write(models, source.manifest.name, source.model, manifest)

    def killed_at(models, left):
        def count(event, arguments):
            nonlocal left
            if str(models) in str(arguments[:2]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)

    for step in range(1000):
        models = folder / str(step)
        models.mkdir()
        if not (child := os.fork()):
            killed_at(models, step)
            write(models)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # What is there is whole, or there is nothing; and either way the next version can be written.
        there = list(models.glob("[!.]*/*"))
        assert [bundle.read(path).model for path in there] == [source.model] * len(there)
        assert len(there) <= 1
        print("killed" if status else "ended", len(there))
        assert write(models).manifest.version == len(there) + 1
        if not status:
            break
""")


def test_killed_at_any_step_of_a_write_a_bundle_is_whole_or_absent(digits, tmp_path):
    command = [sys.executable, "-c", KILLED, str(digits.path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *killed, last = done.stdout.splitlines()
    assert last == "ended 1"
    # It comes at one step, and stays.
    assert killed == sorted(killed)
    assert {"killed 0", "killed 1"} == set(killed)
