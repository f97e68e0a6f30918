"""Questions about CUDA that only a GPU can answer: `python -m rig.gpu.questions NAME` in benchmarks/.

Each question runs in its own process and prints lines. It asserts nothing: tests/gpu has the tests. docs/cuda.md has
the expected answers. This module does not import PyTorch, which would load cuDNN; only the question `lost` does.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.cuda_stream import Buffer, CudaStream
from foldserve.service.runtime.precision import convert
from foldserve.service.runtime.session import Options, Precision, cuda_options, open_cuda, run_options

SMALL, WIDE = (64, 64, 64, 10), (512, 1024, 1024, 1024, 10)  # the widths of two networks
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
_NODES = {0: "kernel", 1: "memcpy", 2: "memset", 3: "host", 5: "empty", 10: "allocation", 11: "free"}
_GIB = 2**30
_RUNS = int(os.environ.get("RUNS", "5000"))  # the number of runs of each timing


class RecordedStream(CudaStream):
    """A stream that records the kinds of the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[Counter[str]] = []

    def _node_types(self, graph: Any) -> list[int]:
        found = super()._node_types(graph)
        self.kinds.append(Counter(_NODES.get(kind, str(kind)) for kind in found))
        return found


def network(widths: Sequence[int], precision: Precision = "fp32") -> bytes:
    """Make a network with random weights in the form of a folded network, as the service converts it."""
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
    return convert(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), precision)


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
    """Print how long a first and a later model take to open, how much memory they take, and whether cuDNN is loaded."""
    before = nvidia.gpus()[0].free
    for number in (1, 2, 3):
        began = time.perf_counter()
        runner = CudaRunner(network(SMALL), Options("cuda"))
        seconds, taken = time.perf_counter() - began, before - nvidia.gpus()[0].free
        say(f"model {number} opens", f"{seconds:.2f} s; all together take {taken / 2**20:.0f} MiB")
        say("its outputs", runner.run(np.ones((1, 64), np.float32)).shape)
    say("a cuDNN is loaded", "libcudnn" in Path("/proc/self/maps").read_text(encoding="utf-8"))


def graphs() -> None:
    """Print the nodes of the captured graphs: does cuBLAS add allocations, and is the bias of one row a copy?"""
    for widths in (SMALL, WIDE):
        for precision in PRECISIONS:
            stream = RecordedStream()
            sizes = (1, 2, 64, 1024)
            options = Options("cuda", precision=precision, buckets=sizes)
            CudaRunner(network(widths, precision), options, partial(_given, stream)).close()
            say(f"{_title(widths)} {precision}, 1, 2, 64 and 1,024 rows", [dict(kinds) for kinds in stream.kinds])


def _title(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def _given(stream: CudaStream) -> CudaStream:
    return stream


def latency() -> None:
    """Print where the microseconds of one row go, and the time without the copy of the outputs."""
    for widths in (SMALL, WIDE):
        width, model = widths[0], network(widths)
        rows = np.ones((1, width), np.float32)
        for buckets in ((1,), (2,), ()):
            runner = CudaRunner(model, Options("cuda", buckets=buckets))
            _time(f"{_title(widths)}, 1 row, graphs of {buckets or 'no'} rows", lambda: runner.run(rows))  # noqa: B023
            runner.close()
        for outputs in ("copied back", "written to the host by the GPU"):
            stream = CudaStream()
            session = open_cuda(model, cuda_options(Options("cuda"), stream.address))
            source, target = stream.buffer((1, width)), stream.buffer((1, widths[-1]))
            launch = _capture(session, stream, source, target, copied=outputs == "copied back")
            _time(f"{_title(widths)}, 1 row, launch and wait, outputs {outputs}", lambda: (launch(), stream.wait()))  # noqa: B023
            _time("  wait without work", stream.wait)


def _capture(session: Any, stream: CudaStream, source: Buffer, target: Buffer, *, copied: bool) -> Callable[[], None]:
    """Capture a run of one row. Without `copied`, the kernels write to page-locked memory, at the same address."""
    binding, options = session.io_binding(), run_options()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    address = target.device if copied else target.host_address
    binding.bind_input(session.get_inputs()[0].name, "cuda", 0, np.float32, source.host.shape, source.device)
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0, np.float32, target.host.shape, address)

    def add_work() -> None:
        stream.upload(source, 1)
        session.run_with_iobinding(binding, options)
        if copied:
            stream.download(target, 1)

    add_work(), add_work(), stream.wait()
    return stream.capture(add_work)


def _time(what: str, work: Callable[[], object]) -> None:
    clock, took = time.perf_counter, []
    for _ in range(_RUNS + _RUNS // 5):
        began = clock()
        work()
        took.append((clock() - began) * 1e6)
    p50, p99 = np.percentile(took[_RUNS // 5 :], (50, 99))
    say(what, f"p50 {p50:.1f} us, p99 {p99:.1f} us")


def memory() -> None:
    """Print the errors of a memory limit and of a full device, and whether the next run is answered."""
    few, many = np.ones((1, 512), np.float32), np.ones((60_000, 512), np.float32)
    attempt("a limit of 1 KiB", lambda: CudaRunner(network(WIDE), Options("cuda", gpu_memory=2**10)))
    limited = CudaRunner(network(WIDE), Options("cuda", gpu_memory=2**26, buckets=(1,)))
    attempt("60,000 rows above a limit of 64 MiB", lambda: limited.run(many).shape)
    attempt("  the next run", lambda: limited.run(few).shape)
    limited.close()
    runner = CudaRunner(network(WIDE), Options("cuda", buckets=(1,)))
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
    import torch

    torch.zeros(1, device="cuda")
    runner, rows = CudaRunner(network(SMALL), Options("cuda")), np.ones((1, 64), np.float32)
    attempt("before", lambda: runner.run(rows).shape)
    attempt(
        "a kernel that fails", lambda: torch.zeros(1, device="cuda")[torch.tensor([10], device="cuda")].sum().item()
    )
    for _ in range(2):
        attempt("after", lambda: runner.run(rows).shape)
    say("lost", runner.lost)
    runner.close()


QUESTIONS = {question.__name__: question for question in (opening, graphs, latency, memory, lost)}


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
