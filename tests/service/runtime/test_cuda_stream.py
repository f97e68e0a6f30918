"""Tests the calls to the CUDA runtime with a library in C that uses host memory as device memory.

The library checks whether each argument obeys CUDA's documentation. The tests in tests/gpu run the same code on a GPU.
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

# The stream's address has more than 32 bits, so a truncated pointer makes the test fail.
RUNTIME = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define STREAM ((void *)0x123456789abcdef0)
#define SECOND ((void *)0x123456789abcdef1)
#define EVENT ((void *)0x123456789abcdef2)
static int live, last, capturing, copies, created;
static char calls[64];
static struct { void *target; const void *source; size_t size; } copied[8];
static int result(int error) { if (error) last = error; return error; }
static int fails(const char *name) { const char *chosen = getenv("FAILS"); return chosen && !strcmp(chosen, name); }
static int allocate(void **memory, size_t size) {
    if (capturing) return result(900);
    *memory = malloc(size); live++; return 0;
}
static int release(void *memory) { free(memory); live--; return 0; }
int live_objects(void) { return live; }
int cudaGetLastError(void) { int error = last; last = 0; return error; }
const char *cudaGetErrorString(int error) { return error == 2 ? "out of memory" : "unknown error"; }
int cudaSetDevice(int device) { return result(device != 0 || fails("cudaSetDevice") ? 999 : 0); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    *stream = created++ ? SECOND : STREAM; live++; return flags == 1 ? 0 : 999;
}
int cudaStreamSynchronize(void *stream) {
    return result(stream == STREAM && !fails("cudaStreamSynchronize") ? 0 : 999);
}
int cudaStreamDestroy(void *stream) { live--; return stream == STREAM || stream == SECOND ? 0 : 999; }
const char *calls_on_streams(void) { return calls; }
static int called(const char *name, void *event, void *stream) {
    strcat(calls, name); strcat(calls, stream == SECOND ? " second," : " first,");
    return event == EVENT && (stream == STREAM || stream == SECOND) ? 0 : 999;
}
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = EVENT; live++; return flags == 2 ? 0 : 999; }
int cudaEventRecord(void *event, void *stream) { return called("record", event, stream); }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return flags ? 999 : called("wait", event, stream);
}
int cudaEventSynchronize(void *event) { return event == EVENT ? 0 : 999; }
int cudaEventDestroy(void *event) { live--; return event == EVENT ? 0 : 999; }
int cudaMallocHost(void **memory, size_t size) { return allocate(memory, size); }
int cudaFreeHost(void *memory) { return result(release(memory) || fails("cudaFreeHost") ? 999 : 0); }
int cudaMalloc(void **memory, size_t size) { return fails("cudaMalloc") ? result(2) : allocate(memory, size); }
int cudaFree(void *memory) { return release(memory); }
int cudaStreamBeginCapture(void *stream, int mode) {
    capturing = 1; copies = 0; return stream == STREAM && mode == 1 ? 0 : 999;
}
int cudaStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    if (last == 900) { *graph = NULL; return result(901); }
    live++; *graph = copied; return 0;
}
int cudaGraphGetNodes(void *graph, void **nodes, size_t *count) {
    *count = copies;
    for (int i = 0; nodes && i < copies; i++) nodes[i] = &copied[i];
    return graph == copied ? 0 : 999;
}
int cudaGraphNodeGetType(void *node, int *type) {
    *type = fails("host function") ? 3 : 1; return node == &copied[copies - 1] || copies > 1 ? 0 : 999;
}
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    if (graph != copied || flags) return 999;
    if (fails("cudaGraphInstantiate")) return result(2);
    live++; *executable = &copies; return 0;
}
int cudaGraphDestroy(void *graph) { live--; return graph == copied ? 0 : 999; }
int cudaGraphExecDestroy(void *executable) { live--; return executable == &copies ? 0 : 999; }
int cudaGraphLaunch(void *executable, void *stream) {
    if (executable != &copies || stream != STREAM) return 999;
    for (int i = 0; i < copies; i++) memcpy(copied[i].target, copied[i].source, copied[i].size);
    return 0;
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    if (kind != 1 && kind != 2) return 999;
    if (stream == SECOND) called("copy", EVENT, stream);
    else if (stream != STREAM) return 999;
    if (capturing) { copied[copies].target = target; copied[copies].source = source; copied[copies++].size = size; }
    else memcpy(target, source, size);
    return 0;
}
"""

