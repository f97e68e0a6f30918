"""Questions about CUDA that only a GPU can answer: `python -m rig.gpu.questions NAME` in benchmarks/.

Each question runs in its own process and prints its results as lines of text. The module has no assertions, because the
tests are in tests/gpu. docs/cuda.md has the expected answers. This module does not import PyTorch, because PyTorch
would load cuDNN. Only the questions `lost` and `closing` import PyTorch.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.service import bundle
from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.cuda_stream import CudaStream
from foldserve.service.runtime.load import load
from foldserve.service.runtime.precision import convert
from foldserve.service.runtime.session import Options, Precision, cuda_options, open_cuda, run_options
from foldserve.service.runtime.shortcuts import NO_SHORTCUTS, Shortcuts, prepare

SMALL, WIDE = (64, 64, 64, 10), (512, 1024, 1024, 1024, 10)  # the widths of two networks
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
_NODES = {0: "kernel", 1: "memcpy", 2: "memset", 3: "host", 5: "empty", 10: "allocation", 11: "free"}
_GIB = 2**30
_ROWS = int(os.environ.get("ROWS", "65536"))  # the number of rows in the largest batch
_RUNS = int(os.environ.get("RUNS", "5000"))  # the number of runs in each measurement


class RecordedStream(CudaStream):
    """A stream that records which kinds of nodes each graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[Counter[str]] = []

    def _node_types(self, graph: Any) -> list[int]:
        found = super()._node_types(graph)
        self.kinds.append(Counter(_NODES.get(kind, str(kind)) for kind in found))
        return found


