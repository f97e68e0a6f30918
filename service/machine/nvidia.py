"""NVIDIA's driver, GPUs and CUDA libraries, through their C interfaces and ctypes.

This module does not depend on ONNX Runtime or models. Names and numbers are from NVIDIA's references of the CUDA Driver
API, the CUDA Runtime API, cuBLAS and cuRAND, version 13.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foldserve.service.errors import DeviceError

MAJOR = 13  # onnxruntime-gpu is built for this version of CUDA; the file names below contain this number
OLDEST_GPU = (7, 5)  # the least compute capability that CUDA 13 supports

Version = tuple[int, ...]
Name = Literal["cudart", "cublasLt", "cublas", "curand", "cudnn"]

_FILES: dict[Name, str] = {
    "cudart": "libcudart.so.13",
    "cublasLt": "libcublasLt.so.13",
    "cublas": "libcublas.so.13",
    "curand": "libcurand.so.10",
    "cudnn": "libcudnn.so.9",
}
_DRIVER = "libcuda.so.1"
_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Library:
    """A shared library that was loaded: its file and its version."""

    path: Path
    version: Version


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its library file, the newest CUDA that it supports, and the driver's version, if known."""

    path: Path
    cuda: Version
    version: str | None


@dataclass(frozen=True)
class Gpu:
    """One visible GPU.

    `free` and `total` are the GPU's free and total memory in bytes. `free` does not include the memory that the CUDA
    context of this process takes.
    """

    name: str
    capability: Version
    free: int
    total: int


def has_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU, even one that can't be used. WSL has /dev/dxg."""
    return any(Path(file).exists() for file in ("/proc/driver/nvidia/gpus", "/dev/dxg", "/dev/nvidia0"))


def library(name: Name) -> Library:
    """Load a CUDA library as a session does, and find its file and version. Raises `DeviceError` if loading fails."""
    loaded = load(name)
    number = ctypes.c_int()
    if name == "cudart":
        _check(loaded.cudaRuntimeGetVersion(ctypes.byref(number)), "cudaRuntimeGetVersion")
        return Library(_mapped_file(_FILES[name]), _cuda_version(number.value))
    version = []
    for part in range(3):  # libraryPropertyType: MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
        _check(loaded[f"{name}GetProperty"](part, ctypes.byref(number)), f"{name}GetProperty")
        version.append(number.value)
    return Library(_mapped_file(_FILES[name]), tuple(version))


def load(name: Name) -> ctypes.CDLL:
    """Load a CUDA library from site-packages, where foldserve[gpu] installs it, or else from the system.

    Raises `DeviceError` with the loader's reason.
    """
    return _load_first([*(folder / _FILES[name] for folder in _wheel_folders()), Path(_FILES[name])])


def driver() -> Driver:
    """Load the driver's library. Raises `DeviceError` if the library is missing or reports an error."""
    loaded = _load_first([Path(_DRIVER)])
    number = ctypes.c_int()
    _check(loaded.cuDriverGetVersion(ctypes.byref(number)), "cuDriverGetVersion", loaded)
    try:
        own = Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        own = None
    return Driver(_mapped_file(_DRIVER), _cuda_version(number.value), own)


def gpus() -> list[Gpu]:
    """List the visible GPUs in CUDA's order. The call creates a context on each GPU for a moment.

    Raises `DeviceError` if the driver is missing or reports an error, or if no GPU is visible.
    """
    loaded = _load_first([Path(_DRIVER)])
    count = ctypes.c_int()
    _check(loaded.cuInit(0), "cuInit", loaded)
    _check(loaded.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount", loaded)
    return [_gpu(loaded, ordinal) for ordinal in range(count.value)]


def _gpu(loaded: ctypes.CDLL, ordinal: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    _check(loaded.cuDeviceGet(ctypes.byref(device), ordinal), "cuDeviceGet", loaded)
    _check(loaded.cuDeviceGetName(name, len(name), device), "cuDeviceGetName", loaded)
    capability = []
    for attribute in _CAPABILITY:
        number = ctypes.c_int()
        _check(loaded.cuDeviceGetAttribute(ctypes.byref(number), attribute, device), "cuDeviceGetAttribute", loaded)
        capability.append(number.value)
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    # Only a process with a CUDA context can ask for the free memory. The CUDA runtime uses the primary context.
    _check(loaded.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain", loaded)
    try:
        _check(loaded.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent", loaded)
        _check(loaded.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo", loaded)
        _check(loaded.cuCtxPopCurrent_v2(ctypes.byref(context)), "cuCtxPopCurrent", loaded)
    finally:
        loaded.cuDevicePrimaryCtxRelease_v2(device)
    return Gpu(name.value.decode(errors="replace"), tuple(capability), free.value, total.value)


def _wheel_folders() -> list[Path]:
    """List the library folders of NVIDIA's wheels.

    `find_spec` imports no code, because `nvidia` is a namespace package.
    """
    found = importlib.util.find_spec("nvidia")
    places = (found and found.submodule_search_locations) or []
    return [Path(place, package, "lib") for place in places for package in (f"cu{MAJOR}", "cudnn")]


def _load_first(candidates: list[Path]) -> ctypes.CDLL:
    reasons = []
    for candidate in candidates:
        # A candidate that is only a file name can't be checked here: the loader searches for this name in
        # LD_LIBRARY_PATH, in its cache, and in the system's folders.
        if candidate.is_absolute() and not candidate.is_file():
            continue
        try:
            return ctypes.CDLL(str(candidate))
        except OSError as error:
            reasons.append(str(error))
    # Report the error of the first candidate, because it may say why an existing file does not load. The error of the
    # last candidate may only say that the loader found no such file.
    raise DeviceError(reasons[0])


def _mapped_file(file: str) -> Path:
    """Find the file of a loaded library in this process's memory map.

    The name of the found file has the full version of the library.
    """
    stem = file.partition(".so")[0] + ".so"
    with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        # A line of /proc/self/maps has five columns, and then the path. The path may have spaces.
        paths = (Path(fields[5].strip()) for line in lines if len(fields := line.split(maxsplit=5)) == 6)
        return next((path for path in paths if path.name.startswith(stem)), Path(file))


def _cuda_version(number: int) -> Version:
    return number // 1000, number % 1000 // 10  # 13050 is 13.5


def _check(status: int, call: str, driver: ctypes.CDLL | None = None) -> None:
    """Raise `DeviceError` unless `status` is 0 (success). driver: the driver's library, if the driver was called."""
    if status == 0:
        return
    text = ctypes.c_char_p()
    if driver is not None and driver.cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value:
        raise DeviceError(f"{call}: {text.value.decode(errors='replace')}")
    raise DeviceError(f"{call}: error {status}")
