"""`foldserve copy` writes a complete, sealed bundle under another name. The copy passes `verify` and can be served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foldserve.service import bundle
from tests.service.bundle.changes import OLD, swap
from tests.service.support import assert_refused_in_one_line, edit_manifest, foldserve, serving


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_copy_is_the_same_model_under_another_name(models: Path, tmp_path: Path) -> None:
    source = bundle.read(models / "digits" / "1")
    done = foldserve("copy", source.path, "numbers")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"wrote {models / 'numbers' / '1'}, the model of digits/1"
    copied = bundle.read(models / "numbers" / "1")
    assert copied.model == source.model
    assert copied.manifest == source.manifest.model_copy(update={"name": "numbers"})
    assert copied.digest not in (None, source.digest)
    assert (copied.path / "report.html").read_bytes() == (source.path / "report.html").read_bytes()
    assert "copied as it is: it is the report of digits/1" in done.stdout
    assert foldserve("verify", copied.path).returncode == 0
    with serving(models, tmp_path / "log") as served:
        assert served.send("GET", "/v1/models/numbers").json()["ready"] is True
    # A second copy becomes the next version, and the source stays unchanged.
    assert foldserve("copy", copied.path, "numbers").returncode == 0
    assert names(models / "numbers") == ["1", "2"]
    assert bundle.read(source.path) == source


def test_a_renamed_folder_can_be_copied(models: Path) -> None:
    renamed = (models / "digits").rename(models / "numbers")
    assert foldserve("copy", renamed / "1", "numbers").returncode == 0
    assert bundle.read(renamed / "2").manifest.name == "numbers"


def test_a_copy_can_go_to_another_folder_of_models(models: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert foldserve("copy", models / "digits" / "1", "digits", "--models", elsewhere).returncode == 0
    assert names(elsewhere) == ["digits"]


def test_a_bundle_of_schema_1_is_sealed_in_its_copy(tmp_path: Path) -> None:
    models = Path(shutil.copytree(OLD, tmp_path / "models"))
    done = foldserve("copy", models / "roots" / "1", "squares")
    assert (done.returncode, done.stderr) == (0, "")
    assert "warn  seal" in done.stdout
    assert "report" not in done.stdout
    assert bundle.read(models / "squares" / "1").digest is not None
    assert bundle.read(models / "roots" / "1").digest is None


@pytest.mark.parametrize("name", ["../digits", "a/b", ".hidden", ""])
def test_an_invalid_name_writes_nothing(name: str, models: Path) -> None:
    before = names(models)
    done = foldserve("copy", models / "digits" / "1", name)
    assert done.returncode == 1
    assert "is not a valid name for a model" in done.stderr
    assert names(models) == before


def test_a_changed_bundle_is_not_copied(models: Path) -> None:
    edit_manifest(models / "digits" / "1", swap("labels"), keep_seal=True)
    assert_refused_in_one_line(foldserve("copy", models / "digits" / "1", "numbers"), "differs from its seal in labels")
    assert names(models) == ["diabetes", "digits"]
