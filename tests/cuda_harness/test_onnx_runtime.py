"""Tests what docs/cuda.md says about ONNX Runtime's own graphs, streams and allocations, on its real CUDA provider."""

from __future__ import annotations

from tests.cuda_harness.conftest import Run

OPEN = """
import onnxruntime as ort

def bound(**more):
    stream = CudaStream()
    rows, outputs = stream.buffer((4, 64)), stream.buffer((4, 10))
    chosen = cuda_options(Options("cuda"), stream.address) | more
    session = open_cuda(digits.model, chosen)
    binding = session.io_binding()
    binding.bind_input("input", "cuda", 0, np.float32, (4, 64), rows.device)
    binding.bind_output("probabilities", "cuda", 0, np.float32, (4, 10), outputs.device)
    return session, binding

from foldserve.service.runtime.session import cuda_options, open_cuda
log()

def run_once(session, binding, graph=None):
    options = ort.RunOptions()
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", graph)
    log()
    session.run_with_iobinding(binding, options)
    lines = log()
    kernels = sum(line.startswith(("gemm", "bias", "relu", "softmax")) for line in lines)
    steps = [line for line in lines if line.startswith(("begin", "end", "launch", "create"))]
    return f"kernels {kernels}, {', '.join(steps) or 'no graph'}, {lines[-1]}"
"""
CAPTURE = "begin capture mode 0, end capture nodes 9, launch nodes 9, wait stream 1"


def test_the_first_run_with_a_graph_runs_twice_captures_in_global_mode_and_launches(run: Run) -> None:
    code = """
bind = bound(enable_cuda_graph="1")
for graph in (None, None, "0", "-1", "1", "1"):
    print(run_once(*bind, graph))
print(on_another_thread(run_once, *bind))
"""
    replayed = "kernels 0, launch nodes 9, wait stream 1"
    assert run(OPEN + code) == [
        f"kernels 18, {CAPTURE}",
        replayed,
        replayed,  # a run without a graph id uses the graph 0
        "kernels 9, no graph, wait stream 1",
        f"kernels 18, {CAPTURE}",  # each graph id has its own graph
        replayed,
        f"kernels 18, create cuBLAS, {CAPTURE}",  # each thread has its own graphs
    ]


def test_a_session_uses_the_given_stream_and_copies_its_weights_on_the_default_stream(run: Run) -> None:
    code = """
bind = bound()
lines = log()
copies = [line for line in lines if line.startswith("copy")]
print(len(copies), all(line.endswith("stream 0") for line in copies), lines[-1])
print(run_once(*bind))
"""
    assert run(OPEN + code) == ["6 True wait stream 0", "kernels 9, no graph, wait stream 1"]


def test_memory_for_tensors_is_allocated_in_the_first_two_runs_only(run: Run) -> None:
    code = """
bind = bound()
for _ in range(4):
    run_once(*bind)
log()
bind = bound()
counts = []
for _ in range(4):
    log()
    bind[0].run_with_iobinding(bind[1], ort.RunOptions())
    counts.append(sum(line.startswith("allocate") for line in log()))
print(counts[0] > 0, counts[1] > 0, counts[2:])
"""
    assert run(OPEN + code) == ["True True [0, 0]"]
