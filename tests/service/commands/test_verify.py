"""Tests `foldserve verify` on intact and on damaged bundles."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from foldserve.service import bundle
from foldserve.service.commands import verify
from foldserve.service.errors import BundleError
from foldserve.service.machine import nvidia, wheels
from tests.service.bundle.changes import CHANGES, DIABETES_CHANGES, OLD, swap
from tests.service.support import assert_refused_in_one_line, edit_manifest, flip_byte, foldserve, serving

without_gpu = pytest.mark.skipif(
    nvidia.has_gpu() or wheels.installed() != ["onnxruntime"],
    reason="this machine has a GPU, or an ONNX Runtime for CUDA",
)


@pytest.fixture
def digits_folder(models: Path) -> Path:
    return models / "digits" / "1"


def test_a_whole_bundle_passes_every_check(digits: bundle.Bundle) -> None:
    done = foldserve("verify", digits.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    checks = {line.split()[1]: line for line in lines if line.startswith("ok ")}
    assert list(checks)[:5] == ["hash", "seal", "name", "graph", "cpu"]
    assert digits.manifest.model.sha256 in checks["hash"]
    assert digits.digest is not None
    assert digits.digest in checks["seal"]
    assert "Gemm Relu Gemm Relu Gemm Softmax, opset 20" in checks["graph"]
    assert "16 golden rows" in checks["cpu"]
    assert lines[-1] == "digits/1 is the model that its manifest certifies"


@without_gpu
def test_a_machine_without_a_gpu_gets_no_line_about_cuda(digits: bundle.Bundle, tmp_path: Path) -> None:
    for flags in ((), ("--device", "cpu")):
        done = foldserve("verify", digits.path, *flags)
        assert "cuda" not in done.stdout.lower()
        assert done.returncode == 0
    with serving(digits.path.parent.parent, tmp_path / "log") as server:
        assert "cuda" not in server.announcement.lower()
        (version,) = server.send("GET", "/v1/models/digits").json()["versions"]
    assert version["why"] == "this machine has no NVIDIA GPU"
    assert "cuda" not in (tmp_path / "log").read_text().lower()


@without_gpu
def test_cuda_can_be_required(digits: bundle.Bundle) -> None:
    done = foldserve("verify", digits.path, "--device", "cuda")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("ok    cpu ")
    assert done.stderr == (
        "foldserve: error: this ONNX Runtime is built without CUDA; foldserve[gpu] brings one that has it\n"
    )


def test_the_checks_that_passed_are_printed_before_the_one_that_failed(digits_folder: Path) -> None:
    edit_manifest(digits_folder, lambda content: content["golden"]["outputs"][3].__setitem__(0, 0.5))
    done = foldserve("verify", digits_folder)
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", check] for check in ("hash", "seal", "name", "graph")
    ]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"foldserve: error: {digits_folder}: on CPUExecutionProvider the golden outputs differ by ")


def test_a_bundle_of_schema_1_passes_with_a_warning(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD, tmp_path / "models")) / "roots" / "1"
    done = foldserve("verify", folder)
    assert (done.returncode, done.stderr) == (0, "")
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warn ")]
    assert warning.endswith(f"foldserve reseal {folder}")


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_changed_meaning_of_the_manifest_is_refused(name: str, models: Path) -> None:
    change, fields = CHANGES[name]
    folder = models / ("diabetes" if name in DIABETES_CHANGES else "digits") / "1"
    edit_manifest(folder, change, keep_seal=True)
    with pytest.raises(BundleError, match=f"it differs from its seal in {fields}"):
        verify.run(folder)


def test_a_changed_manifest_is_refused_in_one_line(digits_folder: Path) -> None:
    edit_manifest(digits_folder, swap("labels"), keep_seal=True)
    assert_refused_in_one_line(
        foldserve("verify", digits_folder),
        "manifest.json was changed after it was written: it differs from its seal in labels",
    )


def test_a_renamed_bundle_is_refused_as_a_server_refuses_it(digits_folder: Path) -> None:
    renamed = digits_folder.parent.with_name("renamed")
    digits_folder.parent.rename(renamed)
    reason = "the manifest is of digits/1, the folder is renamed/1; `foldserve copy` gives a bundle another name"
    with pytest.raises(BundleError, match=re.escape(f"{renamed / '1'}: {reason}")):
        verify.run(renamed / "1")


def test_a_relative_path_names_the_same_folder_as_an_absolute_path(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(digits_folder)
    for path in (".", "../1", "../../digits/1"):
        verify.run(Path(path))
        assert "digits/1, as the folder" in capsys.readouterr().out


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
def test_the_folder_of_a_model_gives_its_newest_version(command: str, digits_folder: Path) -> None:
    done = foldserve(command, digits_folder.parent)
    assert done.returncode == 0, done.stderr
    assert f"digits/{digits_folder.name}" in done.stdout


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_deeply_nested_manifest_is_refused_in_one_line(command: str, digits_folder: Path) -> None:
    (digits_folder / "manifest.json").write_text("[" * 100_000)
    assert_refused_in_one_line(foldserve(command, digits_folder), "manifest.json is not JSON")
