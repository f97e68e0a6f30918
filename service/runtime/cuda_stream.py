"""A CUDA stream, and memory on both sides of it, by the C API of CUDA's runtime.

It knows addresses and bytes, no model. https://docs.nvidia.com/cuda/cuda-runtime-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia as cuda

_NON_BLOCKING = 1  # cudaStreamNonBlocking: it waits for no default stream
_UP, _DOWN = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class CudaError(Exception):
    """A call of CUDA's runtime failed."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: CUDA error {code}: {text}")
        self.out_of_memory = code == _OUT_OF_MEMORY


@dataclass(frozen=True)
class Buffer:
    """Float32 rows twice, in page-locked memory of the host and at an address of the device. Neither ever moves."""

    host: npt.NDArray[np.float32]
    device: int

    def bytes(self, rows: int) -> int:
        """Count the bytes of the first `rows`."""
        return rows * self.host.strides[0]


class Stream(Protocol):
    """Work on a device, one thing after another, that the host need not wait for.

    device: as ONNX Runtime names it. address: of the stream, for ONNX Runtime to work on it too.
    """

    device: str
    address: int

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        """Allocate rows on both sides. They are free again after `close`."""

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the host to the device."""

    def download(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the device to the host."""

    def wait(self) -> None:
        """Return when all that was begun is done."""

    def close(self) -> None:
        """Give everything back."""


class CudaStream:
    """A stream of the first CUDA device that is visible. All of its methods belong to one thread.

    Raises `DeviceError` where CUDA does not answer, and `CudaError` when a later call fails.
    """

    device = "cuda"

    def __init__(self) -> None:
        stream = ctypes.c_void_p()
        try:
            cuda.driver()  # without one the runtime says that it is too old
            self._runtime = cuda.load("cudart")
            self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
            self._call("cudaSetDevice", ctypes.c_int(0))
            self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        except (CudaError, DeviceError) as error:
            raise DeviceError(f"CUDA does not answer, `foldserve doctor` tells more: {error}") from error
        self.address = stream.value or 0
        self._stream = stream
        self._release: list[Callable[[], None]] = [lambda: self._call("cudaStreamDestroy", stream)]

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        """Allocate float32 [rows, columns] on both sides."""
        size = ctypes.c_size_t(4 * prod(shape))
        host, device = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(host), size)
        self._release.append(lambda: self._call("cudaFreeHost", host))
        self._call("cudaMalloc", ctypes.byref(device), size)
        self._release.append(lambda: self._call("cudaFree", device))
        memory = ctypes.cast(host, ctypes.POINTER(ctypes.c_float))
        return Buffer(np.ctypeslib.as_array(memory, shape), device.value or 0)

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the host to the device."""
        self._copy(buffer.device, buffer.host.ctypes.data, buffer.bytes(rows), _UP)

    def download(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the device to the host."""
        self._copy(buffer.host.ctypes.data, buffer.device, buffer.bytes(rows), _DOWN)

    def wait(self) -> None:
        """Return when all that was begun is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back, as far as a device that may have failed takes it."""
        while self._release:
            try:
                self._release.pop()()
            except CudaError:
                continue

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        arguments = (ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind))
        self._call("cudaMemcpyAsync", *arguments, self._stream)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._runtime, name)(*arguments)
        if code:
            raise CudaError(name, code, self._runtime.cudaGetErrorString(code).decode())