USE = """
import ctypes
import numpy as np
from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia
from foldserve.service.runtime.cuda_stream import CaptureError, CudaError, CudaStream
from foldserve.service.runtime.session import is_out_of_memory

def on_device(buffer):
    return np.ctypeslib.as_array(ctypes.cast(buffer.device, ctypes.POINTER(ctypes.c_float)), buffer.host.shape)

runtime = nvidia.load("cudart")
live_objects = runtime.live_objects
"""

Use = Callable[..., str]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Run Python code in a process that finds the C library of this module, and return the output of the code."""
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


def test_a_copy_on_the_second_stream_is_awaited_by_the_first_stream(use: Use) -> None:
    code = """
stream = CudaStream()
buffer, event = stream.buffer((2, 1)), stream.event()
buffer.host[...] = [[1], [2]]
stream.upload_meanwhile(buffer, 2, event)
stream.record(event)
stream.wait_for(event)
runtime.calls_on_streams.restype = ctypes.c_char_p
print(on_device(buffer).tolist(), runtime.calls_on_streams().decode(), live_objects())
stream.close()
print(live_objects())
"""
    # 5 objects: two streams, two blocks of memory, and the event.
    copied = "[[1.0], [2.0]] copy second,record second,wait first,record first, 5"
    assert use(code).splitlines() == [copied, "0"]


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
    print(error, is_out_of_memory(error))
print(live_objects())
stream.close()
print(live_objects())
"""
    assert use(code, "cudaMalloc").splitlines() == ["cudaMalloc: CUDA error 2: out of memory True", "1", "0"]


@pytest.mark.parametrize("fails", ["cudaMalloc", "cudaStreamSynchronize"])
def test_a_failure_is_no_longer_the_last_error_of_the_thread(fails: str, use: Use) -> None:
    """ONNX Runtime would report the last error as the failure of its next kernel."""
    code = """
stream = CudaStream()
try:
    stream.buffer((3, 2))
    stream.wait()
except CudaError:
    print(runtime.cudaGetLastError())
"""
    assert use(code, fails) == "0"


def test_a_captured_graph_does_the_recorded_copies_at_each_launch(use: Use) -> None:
    code = """
from threading import Thread
stream = CudaStream()
buffer = stream.buffer((2, 1))
buffer.host[...] = 1
on_device(buffer)[...] = 0
launch = stream.capture(lambda: (stream.upload(buffer, 2), stream.download(buffer, 2)))
print(on_device(buffer).tolist())
for value in (5, 6):
    buffer.host[...] = value
    thread = Thread(target=launch)
    thread.start()
    thread.join()
    print(on_device(buffer).tolist())
print(live_objects())
stream.close()
print(live_objects())
"""
    # 4 objects: the stream, two blocks of memory, and the executable graph. The recorded graph is destroyed.
    assert use(code).splitlines() == ["[[0.0], [0.0]]", "[[5.0], [5.0]]", "[[6.0], [6.0]]", "4", "0"]


@pytest.mark.parametrize(
    ("work", "fails"), [("stream.buffer((1, 1))", ""), ("None", "cudaGraphInstantiate")], ids=["capture", "instantiate"]
)
def test_a_failed_capture_leaves_nothing_behind(work: str, fails: str, use: Use) -> None:
    code = f"""
stream = CudaStream()
try:
    stream.capture(lambda: {work})
except CudaError as error:
    print(error)
print(live_objects(), runtime.cudaGetLastError())
"""
    text, rest = use(code, fails).splitlines()
    assert ("CUDA error 900" in text) if work != "None" else ("CUDA error 2" in text)
    assert rest == "1 0"


def test_a_graph_that_calls_a_function_on_the_host_is_refused(use: Use) -> None:
    code = """
stream = CudaStream()
buffer = stream.buffer((2, 1))
try:
    stream.capture(lambda: stream.upload(buffer, 2))
except CaptureError as error:
    print(error)
print(live_objects())
"""
    assert use(code, "host function").splitlines() == ["the CUDA graph would call a function on the host", "3"]


def test_a_freed_buffer_is_not_freed_again(use: Use) -> None:
    code = """
stream = CudaStream()
first, second = stream.buffer((3, 2)), stream.buffer((1, 1))
stream.free(first)
print(live_objects())
stream.close()
print(live_objects())
"""
    assert use(code).splitlines() == ["3", "0"]


def test_another_failure_is_named_with_its_code(use: Use) -> None:
    code = """
stream = CudaStream()
try:
    stream.wait()
except CudaError as error:
    print(error, is_out_of_memory(error))
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
