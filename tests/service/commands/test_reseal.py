"""`foldserve reseal` checks a bundle without a seal, and replaces its manifest completely or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foldserve.service import bundle
from tests.service.bundle.changes import OLD, swap
from tests.service.support import assert_refused_in_one_line, edit_manifest, flip_byte, foldserve


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of a bundle with schema 1."""
    return Path(shutil.copytree(OLD, tmp_path / "models")) / "roots" / "1"


def test_a_bundle_of_schema_1_gets_a_seal_after_every_check(old: Path) -> None:
    model = (old / "model.onnx").read_bytes()
    done = foldserve("reseal", old)
    assert (done.returncode, done.stderr) == (0, "")
    checks = [line.split()[:2] for line in done.stdout.splitlines()]
    assert [check for check in checks if check[0] == "ok"] == [["ok", "graph"], ["ok", "cpu"], ["ok", "seal"]]
    sealed = bundle.read(old)
    assert sealed.digest is not None
    assert sealed.digest in done.stdout
    assert sealed.model == model
    assert "warn" not in foldserve("verify", old).stdout


def test_a_sealed_bundle_stays_as_it_is(models: Path) -> None:
    file = models / "digits" / "1" / "manifest.json"
    before = file.read_bytes(), file.stat().st_ino
    done = foldserve("reseal", file.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "it has a seal already" in done.stdout
    assert (file.read_bytes(), file.stat().st_ino) == before


def test_a_manifest_that_differs_from_its_seal_gets_no_new_seal(models: Path) -> None:
    folder = models / "digits" / "1"
    edit_manifest(folder, swap("labels"), keep_seal=True)
    assert_refused_in_one_line(foldserve("reseal", folder), "it differs from its seal in labels")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip_byte(folder / "model.onnx", 20), "model.onnx is not the certified one"),
        (lambda folder: folder.rename(folder.with_name("2")), "no such bundle"),
        (lambda folder: folder.parent.rename(folder.parent.with_name("other")), "no such bundle"),
    ],
    ids=["damaged", "moved", "renamed"],
)
def test_a_bundle_that_fails_a_check_is_not_sealed(damage, reason, old: Path) -> None:  # type: ignore[no-untyped-def]
    damage(old)
    assert_refused_in_one_line(foldserve("reseal", old), reason)


def test_golden_rows_that_differ_leave_the_manifest_as_it_was(old: Path) -> None:
    edit_manifest(old, lambda content: content["golden"]["outputs"][0].__setitem__(0, 2.5), keep_seal=True)
    before = (old / "manifest.json").read_bytes()
    done = foldserve("reseal", old)
    assert done.returncode == 1
    assert "the golden outputs differ" in done.stderr
    assert (old / "manifest.json").read_bytes() == before
    assert sorted(file.name for file in old.iterdir()) == ["manifest.json", "model.onnx"]


def test_a_renamed_bundle_is_not_sealed(old: Path) -> None:
    renamed = old.rename(old.with_name("2"))
    assert_refused_in_one_line(foldserve("reseal", renamed), "the manifest is of roots/1, the folder is roots/2")
