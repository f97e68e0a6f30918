"""`foldserve inspect`: the tables of a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from foldserve.service import bundle
from tests.service.mixed import write_mixed
from tests.service.support import edit_manifest, foldserve


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_every_part_of_a_bundle_is_shown(name: str, trained: Path) -> None:
    manifest = bundle.read(trained / name / "1").manifest
    done = foldserve("inspect", trained / name / "1")
    assert (done.returncode, done.stderr) == (0, "")
    expected = [
        *(f"{name}/1", manifest.task, manifest.model.sha256, "metrics", "folded layers"),
        *(part for line in manifest.folded for part in (line.layer, line.rule, line.into)),
        *(f"{value:.4f}" for values in manifest.metrics.values() for value in values.values()),
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
    edit_manifest(digits_folder, lambda content: content["features"][0].update(name="[red]a[/red]"))
    assert "[red]a[/red]" in foldserve("inspect", digits_folder).stdout
