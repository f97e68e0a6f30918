"""Checks of the packages that run models: onnx, the installed ONNX Runtime, and its execution providers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata

from foldserve.service.commands.doctor.check import ProblemError
from foldserve.service.machine import nvidia

INSTALL_DRIVER = "install NVIDIA's driver 580 or newer; for a container: on its host, and `docker run --gpus all`"


def check_onnx() -> str:
    """Import onnx and return its version."""
    import onnx

    return str(onnx.__version__)


def check_wheel(wheels: list[str]) -> str:
    """Require exactly one of the wheels that install ONNX Runtime. wheels: the names of the installed wheels."""
    if not wheels:
        raise ProblemError("neither onnxruntime nor onnxruntime-gpu is installed")
    found = " and ".join(f"{name} {metadata.version(name)}" for name in wheels)
    if len(wheels) > 1:
        raise ProblemError(f"{found} are both installed: they overwrite each other's module, onnxruntime")
    return found


def check_build(wheels: list[str]) -> str:
    """Import ONNX Runtime.

    Exactly one wheel of ONNX Runtime must be installed, and the imported module must come from this wheel.
    """
    import onnxruntime as ort

    # The two names differ after these steps: the other wheel was installed over this wheel, and was then uninstalled.
    if len(wheels) == 1 and wheels != [ort.package_name]:
        raise ProblemError(f"{wheels[0]} is installed, but the module comes from {ort.package_name}")
    built = f"built for CUDA {ort.cuda_version}" if ort.cuda_version else "built without CUDA"
    providers = (name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return f"{ort.__version__}, {built}; lists the providers {', '.join(providers)}"


def check_cuda_provider() -> str:
    """Run a matrix product on CUDA only."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ProblemError("this ONNX Runtime is built without CUDA")
    if ort.cuda_version.partition(".")[0] != str(nvidia.MAJOR):
        raise ProblemError(
            f"this ONNX Runtime is built for CUDA {ort.cuda_version}; foldserve[gpu] needs CUDA {nvidia.MAJOR}"
        )
    return check_provider("CUDAExecutionProvider", {"use_tf32": "0", "enable_cudnn": "0"})


def check_provider(name: str, options: dict[str, str] | None = None) -> str:
    """Multiply two matrices, using only this execution provider. ONNX Runtime also lists providers that can't load."""
    import numpy as np

    from foldserve.service.runtime.session import LOG_WARNINGS, one_line, open_session

    with _captured_stderr() as read_stderr:
        try:
            session = open_session(_matrix_product(), name, options, log_severity=LOG_WARNINGS)
            (output,) = session.run(None, {"input": np.array([[5, 6]], np.float32)})
        except Exception as error:
            reason = _logged_reason(str(error), read_stderr()) or one_line(error)
            raise ProblemError(reason, INSTALL_DRIVER if "libcuda.so" in reason else None) from error
    if output.tolist() != [[23, 34]]:  # small whole numbers are exact at every precision
        raise ProblemError(f"a matrix product is wrong: {output.tolist()} instead of [[23, 34]]")
    return "loads, and multiplies two matrices"


def _matrix_product() -> bytes:
    """Build a model of a Gemm with the weights [[1, 2], [3, 4]] and a Relu. `input`, `output`: float32 [batch, 2].

    On CUDA, cuBLAS computes the Gemm. ONNX Runtime computes the Relu with a kernel of its own, which may have no code
    for the GPU.
    """
    from onnx import TensorProto, helper

    tensor = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    weights = helper.make_tensor("weights", TensorProto.FLOAT, (2, 2), (1, 2, 3, 4))
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["input", "weights"], ["product"]),
            helper.make_node("Relu", ["product"], ["output"]),
        ],
        "doctor",
        [tensor("input", shape=("batch", 2))],
        [tensor("output", shape=("batch", 2))],
        [weights],
    )
    # This is the opset that bundles use. Every supported ONNX Runtime reads this version of the file format.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture the standard error of this process, including C++ code.

    Yield a function that returns the captured text so far.
    """
    original = os.dup(2)
    with os.fdopen(os.memfd_create("standard error"), "r+b") as file:
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(original, 2)
            os.close(original)


def _logged_reason(raised: str, logged: str) -> str | None:
    """Return the reason why an execution provider did not load, or CUDA's error code.

    ONNX Runtime writes the reason only to its log. The exception does not give this reason: it only says that a
    fallback to the CPU is disabled.
    """
    found = re.search(r"with error: (.+)", logged) or re.search(r"(CU\w+ failure \d+: .+?)(?: ; |$)", raised, re.M)
    return found[1].strip() if found else None
