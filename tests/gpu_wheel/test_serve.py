"""Tests the messages of `foldserve serve`, `verify` and a loaded runtime, with onnxruntime-gpu but without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from foldserve.service import bundle
from foldserve.service.errors import DeviceError, DeviceLost
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.session import Options, open_cuda
from tests.gpu_wheel.test_doctor import pytestmark as pytestmark
from tests.service.simulated_cuda import HostStream, SimulatedGpu
from tests.service.support import constant, environment, foldserve, onnx_model

SHIPPED = Path(__file__).parents[2] / "models"
MODEL = onnx_model(
    [helper.make_node("MatMul", ["input", "w"], ["value"])], [constant("w", np.array([[2.0], [3.0]], np.float32))]
)


def test_a_request_for_cuda_is_refused_in_one_line_without_a_gpu() -> None:
    done = foldserve("serve", "--models", SHIPPED, "--port", "0", "--device", "cuda")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("foldserve: error: CUDA is not available, `foldserve doctor` shows why: libcuda.so.1")


def test_auto_serves_on_the_cpu_and_says_why() -> None:
    session, _ = runtime.load(bundle.read(SHIPPED / "digits" / "1"), Options("auto"))
    assert session.provider == "CPUExecutionProvider"
    assert "libcuda.so.1" in session.why


def test_a_precision_for_cuda_is_refused_rather_than_replaced() -> None:
    done = foldserve("serve", "--models", SHIPPED, "--port", "0", "--precision", "fp16")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "precision fp16 needs CUDA: CUDA is not available" in line


def test_a_cuda_session_that_would_fall_back_to_the_cpu_is_refused() -> None:
    # ONNX Runtime lists its CUDA provider even without a GPU.
    assert "CUDAExecutionProvider" in ort.get_available_providers()
    with pytest.raises(DeviceError, match="CUDA is not available"):
        open_cuda(MODEL, {"use_tf32": "0"})


def test_verify_reports_that_cuda_is_not_available() -> None:
    done = foldserve("verify", SHIPPED / "digits" / "1")
    assert done.returncode == 0
    assert any(line.startswith("skip  cuda") and "libcuda.so.1" in line for line in done.stdout.splitlines())


def test_a_provider_lost_after_the_start_is_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a provider fails, ONNX Runtime's session class opens another session on the CPU, without an error."""
    opened = []

    def on_the_cpu(model: bytes, _: dict[str, str]) -> ort.InferenceSession:
        # Call the session class of this wheel in the same way as `open_cuda`, but with another provider.
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"], enable_fallback=False)
        opened.append(session)
        return session

    runner = CudaRunner(MODEL, Options("cuda", buckets=()), lambda: HostStream(SimulatedGpu()), on_the_cpu)
    assert runner.run(np.ones((1, 2), np.float32)).tolist() == [[5]]
    (session,) = opened

    def fails(*_: object) -> None:
        raise ort.capi.onnxruntime_pybind11_state.EPFail("CUDA failure 999: unknown error ; GPU=0")

    monkeypatch.setattr(session, "run", fails)
    monkeypatch.setattr(session, "run_with_iobinding", fails)
    with pytest.raises(DeviceLost):
        runner.run(np.ones((1, 2), np.float32))
    assert runner.lost
    monkeypatch.undo()
    with pytest.raises(DeviceLost):
        runner.run(np.ones((1, 2), np.float32))
    assert len(opened) == 1  # ONNX Runtime did not open another session on the CPU
    runner.close()


def test_two_installed_wheels_are_named(tmp_path: Path) -> None:
    """pip lists both wheels, but Python imports the module of the wheel without CUDA."""
    folder = tmp_path / "onnxruntime-1.32.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.32.0\n", encoding="utf-8")
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys\n"
        "path, sys.path = sys.path, [p for p in sys.path if p != " + repr(str(tmp_path)) + "]\n"
        "del sys.modules['onnxruntime']\n"
        "import onnxruntime as real\n"
        "real.get_available_providers = lambda: ['CPUExecutionProvider']\n"
        "sys.path = path\n",
        encoding="utf-8",
    )
    search = f"{tmp_path}:{environment().get('PYTHONPATH', '')}"
    done = foldserve("serve", "--models", SHIPPED, "--port", "0", "--device", "cuda", env={"PYTHONPATH": search})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "onnxruntime and onnxruntime-gpu are both installed" in line
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu" in line
