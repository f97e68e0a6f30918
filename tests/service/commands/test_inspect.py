"""Tests the tables of a bundle that `foldserve inspect` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foldserve.service import bundle
from foldserve.service.figures import format_figure
from tests.service.mixed import write_mixed
from tests.service.support import assert_refused_in_one_line, edit_manifest, foldserve


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_every_part_of_a_bundle_is_shown(name: str, trained: Path) -> None:
    manifest = bundle.read(trained / name / "1").manifest
    done = foldserve("inspect", trained / name / "1")
    assert (done.returncode, done.stderr) == (0, "")
    expected = [
        *(f"{name}/1", manifest.task, manifest.model.sha256, "metrics", "folded layers"),
        *(part for line in manifest.folded for part in (line.layer, line.rule, line.into)),
        *(format_figure(value) for values in manifest.metrics.values() for value in values.values()),
        *(metric for values in manifest.metrics.values() for metric in values),
        f"certificate, against {manifest.certificate.reference}",
        *(found.runtime for found in manifest.certificate.measurements),
        *(feature.name for feature in manifest.features[:20]),
        *(
            "provenance",
            manifest.provenance.data_sha256,
            manifest.provenance.cpu,
            f"seed         {manifest.provenance.seed}",
        ),
        *(f"{package} {number}" for package, number in manifest.provenance.versions.items()),
    ]
    for text in expected:
        assert text in done.stdout


def test_the_kinds_of_features_are_shown(tmp_path: Path) -> None:
    done = foldserve("inspect", write_mixed(tmp_path).path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    start = lines.index(["features"]) + 2
    assert lines[start : start + 7] == [
        ["0", "age", "numeric", "no", "0", "to", "1"],
        ["1", "town", "categorical", "no", "6", "categories"],
        ["2", "member", "boolean", "no", "0", "to", "1"],
        ["3", "income", "numeric", "25.0%", "0", "to", "1"],
        ["4", "size", "categorical", "12.5%", "3", "categories"],
        ["5", "smokes", "boolean", "0.0%", "0", "to", "1"],
        ["6", "children", "categorical", "no", "3", "categories"],
    ]


def test_markup_in_a_name_is_shown_unchanged(models: Path) -> None:
    digits_folder = models / "digits" / "1"
    edit_manifest(digits_folder, lambda content: content["provenance"].update(source="[red]a[/red]"))
    assert "[red]a[/red]" in foldserve("inspect", digits_folder).stdout


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_name_that_differs_from_the_description_in_the_model_is_refused(flags: tuple[str, ...], models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda content: content["features"][0].update(name="other"))
    assert_refused_in_one_line(foldserve("inspect", models / "digits" / "1", *flags), "the description in model.onnx")


def test_all_shows_every_feature_and_golden_row(digits: bundle.Bundle) -> None:
    manifest = digits.manifest
    shown, hidden = manifest.features[:20], manifest.features[20:]
    some, whole = (foldserve("inspect", digits.path, *flags).stdout for flags in ((), ("--all",)))
    assert all(feature.name in some for feature in shown)
    assert not any(feature.name in some for feature in hidden)
    assert "and 44 more; --all shows them" in some
    assert all(feature.name in whole for feature in manifest.features)
    lines = [line.split() for line in whole.splitlines()]
    first = next(i for i, line in enumerate(lines) if line == ["golden", "rows"])
    cells = [cell for line in lines[first + 2 : lines.index(["provenance"])] for cell in line]
    rows = [*zip(manifest.golden.inputs, manifest.golden.outputs, strict=True)]
    expected = [[i, *inputs, *outputs] for i, (inputs, outputs) in enumerate(rows)]
    # A long row is printed on several lines. The first line of a long row also shows the row's outputs.
    assert sorted(cells) == sorted(f"{value:g}" for row in expected for value in row)


def test_json_has_the_whole_manifest_the_seal_and_the_graph(digits: bundle.Bundle) -> None:
    done = foldserve("inspect", digits.path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert bundle.Manifest.model_validate(found["manifest"]) == digits.manifest
    assert found["seal"] == digits.digest
    assert found["graph"] == {"nodes": ["Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax"], "parameters": 8970}


def test_the_threshold_and_the_ignored_columns_are_shown(tmp_path: Path) -> None:
    folder = write_mixed(tmp_path).path

    def decide(content: dict[str, object]) -> None:
        content["labels"] = ["no", "yes"]
        content["threshold"] = {"positive": "yes", "value": 0.25, "rule": "cost:1,3"}
        content["left_out"] = ["id", "when"]

    edit_manifest(folder, decide)
    lines = [line.split(maxsplit=1) for line in foldserve("inspect", folder).stdout.splitlines()]
    assert ["threshold", "yes from a probability of 0.25 on, by cost:1,3"] in [
        [c.strip() for c in line] for line in lines
    ]
    assert ["ignored", "id, when"] in [[c.strip() for c in line] for line in lines]