def network(widths: Sequence[int]) -> onnx.ModelProto:
    """Make a network with random weights in the form of a folded network."""
    generator, nodes, weights, value = np.random.default_rng(0), [], [], "input"
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        for name, shape in (("w", (outputs, inputs)), ("b", (outputs,))):
            drawn = generator.standard_normal(shape, np.float32) / np.float32(inputs**0.5)
            weights.append(numpy_helper.from_array(drawn, f"{name}{number}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [f"h{number}"], transB=1))
        nodes.append(helper.make_node("Relu", [f"h{number}"], [value := f"r{number}"]))
    nodes[-1] = helper.make_node("Softmax", [nodes[-1].input[0]], ["probabilities"], axis=1)
    tensor = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "network",
        [tensor("input", shape=("batch", widths[0]))],
        [tensor("probabilities", shape=("batch", widths[-1]))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def open_runner(
    widths: Sequence[int],
    options: Options,
    choose: Callable[[Shortcuts], Shortcuts] = lambda shortcuts: shortcuts,
    stream: CudaStream | None = None,
) -> CudaRunner:
    """Open a network as the service does. choose: a function that changes the shortcuts that the service would use."""
    graph = network(widths)
    prepared, shortcuts = prepare(graph, options)
    chosen = choose(shortcuts)
    model = convert(prepared if chosen.ones else graph, options.precision)
    return CudaRunner(model, options, None if stream is None else lambda: stream, shortcuts=chosen)


def say(what: str, value: object) -> None:
    """Print one answer."""
    print(f"{what}: {value}", flush=True)


def attempt(what: str, work: Callable[[], object]) -> None:
    """Print the result of `work`, or its error and the cause of the error."""
    try:
        say(what, work())
    except Exception as error:  # noqa: BLE001 (the error is the answer)
        say(what, f"{type(error).__name__}: {error} / {error.__cause__}"[:400])


def opening() -> None:
    """Print the times to open a first and a later model, and the memory of both. Also print whether cuDNN is loaded."""
    before = nvidia.gpus()[0].free
    for number in (1, 2, 3):
        began = time.perf_counter()
        runner = open_runner(SMALL, Options("cuda"))
        seconds, taken = time.perf_counter() - began, before - nvidia.gpus()[0].free
        say(f"model {number} opens", f"{seconds:.2f} s; all together take {taken / 2**20:.0f} MiB")
        say("its outputs", runner.run(np.ones((1, 64), np.float32)).shape)
    say("a cuDNN is loaded", "libcudnn" in Path("/proc/self/maps").read_text(encoding="utf-8"))


def golden() -> None:
    """Print how much of the tolerance the golden rows of digits use, and whether the shortcuts work."""
    digits = bundle.read(Path(__file__).parents[3] / "models" / "digits" / "1")
    for precision in PRECISIONS:
        for options in (Options("cuda", precision=precision), Options("cuda", precision=precision, buckets=())):
            attempt(f"{precision}, {len(options.buckets)} graphs", partial(_check, digits, options))


def _check(digits: bundle.Bundle, options: Options) -> str:
    began = time.perf_counter()
    runtime, parity = load(digits, replace(options, max_batch=_ROWS))
    runtime.close()
    return f"{parity.worst:.2g} of the tolerance; {runtime.why}; {time.perf_counter() - began:.2f} s"


def graphs() -> None:
    """Print the nodes of the captured graphs. The nodes show whether cuBLAS adds allocations, and whether a graph for
    one row copies the bias.
    """
    for widths, sizes in ((SMALL, (1, 2, 64, 1024)), (WIDE, (1, 2, 64))):
        for precision in PRECISIONS:
            for what, choose in (("with", _keep), ("without", _drop)):
                stream = RecordedStream()
                options = Options("cuda", precision=precision, buckets=sizes)
                open_runner(widths, options, choose, stream).close()
                kinds = [dict(found) for found in stream.kinds]
                say(f"{_title(widths)} {precision}, {what} shortcuts, graphs of {sizes} rows", kinds)


def _title(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def _keep(shortcuts: Shortcuts) -> Shortcuts:
    return shortcuts


def _drop(_: Shortcuts) -> Shortcuts:
    return NO_SHORTCUTS


def _copied(shortcuts: Shortcuts) -> Shortcuts:
    return replace(shortcuts, host_outputs=False)


def _with_biases(shortcuts: Shortcuts) -> Shortcuts:
    return replace(shortcuts, ones=0)


def latency() -> None:
    """Print the times of one row and of 64 rows: with all shortcuts, without one shortcut at a time, and without
    graphs.
    """
    for widths in (SMALL, WIDE):
        for what, choose, buckets in (
            ("all shortcuts", _keep, (1, 64)),
            ("a graph for two rows", _keep, (2, 64)),
            ("outputs copied", _copied, (1, 64)),
            ("biases added by kernels", _with_biases, (1, 64)),
            ("no shortcuts", _drop, (1, 64)),
            ("no shortcuts, a graph for two rows", _drop, (2, 64)),
            ("no graphs", _keep, ()),
        ):
            stream = CudaStream()
            runner = open_runner(widths, Options("cuda", buckets=buckets), choose, stream)
            for count in (1, 64):
                rows = np.ones((count, widths[0]), np.float32)
                _time(f"{_title(widths)}, {count} rows, {what}", partial(runner.run, rows))
            _time("  a wait without work", stream.wait)
            runner.close()


def workspace() -> None:
    """Print the latencies for several values of CUBLAS_WORKSPACE_CONFIG. A process reads CUBLAS_WORKSPACE_CONFIG only
    once, so each value has its own process.
    """
    for value in (None, ":0:0", ":16:8", ":4096:8"):
        env = {name: text for name, text in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
        env |= {} if value is None else {"CUBLAS_WORKSPACE_CONFIG": value}
        program = [sys.executable, "-m", "rig.gpu.questions", "fastest"]
        done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=60, check=False)
        say(f"CUBLAS_WORKSPACE_CONFIG={value or ''}", done.stdout.strip().replace("\n", "; ") or done.stderr[-300:])


def fastest() -> None:
    """Print the latencies of a runner with all shortcuts."""
    for widths in (SMALL, WIDE):
        runner = open_runner(widths, Options("cuda", buckets=(1, 64)))
        for count in (1, 64):
            _time(f"{_title(widths)}, {count} rows", partial(runner.run, np.ones((count, widths[0]), np.float32)))
        runner.close()


def large() -> None:
    """Print times for a large batch: of each step, of the whole batch, and of the batch in pieces of several sizes."""
    rows = np.random.default_rng(0).standard_normal((_ROWS, WIDE[0]), np.float32)
    _steps(rows)
    for precision in PRECISIONS:
        options = Options("cuda", precision=precision, buckets=(), max_batch=_ROWS)
        for piece in (0, 2048, 4096, 8192, 16384):
            runner = open_runner(WIDE, options, partial(replace, piece=piece))
            _time_large(f"{_ROWS} rows, {precision}, {f'pieces of {piece}' if piece else 'whole'}", runner.run, rows)
            runner.close()


def _steps(rows: np.ndarray) -> None:
    """Print the times of three steps: the copies on the host with 1 to 8 threads, the copy to the device, and the
    kernels.
    """
    stream = CudaStream()
    session = open_cuda(convert(network(WIDE), "fp32"), cuda_options(Options("cuda"), stream.address))
    source, target = stream.buffer(rows.shape), stream.buffer((len(rows), WIDE[-1]))
    binding, options = session.io_binding(), run_options()
    binding.bind_input("input", "cuda", 0, np.float32, source.host.shape, source.device)
    binding.bind_output("probabilities", "cuda", 0, np.float32, target.host.shape, target.device)
    with ThreadPoolExecutor(8) as pool:
        for threads in (1, 2, 4, 8):
            parts = zip(np.array_split(source.host, threads), np.array_split(rows, threads), strict=True)
            pairs = list(parts)
            fill = partial(_fill, pool, pairs)
            _time_large(f"  into page-locked memory, {threads} threads", fill)
    _time_large("  copy to the device", lambda: (stream.upload(source, len(rows)), stream.wait()))
    _time_large("  kernels, fp32", lambda: session.run_with_iobinding(binding, options))
    _time_large("  copy to the host", lambda: (stream.download(target, len(rows)), stream.wait()))


def _fill(pool: ThreadPoolExecutor, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    list(pool.map(np.copyto, *zip(*pairs, strict=True)))


def _time_large(what: str, work: Callable[..., object], *arguments: object) -> None:
    took = []
    for _ in range(6):
        began = time.perf_counter()
        work(*arguments)
        took.append(time.perf_counter() - began)
    say(what, f"{np.median(took[1:]) * 1e3:.2f} ms")


def _time(what: str, work: Callable[[], object]) -> None:
    clock, took = time.perf_counter, []
    for _ in range(_RUNS + _RUNS // 5):
        began = clock()
        work()
        took.append((clock() - began) * 1e6)
    p50, p99 = np.percentile(took[_RUNS // 5 :], (50, 99))
    say(what, f"p50 {p50:.1f} us, p99 {p99:.1f} us")


def memory() -> None:
    """Print the errors that a memory limit and a full device cause, and whether the next run succeeds."""
    few, many = np.ones((1, 512), np.float32), np.ones((60_000, 512), np.float32)
    attempt("a limit of 1 KiB", lambda: open_runner(WIDE, Options("cuda", gpu_memory=2**10)))
    limited = open_runner(WIDE, Options("cuda", gpu_memory=2**26, buckets=(1,)))
    attempt("60,000 rows above a limit of 64 MiB", lambda: limited.run(many).shape)
    attempt("  the next run", lambda: limited.run(few).shape)
    limited.close()
    runner = open_runner(WIDE, Options("cuda", buckets=(1,)))
    runtime, taken = nvidia.load("cudart"), []
    for size in (_GIB, _GIB // 16, _GIB // 64):
        block = ctypes.c_void_p()
        while runtime.cudaMalloc(ctypes.byref(block), ctypes.c_size_t(size)) == 0:
            taken.append(block)
            block = ctypes.c_void_p()
        runtime.cudaGetLastError()
    attempt("60,000 rows on a full device", lambda: runner.run(many).shape)
    say("  lost", runner.lost)
    for block in taken:
        runtime.cudaFree(block)
    attempt("  the next run, with room again", lambda: runner.run(few).shape)


def lost() -> None:
    """Print the errors after a kernel has failed. The process must end with status 0, and not abort."""
    runner, rows = _runner_on_a_failed_device(), np.ones((1, 64), np.float32)
    for _ in range(2):
        attempt("after", lambda: runner.run(rows).shape)
    say("lost", runner.lost)
    runner.close()


def closing() -> None:
    """Close a runner on a failed device before a run has found the failure.

    The exit status of the process must be 0.
    """
    _runner_on_a_failed_device().close()
    say("closed", "yes")


def _runner_on_a_failed_device() -> CudaRunner:
    import torch

    torch.zeros(1, device="cuda")
    runner, rows = open_runner(SMALL, Options("cuda")), np.ones((1, 64), np.float32)
    attempt("before", lambda: runner.run(rows).shape)
    attempt(
        "a kernel that fails", lambda: torch.zeros(1, device="cuda")[torch.tensor([10], device="cuda")].sum().item()
    )
    return runner


QUESTIONS = {
    question.__name__: question
    for question in (golden, graphs, latency, workspace, fastest, large, opening, memory, lost, closing)
}


def main(name: str) -> None:
    """Answer one question. Ends with status 1 without a GPU."""
    try:
        gpu = nvidia.gpus()[0]
    except DeviceError as error:
        raise SystemExit(f"these questions need a GPU: {error}") from error
    say("GPU", f"{gpu.name}, process {os.getpid()}")
    QUESTIONS[name]()


if __name__ == "__main__":
    main(sys.argv[1])
