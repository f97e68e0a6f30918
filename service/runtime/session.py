"""Only this module opens ONNX Runtime sessions. A session runs on exactly the requested device.

Serving, the certificate, the doctor and the diagnosis all use this module, so a model is certified and served with
sessions of the same kind. This module takes the bytes of a model, and does not depend on bundles or rows.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foldserve.service.errors import BundleError, DeviceError
from foldserve.service.machine import nvidia, wheels

_import_error: ImportError | None = None
try:
    import onnxruntime as ort
except ImportError as error:
    ort, _import_error = None, error

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "fp16", "bf16"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_WITHOUT_CUDA = "this ONNX Runtime is built without CUDA; foldserve[gpu] brings one that has it"
LOG_WARNINGS, LOG_NOTHING = 2, 4  # ONNX Runtime's severities "warning" and "fatal"
# An error with one of these texts means that memory is full. ONNX Runtime's arena, its memory limit and CUDA each have
# their own error texts.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|smaller than requested bytes|free memory block|ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Options:
    """The options for running a model.

    device: `auto` means CUDA if CUDA is available, otherwise the CPU. threads: the number of threads of one run on the
    CPU. precision: the precision of the matrix products on CUDA. buckets: the batch sizes that are captured as CUDA
    graphs, in ascending order; empty for no graphs. crossover: if `device` is `auto` and CUDA is available, batches
    with fewer rows than this number run on the CPU. gpu_memory: the largest size, in bytes, of each model's arena on
    the device; None for no limit. The arena contains the model's weights and intermediate tensors. max_batch: the
    largest number of rows that the caller usually runs in one batch. A larger batch runs too, but may run more slowly.
    """

    device: Device = "auto"
    threads: int = 1
    precision: Precision = "fp32"
    buckets: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    crossover: int = 0
    gpu_memory: int | None = None
    max_batch: int = 1024


def open_session(
    model: bytes,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
    *,
    threads: int = 1,
    optimise: bool = True,
    optimised_file: Path | None = None,
    log_severity: int = LOG_NOTHING,
) -> ort.InferenceSession:
    """Open a session whose nodes all run on `provider`.

    threads: the number of threads of one run on the CPU. optimise: whether ONNX Runtime optimises the graph.
    optimised_file: the file to which ONNX Runtime writes the optimised graph. log_severity: the least severity of the
    messages that ONNX Runtime writes to standard error. By default, ONNX Runtime writes no messages, because its
    exceptions contain the same texts.
    Raises `DeviceError` if ONNX Runtime or this provider is not available. Also raises any exception of ONNX Runtime.
    """
    require_provider(provider)
    ort.set_default_logger_severity(log_severity)
    options = ort.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = threads
    # A thread that waits in a busy loop would take the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised_file is not None:
        options.optimized_model_filepath = str(optimised_file)
    if provider != CPU:
        # Without this option, ONNX Runtime moves nodes to the CPU and reports nothing.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # By default, ONNX Runtime's Python class prints each error of a session and opens a second session on the CPU.
    providers = [(provider, dict(provider_options or {}))]
    session = ort.InferenceSession(model, options, providers=providers, enable_fallback=False)
    if session.get_providers()[0] != provider:
        raise DeviceError(f"{provider} was requested, but the session runs on {session.get_providers()[0]}")
    return session


def open_cpu(model: bytes, threads: int = 1) -> ort.InferenceSession:
    """Open a session on the CPU.

    Raises `DeviceError` if ONNX Runtime is not available, and `BundleError` if ONNX Runtime refuses the model.
    """
    try:
        return open_session(model, CPU, threads=threads)
    except DeviceError:
        raise
    except Exception as error:
        raise BundleError(f"ONNX Runtime refuses model.onnx: {one_line(error)}") from error


def open_cuda(model: bytes, provider_options: Mapping[str, str]) -> ort.InferenceSession:
    """Open a session on CUDA. The session never falls back to the CPU.

    Raises `DeviceError` when CUDA is not available, or can't run this model.
    """
    try:
        return open_session(model, CUDA, provider_options)
    except DeviceError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceError(
                f"CUDA is available, but can't run this model: not enough GPU memory: {one_line(error)}"
            ) from error
        # ONNX Runtime may list a provider that fails to load: onnxruntime-gpu lists CUDA on a machine without a GPU.
        raise DeviceError(f"CUDA is not available, `foldserve doctor` shows why: {one_line(error)}") from error


def cuda_options(options: Options, stream: int | None = None) -> dict[str, str]:
    """Translate `options` for the CUDA provider. stream: the address of the CUDA stream for all work."""
    chosen = {
        # TF32 keeps 10 of the 23 bits of a float32's mantissa. With TF32, a model would not reproduce its golden
        # outputs.
        "use_tf32": str(int(options.precision == "tf32")),
        # `CudaRunner` captures the CUDA graphs, so ONNX Runtime must not capture them.
        "enable_cuda_graph": "0",
        # A folded graph needs no cuDNN. If cuDNN were enabled, ONNX Runtime would load an installed cuDNN, which takes
        # time and memory.
        "enable_cudnn": "0",
        # By default, the arena doubles its memory. Doubling takes too much memory on a device that other processes
        # share.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if stream is not None:
        chosen["user_compute_stream"] = str(stream)
    if options.gpu_memory is not None:
        chosen["gpu_mem_limit"] = str(options.gpu_memory)
    return chosen


def is_expected(refusal: DeviceError) -> bool:
    """Return whether CUDA is refused because the machine has no GPU and its ONNX Runtime is built for the CPU.

    On a machine without a GPU, the user does not need to read why CUDA is not available.
    """
    return str(refusal) == _WITHOUT_CUDA and not nvidia.has_gpu()


def require_provider(provider: str) -> None:
    """Raise `DeviceError` unless the installed ONNX Runtime is built with `provider`."""
    if isinstance(_import_error, ModuleNotFoundError):
        raise DeviceError("no ONNX Runtime is installed: pip install 'foldserve[cpu]' or 'foldserve[gpu]'")
    if _import_error is not None:
        raise DeviceError(f"ONNX Runtime is installed but can't be imported: {one_line(_import_error)}")
    if provider not in ort.get_available_providers():
        if len(both := wheels.installed()) > 1:
            raise DeviceError(
                f"{' and '.join(both)} are both installed, and the one without CUDA has overwritten the other: "
                f"pip uninstall --yes {' '.join(both)} && pip install 'foldserve[gpu]'"
            )
        raise DeviceError(_WITHOUT_CUDA)
    if provider == CUDA:
        # foldserve[gpu] installs the CUDA libraries in site-packages, which the loader does not search.
        with contextlib.redirect_stdout(io.StringIO()):  # `preload_dlls` prints errors that the session raises later
            ort.preload_dlls(cudnn=False)


def run_options() -> Any:
    """Create the options of a run. With these options, ONNX Runtime captures no CUDA graph in a run."""
    options = ort.RunOptions()
    # A session on the CPU needs the entry `gpu_graph_id` too: without it, ONNX Runtime throws and catches a C++
    # exception in each run.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the text of the error says that the device had no memory for a session or a run."""
    return _OUT_OF_MEMORY.search(str(error)) is not None


def one_line(error: Exception) -> str:
    """Shorten an error of ONNX Runtime to its first line, without the leading code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # ONNX Runtime's messages begin with a code: "[ONNXRuntimeError] : 1 : FAIL : ".
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0]) if lines else type(error).__name__
