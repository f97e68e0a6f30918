"""A CUDA stream, and memory on the host and the device, through the C API of the CUDA runtime.

This module knows addresses and bytes, but no models. https://docs.nvidia.com/cuda/cuda-runtime-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia

_NON_BLOCKING = 1  # cudaStreamNonBlocking: the stream does not wait for the default stream
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
# The C functions that this module calls, with the types of their arguments. Each returns an error code; 0 is success.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaSetDevice": (c_int,),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaMallocHost": (POINTER(c_void_p), c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
}


class CudaError(Exception):
    """A function of the CUDA runtime failed."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function}: CUDA error {code}: {text}")
        self.out_of_memory = code == _OUT_OF_MEMORY


@dataclass(frozen=True)
class Buffer:
    """Memory for float32 rows: page-locked on the host, and the same size on the device. The addresses never change."""

    host: npt.NDArray[np.float32]
    device: int

    @cached_property
    def host_address(self) -> int:
        """The address on the host. The address is stored, because NumPy takes half a microsecond to compute it."""
        return self.host.ctypes.data

    def bytes(self, rows: int) -> int:
        """Count the bytes of the first `rows` rows."""
        return rows * self.host.strides[0]


class Stream(Protocol):
    """A queue of work for a device. The device does the work in order, and the host does not wait for it.

    device: ONNX Runtime's name for the kind of device. address: the address of the stream, which ONNX Runtime uses too.
    """

    device: str
    address: int

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        """Allocate float32 [rows, columns] on the host and the device, until `close`."""

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the host to the device."""

    def download(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the device to the host."""

    def wait(self) -> None:
        """Wait until all work on the stream is done."""

    def close(self) -> None:
        """Free the stream and its buffers."""


class CudaStream:
    """A stream on the first visible CUDA device. Use one object from one thread only.

    Raises `DeviceError` when CUDA is not available, and `CudaError` when a later call fails.
    """

    device = "cuda"

    def __init__(self) -> None:
        stream = c_void_p()
        try:
            nvidia.driver()  # without a driver, the CUDA runtime would report a driver that is too old
            self._runtime = nvidia.load("cudart")
            self._runtime.cudaGetErrorString.restype = c_char_p
            for name, types in _FUNCTIONS.items():
                getattr(self._runtime, name).argtypes = types
            self._call("cudaSetDevice", 0)
            self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), _NON_BLOCKING)
        except (CudaError, DeviceError) as error:
            raise DeviceError(f"CUDA is not available, `foldserve doctor` shows why: {error}") from error
        self.address = stream.value or 0
        self._stream = stream
        self._releases: list[Callable[[], None]] = [lambda: self._call("cudaStreamDestroy", stream)]

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        """Allocate float32 [rows, columns] on the host and the device, until `close`."""
        size = 4 * prod(shape)
        host, device = c_void_p(), c_void_p()
        self._call("cudaMallocHost", ctypes.byref(host), size)
        self._releases.append(lambda: self._call("cudaFreeHost", host))
        self._call("cudaMalloc", ctypes.byref(device), size)
        self._releases.append(lambda: self._call("cudaFree", device))
        memory = ctypes.cast(host, POINTER(ctypes.c_float))
        return Buffer(np.ctypeslib.as_array(memory, shape), device.value or 0)

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the host to the device."""
        self._copy(buffer.device, buffer.host_address, buffer.bytes(rows), _HOST_TO_DEVICE)

    def download(self, buffer: Buffer, rows: int) -> None:
        """Begin to copy the first rows from the device to the host."""
        self._copy(buffer.host_address, buffer.device, buffer.bytes(rows), _DEVICE_TO_HOST)

    def wait(self) -> None:
        """Wait until all work on the stream is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free the stream and its buffers. Errors of a device that has failed are ignored."""
        while self._releases:
            try:
                self._releases.pop()()
            except CudaError:
                continue

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._runtime, name)(*arguments)
        if code:
            raise CudaError(name, code, self._runtime.cudaGetErrorString(code).decode())
