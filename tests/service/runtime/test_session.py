"""One function opens every session, and only on the requested provider.

If the function can't open a session, it reports the reason.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import foldserve
from foldserve.service.errors import BundleError, DeviceError
from foldserve.service.runtime.session import CPU, LOG_WARNINGS, Options, cuda_options, open_cpu, open_session
from tests.service.runtime.handmade import linear
from tests.service.support import PATIENCE, constant, environment, onnx_model

PACKAGE = Path(foldserve.__file__).parent
ROWS = np.array([[1, 0], [0, 1], [1, 1]], np.float32)

# ONNX Runtime's optimiser fuses the product and the sum into one Gemm.
FUSED = onnx_model(
    [helper.make_node("MatMul", ["input", "w"], ["product"]), helper.make_node("Add", ["product", "b"], ["value"])],
    [constant("w", [[2.0], [3.0]]), constant("b", [1.0])],
)


def test_only_one_module_opens_sessions() -> None:
    opening = {
        file.relative_to(PACKAGE).as_posix()
        for room in ("service", "training")
        for file in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "InferenceSession"
    }
    assert opening == {"service/runtime/session.py"}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_has_the_requested_threads_and_none_of_them_spins(threads: int) -> None:
    session = open_cpu(linear(), threads)
    options = session.get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session.get_providers() == [CPU]
    assert session.run(None, {"input": ROWS})[0].tolist() == [[2], [3], [5]]


@pytest.mark.parametrize(("optimise", "operators"), [(True, ["Gemm"]), (False, ["MatMul", "Add"])])
def test_the_graph_is_optimised_on_request_and_can_be_written(
    optimise: bool, operators: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "optimised.onnx"
    session = open_session(FUSED, CPU, optimise=optimise, optimised_file=file)
    assert [node.op_type for node in onnx.load_model(file).graph.node] == operators
    assert session.run(None, {"input": ROWS})[0].tolist() == [[3], [4], [6]]
    # By default, ONNX Runtime would warn that the optimised file is only for this machine.
    assert capfd.readouterr() == ("", "")


def test_warnings_can_be_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_session(FUSED, CPU, optimised_file=tmp_path / "optimised.onnx", log_severity=LOG_WARNINGS)
    assert "optimized model" in capfd.readouterr().err
    open_session(FUSED, CPU)  # this call silences the loggers that all sessions share


def test_a_model_that_can_not_run_is_an_error_of_the_bundle() -> None:
    with pytest.raises(BundleError, match=r"^ONNX Runtime refuses model\.onnx: "):
        open_cpu(b"not ONNX")


def test_a_provider_that_is_not_built_in_is_an_error_of_the_device() -> None:
    with pytest.raises(DeviceError, match="built without"):
        open_session(linear(), "NoSuchExecutionProvider")


def test_cuda_options_without_a_stream_leave_the_stream_to_onnx_runtime() -> None:
    assert cuda_options(Options(buckets=())) == {
        "use_tf32": "0",
        "enable_cuda_graph": "0",
        "enable_cudnn": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (None, "no ONNX Runtime is installed: pip install 'foldserve[cpu]' or 'foldserve[gpu]'"),
        (
            "raise ImportError('libonnxruntime.so.1: file too short')",
            "ONNX Runtime is installed but can't be imported: libonnxruntime.so.1: file too short",
        ),
    ],
    ids=["missing", "broken"],
)
def test_a_missing_and_a_broken_onnx_runtime_give_different_errors(
    package: str | None, expected: str, tmp_path: Path
) -> None:
    if package is not None:
        (tmp_path / "onnxruntime.py").write_text(package, encoding="utf-8")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
if {package is None}:
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
    sys.meta_path.insert(0, Missing())
from foldserve.service.errors import DeviceError
from foldserve.service.runtime.session import open_cpu
try:
    open_cpu(b"")
except DeviceError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.strip() == expected
