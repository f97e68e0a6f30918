"""The service captures graphs with ONNX Runtime's own CUDA provider, and launches them."""

from __future__ import annotations

import re

from tests.cuda_harness.conftest import Run

CAPTURES = """
def print_captures():
    lines = log()
    for begin in (i for i, line in enumerate(lines) if line.startswith("begin capture")):
        end = next(i for i, line in enumerate(lines) if i > begin and line.startswith("end capture"))
        inside = lines[begin + 1 : end]
        assert all(line.startswith("captured ") for line in inside), inside
        print(lines[begin], "|", *[line.split()[1] for line in inside], "|", lines[end])
"""
THREAD_LOCAL = "begin capture mode 1"


def test_a_graph_has_one_copy_and_two_kernels_for_each_layer_and_allocates_nothing(run: Run) -> None:
    code = """
runtime, parity = load(digits, Options("cuda", buckets=(1, 4)))
lines = log()
cuda.harness_clear_log()
print([line for line in lines if "captured softmax" in line])
print(runtime.why, violations(), parity.holds)
runtime.close()
log()
load(digits, Options("cuda", buckets=(1, 4)))
print_captures()
"""
    softmax, state, *graphs = run(CAPTURES + code)
    # The last kernel of the graph writes to page-locked memory.
    assert re.fullmatch(r"\['captured softmax device\d+ pinned\d+ stream 1'(, '.* pinned\d+ stream 1')\]", softmax)
    assert state == "requested [] True"
    assert graphs == [f"{THREAD_LOCAL} | copy gemm relu gemm relu gemm softmax | end capture nodes 7"] * 2


def test_without_shortcuts_a_graph_has_both_copies_and_three_kernels_for_each_layer(run: Run) -> None:
    code = """
runner = CudaRunner(digits.model, Options("cuda", buckets=(1, 4)))
print_captures()
print(violations())
"""
    assert run(CAPTURES + code) == [
        # For one row, ONNX Runtime copies the bias of a Gemm. For several rows, a kernel repeats the bias.
        f"{THREAD_LOCAL} | copy copy gemm relu copy gemm relu copy gemm softmax copy | end capture nodes 11",
        f"{THREAD_LOCAL} | copy bias gemm relu bias gemm relu bias gemm softmax copy | end capture nodes 11",
        "[]",
    ]


def test_shortcuts_that_fail_are_turned_off_and_the_reason_is_given(run: Run) -> None:
    code = """
cuda.harness_fail(b"cudaGraphInstantiate", 1, 801)
runtime, parity = load(digits, Options("cuda", buckets=(1, 4)))
print(runtime.why, parity.holds)
runtime.run(rows(3))
print(log()[-2:], violations())
"""
    why, launched = run(code)
    assert why.startswith("requested; no shortcuts, since with them: CUDA is available, but can't run this model: ")
    assert why.endswith("unknown error True")
    assert launched == "['launch nodes 11', 'wait stream 2'] []"


def test_a_piece_is_copied_while_the_piece_before_it_is_computed(run: Run) -> None:
    """The stand-in does all work as late as CUDA allows, so a missing wait would change the outputs."""
    code = """
from foldserve.service.runtime.shortcuts import Shortcuts, prepare
import onnx
prepared, shortcuts = prepare(onnx.load_model_from_string(digits.model), Options("cuda"))
shortcuts = Shortcuts(shortcuts.ones, shortcuts.host_outputs, piece=8)
runner = CudaRunner(prepared.SerializeToString(), Options("cuda", buckets=(4,)), shortcuts=shortcuts)
cpu = open_cpu(digits.model)
for count in (8, 9, 16, 24, 30, 1000, 20):
    log()
    outputs = on_another_thread(runner.run, rows(count))
    expected = cpu.run(None, {"input": rows(count)})[0]
    print(digits.manifest.certificate.tolerance.measure(expected.astype(float), outputs).holds)
print(*[line.split()[0] + line[-2:] for line in log() if "copy" in line or "softmax" in line or "wait" in line])
runner.close()
print(cuda.harness_used(), violations())
"""
    *holds, order, end = run(code)
    assert holds == ["True"] * 7
    # Stream 2 copies. Stream 1 computes. The copy of the second piece begins before the host first waits.
    assert order == "copy 2 softmax 1 copy 2 softmax 1 wait 1 copy 2 softmax 1 wait 1 wait 1"
    assert end == "0 []"


def test_another_thread_launches_a_graph_without_onnx_runtime(run: Run) -> None:
    code = """
runtime, _ = load(digits, Options("cuda", buckets=(1, 4)))
cpu = open_cpu(digits.model)
log()
for count in (1, 3, 4, 2):
    outputs = on_another_thread(runtime.run, rows(count))
    expected = cpu.run(None, {"input": rows(count)})[0]
    print(digits.manifest.certificate.tolerance.measure(expected.astype(float), outputs).holds, *log())
print(violations())
"""
    assert run(code) == [*["True launch nodes 7 wait stream 1"] * 4, "[]"]


