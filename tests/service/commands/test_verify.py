"""`foldserve verify`, on whole bundles and on damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from foldserve.service import bundle
from tests.service.support import assert_refused_in_one_line, edit_manifest, flip_byte, foldserve


@pytest.fixture
def digits_folder(models: Path) -> Path:
    return models / "digits" / "1"


def test_a_whole_bundle_passes_every_check(digits: bundle.Bundle) -> None:
    done = foldserve("verify", digits.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    checks = {line.split()[1]: line for line in lines if line.startswith("ok ")}
    assert list(checks)[:3] == ["hash", "graph", "cpu"]
    assert digits.manifest.model.sha256 in checks["hash"]
    assert "Gemm Relu Gemm Relu Gemm Softmax, opset 20" in checks["graph"]
    assert "16 golden rows" in checks["cpu"]
    assert lines[-1] == "digits/1 is the model that its manifest certifies"


def test_the_checks_that_passed_are_printed_before_the_one_that_failed(digits_folder: Path) -> None:
    edit_manifest(digits_folder, lambda content: content["golden"]["outputs"][3].__setitem__(0, 0.5))
    done = foldserve("verify", digits_folder)
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["ok", "hash"], ["ok", "graph"]]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"foldserve: error: {digits_folder}: on CPUExecutionProvider the golden outputs differ by ")


# --- damaged bundles, with both commands that read one ---------------------------------------------------------------


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_flipped_byte_is_refused_in_one_line(command: str, digits_folder: Path) -> None:
    flip_byte(digits_folder / "model.onnx", 20_000)
    assert_refused_in_one_line(
        foldserve(command, digits_folder), f"{digits_folder}: model.onnx is not the certified one"
    )


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_missing_bundle_is_refused_in_one_line(command: str, tmp_path: Path) -> None:
    assert_refused_in_one_line(foldserve(command, tmp_path / "none"), f"{tmp_path / 'none'}: no such bundle")


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_deeply_nested_manifest_is_refused_in_one_line(command: str, digits_folder: Path) -> None:
    (digits_folder / "manifest.json").write_text("[" * 100_000)
    assert_refused_in_one_line(foldserve(command, digits_folder), "manifest.json is not JSON")
