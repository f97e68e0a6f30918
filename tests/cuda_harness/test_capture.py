"""The service captures graphs with ONNX Runtime's own CUDA provider, and launches them."""

from __future__ import annotations

from tests.cuda_harness.conftest import Run


def test_a_graph_has_both_copies_and_the_kernels_and_allocates_nothing(run: Run) -> None:
    code = """
runtime, parity = load(digits, Options("cuda", buckets=(1, 4)))
lines = log()
begins = [i for i, line in enumerate(lines) if line.startswith("begin capture")]
for begin in begins:
    end = next(i for i, line in enumerate(lines) if i > begin and line.startswith("end capture"))
    print(lines[begin], "|", *[line.split()[1] for line in lines[begin + 1 : end]], "|", lines[end])
print(all(line.startswith("captured ") for b in begins for line in lines[b + 1 : b + 12]), violations(), parity.holds)
"""
    thread_local = "begin capture mode 1"
    assert run(code) == [
        # For one row, ONNX Runtime copies the bias. For more rows, a kernel repeats it.
        f"{thread_local} | copy copy gemm relu copy gemm relu copy gemm softmax copy | end capture nodes 11",
        f"{thread_local} | copy bias gemm relu bias gemm relu bias gemm softmax copy | end capture nodes 11",
        "True [] True",
    ]


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
    assert run(code) == [*["True launch nodes 11 wait stream 1"] * 4, "[]"]


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
    # Two buffers of rows and two of outputs are outgrown. At the end, no memory of the device is left.
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
    assert "at most 32 inputs during CUDA Graph capture" in refused  # ONNX Runtime's own words
    assert (runs, rest) == ("runs", "[] 0")


def test_the_stand_in_detects_broken_rules(run: Run) -> None:
    """Without this test, the tests above could pass because the stand-in sees nothing."""
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