def test_larger_batches_on_any_thread_share_one_cublas_handle_and_free_outgrown_buffers(run: Run) -> None:
    code = """
runtime, _ = load(digits, Options("cuda", buckets=(4,)))
on_another_thread(runtime.run, rows(500))
first = cuda.harness_used()
log()
for count in (600, 2000, 7, 600):
    on_another_thread(runtime.run, rows(count))
lines = log()
print("create cuBLAS" in lines, sum(line.startswith("free pinned") for line in lines), violations())
runtime.close()
print(cuda.harness_used(), violations())
"""
    # Larger batches replace two buffers of rows and two buffers of outputs. At the end, all memory of the device has
    # been freed.
    assert run(code) == ["False 4 []", "0 []"]


def test_outputs_have_the_same_bits_with_and_without_graphs(run: Run) -> None:
    code = """
graphs, _ = load(digits, Options("cuda", buckets=(1, 4, 16)))
plain, _ = load(digits, Options("cuda", buckets=()))
print([graphs.run(rows(n)).tobytes() == plain.run(rows(n)).tobytes() for n in (1, 4, 16)], violations())
"""
    assert run(code) == ["[True, True, True] []"]


def test_another_model_opens_runs_and_closes_during_a_capture(run: Run) -> None:
    code = """
runner, _ = load(digits, Options("cuda", buckets=()))
runner.run(rows(3))
stream = CudaStream()
buffer = stream.buffer((1, 64))

def open_run_close():
    other, parity = load(digits, Options("cuda", buckets=(1, 4)))
    assert parity.holds
    other.run(rows(2)), other.run(rows(900)), runner.run(rows(4000)), other.close()

def add_work():
    stream.upload(buffer, 1)
    on_another_thread(open_run_close)
    stream.download(buffer, 1)

stream.capture(add_work)()
print(log()[-1], violations())
"""
    assert run(code) == ["launch nodes 2 []"]


def test_every_precision_and_operator_of_a_bundle_is_captured_without_an_allocation(run: Run) -> None:
    code = """
from tests.service.mixed import mixed_bundle
import onnx
for made in (digits, mixed_bundle()):
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        model = convert(onnx.load_model_from_string(made.model), precision)
        runner = CudaRunner(model, Options("cuda", precision=precision, buckets=(1, 4, 64)))
        width = made.manifest.input.shape[1]
        for count in (1, 2, 64, 100):
            on_another_thread(runner.run, np.zeros((count, width), np.float32))
        runner.close()
        print(precision, sum(line.startswith("end capture") for line in log()), cuda.harness_used(), violations())
"""
    assert run(code) == [f"{precision} 3 0 []" for precision in ("fp32", "tf32", "fp16", "bf16")] * 2


def test_onnx_runtime_refuses_to_capture_a_node_of_many_inputs_and_nothing_is_left(run: Run) -> None:
    code = """
from onnx import helper
from tests.service.support import constant, onnx_model
names = [f"part{i}" for i in range(33)]
model = onnx_model(
    [helper.make_node("Slice", ["input", "zero", "one", "one"], [name]) for name in names]
    + [helper.make_node("Concat", names, ["wide"], axis=1), helper.make_node("Gemm", ["wide", "w"], ["value"])],
    [constant("w", np.ones((33, 1), np.float32)), constant("zero", [0], np.int64), constant("one", [1], np.int64)],
)
for buckets in ((1, 4), ()):
    try:
        runner = CudaRunner(model, Options("cuda", buckets=buckets))
        runner.run(np.ones((1, 2), np.float32))
        runner.close()
        print("runs")
    except DeviceError as error:
        print(error)
print(violations(), cuda.harness_used())
"""
    refused, runs, rest = run(code)
    assert "at most 32 inputs during CUDA Graph capture" in refused  # ONNX Runtime writes this text
    assert (runs, rest) == ("runs", "[] 0")


def test_the_stand_in_detects_broken_rules(run: Run) -> None:
    """The stand-in must report each violation of CUDA's rules.

    If the stand-in reported nothing, the tests above could pass although a rule is broken.
    """
    code = """
stream = CudaStream()
buffer = stream.buffer((1, 4))
launch = stream.capture(lambda: stream.upload(buffer, 1))
for work in (lambda: stream.buffer((1, 4)), stream.wait):
    try:
        stream.capture(work)
    except CudaError as error:
        print(error)
stream.free(buffer)
launch()
stream.wait()
print(*violations(), sep="\\n")
print(cuda.cudaGetLastError())
"""
    assert run(code) == [
        "cudaMallocHost: CUDA error 900: operation not permitted when stream is capturing",
        "cudaStreamSynchronize: CUDA error 900: operation not permitted when stream is capturing",
        "cudaMallocHost during a capture",
        "cudaStreamSynchronize of a stream that is captured",
        "copy 16 uses freed pinned1",
        "copy 16 uses freed device2",
        "0",
    ]
