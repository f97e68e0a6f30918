"""Training on CUDA is as accurate as on the CPU, and reproducible."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from foldserve.training.cli import main

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch finds no GPU")


def fitted(folder: Path, name: str, *flags: str) -> dict:
    assert main(["fit", "digits", "--models", str(folder), "--name", name, *flags]) == 0
    manifest = json.loads((folder / name / "1" / "manifest.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / name / "1" / "model.onnx").read_bytes()).hexdigest() == manifest["model"]["sha256"]
    return manifest


@pytest.mark.parametrize("flags", [(), ("--precision", "bf16"), ("--compile",)], ids=["fp32", "bf16", "compile"])
def test_training_on_cuda_is_as_accurate_as_on_the_cpu(flags: tuple[str, ...], tmp_path: Path) -> None:
    on_cpu = fitted(tmp_path, "cpu", "--device", "cpu")
    on_cuda = fitted(tmp_path, "cuda", "--device", "cuda", *flags)
    for part in ("validation", "test"):
        # The device draws the random numbers for dropout and noise, so a different device changes the result as much as
        # a different seed.
        assert on_cuda["metrics"][part]["accuracy"] > on_cpu["metrics"][part]["accuracy"] - 0.03
        assert on_cuda["metrics"][part]["log_loss"] < on_cpu["metrics"][part]["log_loss"] + 0.1


def test_without_randomness_cuda_and_the_cpu_reach_the_same_loss(tmp_path: Path) -> None:
    still = ("--dropout", "0", "--input-noise", "0", "--epochs", "3")
    on_cpu = fitted(tmp_path, "cpu", "--device", "cpu", *still)
    on_cuda = fitted(tmp_path, "cuda", "--device", "cuda", *still)
    for part, metrics in on_cpu["metrics"].items():
        assert on_cuda["metrics"][part]["log_loss"] == pytest.approx(metrics["log_loss"], rel=2e-2)


def test_training_on_cuda_twice_gives_the_same_model(tmp_path: Path) -> None:
    first, second = (fitted(tmp_path, name, "--device", "cuda", "--epochs", "3") for name in ("a", "b"))
    assert first["model"]["sha256"] == second["model"]["sha256"]
