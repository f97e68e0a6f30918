"""A CUDA stream, its graphs, and memory on the host and the device, through the C API of the CUDA runtime.

This module works with addresses and bytes, and does not depend on models.
https://docs.nvidia.com/cuda/cuda-runtime-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia

# cudaStreamNonBlocking: the stream does not wait for the default stream, so another thread may use the default stream
# while this stream is captured.
_NON_BLOCKING = 1
# cudaStreamCaptureModeThreadLocal: during the capture, the capturing thread must not allocate memory or wait. Other
# models may run, load and allocate memory on other threads.
_THREAD_LOCAL = 1
_HOST_FUNCTION = 3  # cudaGraphNodeTypeHost
_NO_TIMES = 2  # cudaEventDisableTiming
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
# The C functions that this module calls, and the types of their arguments. Each function returns an error code, which
# is 0 for success.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaSetDevice": (c_int,),
    "cudaGetLastError": (),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphGetNodes": (c_void_p, POINTER(c_void_p), POINTER(c_size_t)),
    "cudaGraphNodeGetType": (c_void_p, POINTER(c_int)),
    "cudaGraphInstantiate": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaMallocHost": (POINTER(c_void_p), c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaEventCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventDestroy": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
}


class CudaError(Exception):
    """A function of the CUDA runtime failed."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function}: CUDA error {code}: {text}")


class CaptureError(Exception):
    """A CUDA graph was captured that can't be launched more than once."""


@dataclass(frozen=True)
class Buffer:
    """Memory for float32 rows: page-locked on the host, and the same size on the device.

    The addresses of the memory never change.
    """

    host: npt.NDArray[np.float32]
    device: int

    @cached_property
    def host_address(self) -> int:
        """The address of the memory on the host.

        The address is cached, because NumPy takes half a microsecond to compute it.
        """
        return self.host.ctypes.data

    def bytes(self, rows: int) -> int:
        """Return the number of bytes in the first `rows` rows."""
        return rows * self.host.strides[0]


class Stream(Protocol):
    """A queue of work for a device. The device does the work in order, and the host does not wait for the work.

    device: ONNX Runtime's name for the kind of device. address: the address of the stream, which ONNX Runtime uses too.
    """

    device: str
    address: int

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        """Allocate a float32 array [rows, columns] on the host and on the device.

        `free` or `close` releases the memory.
        """

    def free(self, buffer: Buffer) -> None:
        """Free a buffer that no work on the stream uses."""

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the host to the device."""

    def download(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the device to the host."""

    def event(self) -> int:
        """Create an event for `upload_meanwhile`, `record` and `wait_for`. The event is valid until `close` is
        called.
        """

    def upload_meanwhile(self, buffer: Buffer, rows: int, event: int) -> None:
        """Begin to copy the first rows to the device while the stream still does earlier work.

        Work that is added to the stream later waits for the copy. Work that is already on the stream must not use
        `buffer`.
        """

    def record(self, event: int) -> None:
        """Add the event to the stream, after all work that was added before."""

    def wait_for(self, event: int) -> None:
        """Wait until the work before the event is done. The call does not wait for work after the event."""

    def capture(self, add_work: Callable[[], object]) -> Callable[[], None]:
        """Record the work that `add_work` adds to the stream.

        Return a function that adds the recorded work to the stream again. The device does not execute the work during
        the recording. Any thread may call the returned function, until `close` is called.
        """

    def wait(self) -> None:
        """Wait until all work on the stream is done."""

    def works(self) -> bool:
        """Wait for the stream. Return whether the device still works."""

    def close(self) -> None:
        """Free the stream, its graphs and its buffers."""


