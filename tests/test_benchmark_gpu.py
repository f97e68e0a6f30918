"""Tests benchmarks/gpu.py without a GPU: its refusals, a dry run, and the parts that need no device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(*arguments: str, expected: int = 0) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "benchmarks/gpu.py", *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    return done


def python(code: str) -> str:
    """Run code in a separate process with `rig` on the path, and return the output."""
    start = "import sys; sys.path.insert(0, 'benchmarks'); "
    done = subprocess.run([sys.executable, "-c", start + code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_dry_run_can_not_be_written_to_the_readme() -> None:
    assert "nothing to write" in run("--dry", "--write", expected=2).stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_benchmark_is_refused_without_a_gpu() -> None:
    done = run(expected=1)
    assert "torch sees none" in done.stderr
    assert not done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("call", ["correctness", "speed", "service"])
def test_the_three_calls_for_a_gpu_are_refused_without_one(call: str, tmp_path: Path) -> None:
    program = [sys.executable, "benchmarks/gpu_half_hour.py", call, "--out", tmp_path / "gpu"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_half_hour.py needs a GPU")
    assert not (tmp_path / "gpu").exists()


@pytest.mark.slow
def test_a_dry_run_runs_every_part_and_claims_no_measurement(tmp_path: Path) -> None:
    done = run("--dry", "--out", str(tmp_path))
    assert done.stdout.startswith("DRY RUN")
    found = json.loads((tmp_path / "gpu.json").read_text())
    measured = {(x["network"], x["batch"]) for x in found["figures"] if x["contender"] == "graphs"}
    assert len(measured) == 6  # there are two networks and three batch sizes
    assert {x["contender"] for x in found["figures"]} >= {"plain", "ort", "unfolded", "eager", "torch_graph"}
    assert {x["rows"] for x in found["served"]} == {1, 4, 24}
    assert all(all(x["same"].values()) for x in found["bit_comparisons"])
    assert not any(word in done.stdout for word in ("| met", "| missed"))


def test_kernels_are_counted_per_run_and_overlapping_time_counts_once() -> None:
    code = """
from rig.gpu.kernels import count
def event(kind, start, length): return {"cat": kind, "ts": start, "dur": length}
events = [event("kernel", 0, 10), event("kernel", 5, 10), event("kernel", 100, 5), event("kernel", 101, 1)]
events += [event("gpu_memcpy", 0, 3), event("gpu_memset", 50, 1), event("cuda_runtime", 0, 99), {"ph": "M"}]
print(count(events, 2))
"""
    assert python(code).strip() == "(2.0, 10.0, 1.0, 2.0)"


def test_the_reference_of_a_network_agrees_with_each_of_its_files(tmp_path: Path) -> None:
    """NumPy computes the reference. ONNX Runtime runs all files of the network, including the float16 file."""
    code = f"""
import numpy as np
from pathlib import Path
from rig.gpu import networks
network = networks.make("drawn", (7, 12, 9, 4), 3)
rows = np.random.default_rng(1).standard_normal((50, 7), np.float32)
folder = Path({str(tmp_path)!r})
np.savez(folder / "arrays.npz", rows=rows, expected=network.oracle(rows))
(folder / "folded.onnx").write_bytes(network.folded_onnx)
(folder / "unfolded.onnx").write_bytes(network.unfolded_onnx)
(folder / "half.onnx").write_bytes(networks.half(network.folded_onnx, "fp16"))
print(network.flops(50))
"""
    assert int(python(code)) == 2 * 50 * (7 * 12 + 12 * 9 + 9 * 4)
    arrays = np.load(tmp_path / "arrays.npz")
    for name, allowed in (("folded", 1e-5), ("unfolded", 1e-5), ("half", 5e-3)):
        session = ort.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (answers,) = session.run(None, {"input": arrays["rows"]})
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, arrays["expected"], atol=allowed, err_msg=name)
