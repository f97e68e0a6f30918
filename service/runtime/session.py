"""One ONNX Runtime session on exactly the device that was asked for, or a refusal that says why.

It knows the bytes of a model and ONNX Runtime, no bundle and no rows.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Any, Literal

from foldserve.service.errors import BundleError, DeviceError
from foldserve.service.machine import wheels

try:
    import onnxruntime as ort
except ImportError:
    ort = None

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "fp16", "bf16"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SILENT = 4  # ONNX Runtime's log severity "fatal": what it has to say comes back as an exception, once


@dataclass(frozen=True)
class Options:
    """How models are run.

    device: auto is CUDA where it answers, and else the CPU. threads: of one run on the CPU. precision: of the matrix
    products on CUDA. buckets: the batch sizes that are captured as CUDA graphs, rising; none for plain runs only.
    crossover: with auto, batches of fewer rows run on the CPU though CUDA answers. gpu_memory: in bytes, what ONNX
    Runtime may take of the device for each model; None for what there is.
    """

    device: Device = "auto"
    threads: int = 1
    precision: Precision = "fp32"
    buckets: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    crossover: int = 0
    gpu_memory: int | None = None


def open_cpu(model: bytes, threads: int) -> ort.InferenceSession:
    """Open a session on the CPU. Raises `DeviceError` without ONNX Runtime, `BundleError` for what it refuses."""
    require(CPU)
    options = _options()
    options.intra_op_num_threads = threads
    # A spinning thread burns the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=[CPU], enable_fallback=False)
    except Exception as error:
        raise BundleError(f"ONNX Runtime refuses model.onnx: {one_line(error)}") from error


def cuda_options(options: Options, stream: int) -> dict[str, str]:
    """Give the CUDA provider's options; `stream` is the address of the stream that all work goes to."""
    chosen = {
        # TF32 keeps 10 bits of a float32's 23: a folded model would miss its golden outputs, and its certificate.
        "use_tf32": str(int(options.precision == "tf32")),
        "enable_cuda_graph": str(int(bool(options.buckets))),
        "user_compute_stream": str(stream),
        # As much as is asked for: by default the arena doubles, on a device that others share.
        "arena_extend_strategy": "kSameAsRequested",
    }
    return chosen | ({} if options.gpu_memory is None else {"gpu_mem_limit": str(options.gpu_memory)})


def open_cuda(model: bytes, provider_options: dict[str, str]) -> ort.InferenceSession:
    """Open a session on CUDA. ONNX Runtime would turn to the CPU in silence; three things forbid it.

    Raises `DeviceError` when CUDA does not answer, or does not run this model.
    """
    require(CUDA)
    options = _options()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # The fallback is Python's own: it would print, and open another session on the CPU.
        session = ort.InferenceSession(model, options, providers=[(CUDA, provider_options)], enable_fallback=False)
    except Exception as error:
        # A listed provider need not load: onnxruntime-gpu lists CUDA on a machine without a GPU.
        raise DeviceError(f"CUDA does not answer, `foldserve doctor` tells more: {one_line(error)}") from error
    if session.get_providers()[0] != CUDA:
        raise DeviceError(f"cuda was asked for, the session came back on {session.get_providers()[0]}")
    return session


def require(provider: str) -> None:
    """Raise `DeviceError` unless an ONNX Runtime is installed that is built with `provider`."""
    if ort is None:
        raise DeviceError("no ONNX Runtime is installed: pip install 'foldserve[cpu]' or 'foldserve[gpu]'")
    if provider not in ort.get_available_providers():
        if len(both := wheels.installed()) > 1:
            raise DeviceError(
                f"{' and '.join(both)} are installed, over each other, and the one without CUDA is on top: "
                f"pip uninstall --yes {' '.join(both)} && pip install 'foldserve[gpu]'"
            )
        raise DeviceError("this ONNX Runtime is built without CUDA; foldserve[gpu] brings one that has it")
    if provider == CUDA:
        # The CUDA libraries of foldserve[gpu] lie in site-packages, where the loader does not look by itself.
        with contextlib.redirect_stdout(io.StringIO()):  # what it can't load, it prints; the session says it again
            ort.preload_dlls(cudnn=False)


def _options() -> ort.SessionOptions:
    ort.set_default_logger_severity(_SILENT)
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    return options


def run_options(graph: int | None = None) -> Any:
    """Make the options of a run: it captures CUDA graph number `graph`, or replays it; None: neither."""
    options = ort.RunOptions()
    # On the CPU too: unless it is said that there is no graph, each run asks, by an exception.
    options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
    return options


def one_line(error: Exception) -> str:
    """Say in one line what ONNX Runtime says in many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # ONNX Runtime opens with a code: "[ONNXRuntimeError] : 1 : FAIL : ".
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0]) if lines else type(error).__name__