class CudaStream:
    """A stream on the first visible CUDA device, for one thread at a time.

    A second CUDA stream does the copies of `upload_meanwhile`.
    Raises `DeviceError` when CUDA is not available, and `CudaError` when a later call fails.
    """

    device = "cuda"

    def __init__(self) -> None:
        try:
            nvidia.driver()  # if the driver is missing, CUDA itself only reports that the driver is too old
            self._runtime = nvidia.load("cudart")
            self._runtime.cudaGetErrorString.restype = c_char_p
            for name, types in _FUNCTIONS.items():
                getattr(self._runtime, name).argtypes = types
            self._call("cudaSetDevice", 0)
            self.address = self._new("cudaStreamCreateWithFlags", _NON_BLOCKING)
        except (CudaError, DeviceError) as error:
            raise DeviceError(f"CUDA is not available, `foldserve doctor` shows why: {error}") from error
        self._copies = 0  # the address of a second stream, which copies while the first stream computes
        self._events: list[int] = []
        self._buffers: dict[int, Buffer] = {}  # maps an address on the device to its buffer
        self._graphs: list[c_void_p] = []

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        """Allocate a float32 array [rows, columns] on the host and on the device.

        `free` or `close` releases the memory.
        """
        size = 4 * prod(shape)
        host, device = c_void_p(), c_void_p()
        self._call("cudaMallocHost", ctypes.byref(host), size)
        try:
            self._call("cudaMalloc", ctypes.byref(device), size)
        except CudaError:
            self._release("cudaFreeHost", host)
            raise
        memory = ctypes.cast(host, POINTER(ctypes.c_float))
        buffer = Buffer(np.ctypeslib.as_array(memory, shape), device.value or 0)
        self._buffers[buffer.device] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Free a buffer that no work on the stream uses. Errors of a device that has failed are ignored."""
        del self._buffers[buffer.device]
        self._release("cudaFree", buffer.device)
        self._release("cudaFreeHost", buffer.host_address)

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the host to the device."""
        self._copy(buffer.device, buffer.host_address, buffer.bytes(rows), _HOST_TO_DEVICE, self.address)

    def download(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the device to the host."""
        self._copy(buffer.host_address, buffer.device, buffer.bytes(rows), _DEVICE_TO_HOST, self.address)

    def event(self) -> int:
        """Create an event for `upload_meanwhile`, `record` and `wait_for`. The event is valid until `close` is
        called.
        """
        self._events.append(self._new("cudaEventCreateWithFlags", _NO_TIMES))
        return self._events[-1]

    def upload_meanwhile(self, buffer: Buffer, rows: int, event: int) -> None:
        """Begin to copy the first rows to the device while the stream still does earlier work.

        Work that is added to the stream later waits for the copy. Work that is already on the stream must not use
        `buffer`.
        """
        if not self._copies:
            self._copies = self._new("cudaStreamCreateWithFlags", _NON_BLOCKING)
        self._copy(buffer.device, buffer.host_address, buffer.bytes(rows), _HOST_TO_DEVICE, self._copies)
        self._call("cudaEventRecord", event, self._copies)
        self._call("cudaStreamWaitEvent", self.address, event, 0)

    def record(self, event: int) -> None:
        """Add the event to the stream, after all work that was added before."""
        self._call("cudaEventRecord", event, self.address)

    def wait_for(self, event: int) -> None:
        """Wait until the work before the event is done. The call does not wait for work after the event."""
        self._call("cudaEventSynchronize", event)

    def capture(self, add_work: Callable[[], object]) -> Callable[[], None]:
        """Record the work that `add_work` adds to the stream.

        Return a function that adds the recorded work to the stream again. The device does not execute the work during
        the recording. Any thread may call the returned function, until `close` is called. Raises any exception of
        `add_work`, for example if `add_work` allocates memory. Raises `CaptureError` if the work calls a function on
        the host. ONNX Runtime frees memory with functions on the host, so only the first launch may call these
        functions.
        """
        graph, executable = c_void_p(), c_void_p()
        self._call("cudaStreamBeginCapture", self.address, _THREAD_LOCAL)
        try:
            add_work()
        except BaseException:
            with suppress(CudaError):  # after an error, the capture is invalid, so its end fails too
                self._call("cudaStreamEndCapture", self.address, ctypes.byref(graph))
            self._release("cudaGraphDestroy", graph)
            raise
        self._call("cudaStreamEndCapture", self.address, ctypes.byref(graph))
        try:
            if _HOST_FUNCTION in self._node_types(graph):
                raise CaptureError("the CUDA graph would call a function on the host")
            self._call("cudaGraphInstantiate", ctypes.byref(executable), graph, 0)
        finally:
            self._release("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return partial(self._call, "cudaGraphLaunch", executable, self.address)

    def _node_types(self, graph: c_void_p) -> list[int]:
        count, kind, kinds = c_size_t(), c_int(), []
        self._call("cudaGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (c_void_p * count.value)()
        self._call("cudaGraphGetNodes", graph, nodes, ctypes.byref(count))
        for node in nodes:
            self._call("cudaGraphNodeGetType", node, ctypes.byref(kind))
            kinds.append(kind.value)
        return kinds

    def wait(self) -> None:
        """Wait until all work on the stream is done."""
        self._call("cudaStreamSynchronize", self.address)

    def works(self) -> bool:
        """Wait for the stream. Return whether the device still works: a device that has failed reports an error."""
        try:
            self.wait()
        except CudaError:
            return False
        return True

    def close(self) -> None:
        """Free the stream, its events, its graphs and its buffers. Errors of a device that has failed are ignored."""
        while self._graphs:
            self._release("cudaGraphExecDestroy", self._graphs.pop())
        for buffer in list(self._buffers.values()):
            self.free(buffer)
        while self._events:
            self._release("cudaEventDestroy", self._events.pop())
        self._release("cudaStreamDestroy", self._copies)
        self._release("cudaStreamDestroy", self.address)
        self._copies = self.address = 0

    def _new(self, function: str, flags: int) -> int:
        created = c_void_p()
        self._call(function, ctypes.byref(created), flags)
        return created.value or 0

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def _release(self, name: str, address: c_void_p | int) -> None:
        if address:
            with suppress(CudaError):
                self._call(name, address)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._runtime, name)(*arguments)
        if code:
            # CUDA remembers the error as the last error of this thread. Clear this last error, because otherwise ONNX
            # Runtime would report it as a failure of the next kernel.
            self._runtime.cudaGetLastError()
            raise CudaError(name, code, self._runtime.cudaGetErrorString(code).decode())
