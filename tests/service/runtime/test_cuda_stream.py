"""The calls to the CUDA runtime, tested with a library in C that uses host memory as device memory.

The library checks each argument against CUDA's reference. tests/gpu runs the same code on a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.service.support import PATIENCE, environment

DRIVER = "int cuDriverGetVersion(int *version) { *version = 13000; return 0; }"

# The stream's address has more than 32 bits, so a truncated pointer fails.
RUNTIME = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define STREAM ((void *)0x123456789abcdef0)
static int live;
static int fails(const char *name) { const char *chosen = getenv("FAILS"); return chosen && !strcmp(chosen, name); }
static int allocate(void **memory, size_t size) { *memory = malloc(size); live++; return 0; }
static int release(void *memory) { free(memory); live--; return 0; }
int live_objects(void) { return live; }
const char *cudaGetErrorString(int error) { return error == 2 ? "out of memory" : "unknown error"; }
int cudaSetDevice(int device) { return device != 0 || fails("cudaSetDevice") ? 999 : 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = STREAM; live++; return flags == 1 ? 0 : 999; }
int cudaStreamSynchronize(void *stream) { return stream == STREAM && !fails("cudaStreamSynchronize") ? 0 : 999; }
int cudaStreamDestroy(void *stream) { live--; return stream == STREAM ? 0 : 999; }
int cudaMallocHost(void **memory, size_t size) { return allocate(memory, size); }
int cudaFreeHost(void *memory) { return release(memory) || fails("cudaFreeHost") ? 999 : 0; }
int cudaMalloc(void **memory, size_t size) { return fails("cudaMalloc") ? 2 : allocate(memory, size); }
int cudaFree(void *memory) { return release(memory); }
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    if (stream != STREAM || (kind != 1 && kind != 2)) return 999;
    memcpy(target, source, size);
    return 0;
}
"""

USE = """
import ctypes
import numpy as np
from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia
from foldserve.service.runtime.cuda_stream import CudaError, CudaStream

def on_device(buffer):
    return np.ctypeslib.as_array(ctypes.cast(buffer.device, ctypes.POINTER(ctypes.c_float)), buffer.host.shape)

live_objects = nvidia.load("cudart").live_objects
"""

Use = Callable[..., str]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Run Python code in a process that finds these libraries, and return its output."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a CUDA runtime with")
    if find_spec("nvidia") is not None:
        pytest.skip("a CUDA runtime is installed, and found first")
    for name, code in (("libcuda.so.1", DRIVER), ("libcudart.so.13", RUNTIME)):
        (tmp_path / "source.c").write_text(code)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / name, tmp_path / "source.c"], check=True)

    def run(code: str, fails: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", USE + code],
            env=environment({"LD_LIBRARY_PATH": str(tmp_path), "FAILS": fails}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_the_first_rows_are_copied_to_the_device_and_back(use: Use) -> None:
    code = """
stream = CudaStream()
buffer = stream.buffer((3, 2))
assert (buffer.host.dtype, buffer.host.shape) == (np.float32, (3, 2))
on_device(buffer)[...] = -1
buffer.host[...] = [[1, 2], [3, 4], [5, 6]]
stream.upload(buffer, 2)
stream.wait()
print(on_device(buffer).tolist())
on_device(buffer)[...] = 7
stream.download(buffer, 1)
stream.wait()
print(buffer.host.tolist())
"""
    assert use(code).splitlines() == [
        "[[1.0, 2.0], [3.0, 4.0], [-1.0, -1.0]]",
        "[[7.0, 7.0], [3.0, 4.0], [5.0, 6.0]]",
    ]


@pytest.mark.parametrize("fails", ["", "cudaFreeHost"])
def test_everything_is_released_even_when_a_release_fails(fails: str, use: Use) -> None:
    code = """
stream = CudaStream()
stream.buffer((3, 2)), stream.buffer((1, 1))
print(hex(stream.address), live_objects())
stream.close()
stream.close()
print(live_objects())
"""
    assert use(code, fails).splitlines() == ["0x123456789abcdef0 5", "0"]


def test_a_failed_allocation_is_out_of_memory(use: Use) -> None:
    code = """
stream = CudaStream()
try:
    stream.buffer((3, 2))
except CudaError as error:
    print(error, error.out_of_memory)
stream.close()
print(live_objects())
"""
    assert use(code, "cudaMalloc").splitlines() == ["cudaMalloc: CUDA error 2: out of memory True", "0"]


def test_another_failure_is_named_with_its_code(use: Use) -> None:
    code = """
stream = CudaStream()
try:
    stream.wait()
except CudaError as error:
    print(error, error.out_of_memory)
"""
    assert use(code, "cudaStreamSynchronize") == "cudaStreamSynchronize: CUDA error 999: unknown error False"


def test_a_device_that_can_t_be_set_is_refused(use: Use) -> None:
    code = """
try:
    CudaStream()
except DeviceError as error:
    print(error)
"""
    text = use(code, "cudaSetDevice")
    assert text.startswith("CUDA ")
    assert "`foldserve doctor`" in text
    assert text.endswith("cudaSetDevice: CUDA error 999: unknown error")
