"""The service handles the real errors of ONNX Runtime's CUDA provider: full memory and a failed device."""

from __future__ import annotations

import pytest

from tests.cuda_harness.conftest import Run


def test_each_failed_allocation_of_a_run_is_out_of_memory_and_the_next_run_is_answered(run: Run) -> None:
    code = """
runtime, _ = load(digits, Options("cuda", buckets=(1, 4)))
for allocation in range(8):
    cuda.harness_fail(b"cudaMalloc", allocation, 2)
    try:
        outcome = runtime.run(rows(4000 + 500 * allocation)).shape[1]
    except DeviceOutOfMemory as error:
        outcome = str(error)
    print(outcome, runtime.run(rows(3)).shape, runtime.lost, violations())
"""
    lines = run(code)
    assert lines[0].startswith("the device is out of memory")
    assert {line.partition(" (3, 10) ")[2] for line in lines} == {"False []"}


def test_full_memory_is_out_of_memory_until_there_is_room_again(run: Run) -> None:
    code = """
runtime, _ = load(digits, Options("cuda", buckets=(1,)))
cuda.harness_limit(cuda.harness_used() + 2**16)
try:
    runtime.run(rows(4000))
except DeviceOutOfMemory as error:
    print(error)
print(runtime.run(rows(1)).shape, runtime.lost)
cuda.harness_limit(2**30)
print(runtime.run(rows(4000)).shape, violations())
"""
    assert run(code) == ["the device is out of memory", "(1, 10) False", "(4000, 10) []"]


def test_a_memory_limit_that_is_too_small_for_the_weights_says_so(run: Run) -> None:
    code = """
try:
    load(digits, Options("cuda", gpu_memory=2**10, buckets=()))
except DeviceError as error:
    print(error)
print(cuda.harness_used(), violations())
"""
    text, rest = run(code)
    assert text.startswith("CUDA is available, but can't run this model: not enough GPU memory: ")
    assert rest == "0 []"


def test_an_arena_limit_that_a_large_batch_exceeds_is_out_of_memory(run: Run) -> None:
    code = """
runtime, _ = load(digits, Options("cuda", gpu_memory=2**17, buckets=(1,)))
try:
    runtime.run(rows(4000))
except DeviceOutOfMemory as error:
    print(error)
print(runtime.run(rows(1)).shape, runtime.lost, violations())
"""
    assert run(code) == ["the device is out of memory", "(1, 10) False []"]


@pytest.mark.parametrize("count", [1, 40], ids=["graph", "plain"])
@pytest.mark.parametrize("end", ["", "runtime.close()"], ids=["end", "close"])
def test_a_lost_device_is_reported_and_the_process_ends_without_an_abort(count: int, end: str, run: Run) -> None:
    code = f"""
runtime, _ = load(digits, Options("cuda", buckets=(1, 4)))
runtime.run(rows(40))
cuda.harness_lose(700)
for _ in range(2):
    try:
        runtime.run(rows({count}))
    except DeviceLost as error:
        print(error, "|", error.__cause__)
print(runtime.lost)
{end}
"""
    first, second, lost = run(code)
    assert first.startswith("the device was lost | ")
    assert "an illegal memory access was encountered" in first
    assert (second, lost) == ("the device was lost | None", "True")


@pytest.mark.parametrize("function", ["cudaLaunchKernel", "cudaMemcpyAsync", "cudaGraphInstantiate"])
def test_a_device_that_is_lost_while_a_model_opens_is_an_error_of_the_device(function: str, run: Run) -> None:
    code = f"""
cuda.harness_fail({function.encode()!r}, 2, 700)
try:
    load(digits, Options("cuda", buckets=(1, 4, 16, 64)))
except DeviceError as error:
    print(type(error).__name__, violations())
"""
    assert run(code) == ["DeviceError []"]
